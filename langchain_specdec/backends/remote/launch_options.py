"""Keywords of servers that are launched, whatever their engine, for editors and type checkers."""

# Of all of these, None is the default. tests/unit/langchain/test_keywords.py compares the names and the types.

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from tgi_launcher import Backoff, Progress, ServerExit


class ServerOptions(TypedDict, total=False):
    """Keywords of `tgi_launcher.Server`."""

    restart: Literal["never", "on-failure"] | None
    backoff: Backoff | None
    on_exit: Callable[[ServerExit], None] | None
    on_progress: Callable[[Progress], None] | None
    on_log: Callable[[str], None] | None
