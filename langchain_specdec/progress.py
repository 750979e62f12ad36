"""How the progress of long work is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

READING_WEIGHTS = "Reading the weights"
"""The step that is done each time a model is loaded; all others are done once."""
Progress = Callable[[str, int, int], None]
"""Told of long work: what is done, how much of it, of how much (bytes or steps)."""

_told: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def telling(progress: Progress | None) -> Iterator[None]:
    """Have `tell` call a function while the block runs, in its thread."""
    token = _told.set(progress)
    try:
        yield
    finally:
        _told.reset(token)


def tell(what: str, done: int, total: int) -> None:
    """Tell the caller of the block that this is in, for work that is too deep in it to be given a function."""
    progress = _told.get()
    if progress is not None:
        progress(what, done, total)
