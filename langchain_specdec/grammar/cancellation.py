"""Whether anybody waits for a grammar any more that is prepared in a thread, which cannot be ended from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from contextvars import ContextVar

_is_wanted: ContextVar[Callable[[], bool] | None] = ContextVar("is_wanted", default=None)


@contextmanager
def wanted_while(is_wanted: Callable[[], bool]) -> Iterator[None]:
    """Have `check_wanted` ask a function while the block runs, in its thread."""
    token = _is_wanted.set(is_wanted)
    try:
        yield
    finally:
        _is_wanted.reset(token)


def check_wanted() -> None:
    """Ask the caller of the block that this is in, for work that waits too deep in it to be given a function.

    Raises:
        CancelledError: Nobody waits for the work any more.
    """
    is_wanted = _is_wanted.get()
    if is_wanted is not None and not is_wanted():
        raise CancelledError
