"""Waking a thread that waits, from threads that an interrupt may stop anywhere."""

from __future__ import annotations

import contextlib
import queue


class Wakeup:
    """Has a thread wait until it is woken, or look at once where it was woken before.

    A `threading.Condition` and all that is made of it are Python code: an interrupt (Ctrl-C) that comes inside may keep
    its lock for good, and with it every thread that needs it. Beside this, use a plain lock in a `with` statement.
    """

    def __init__(self) -> None:
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Wake the thread that waits, or else the next that would."""
        if self._tokens.empty():
            self._tokens.put(None)

    def wait(self, seconds: float | None = None) -> None:
        """Wait to be woken; it may be for what was seen already, so look again. None is without limit."""
        with contextlib.suppress(queue.Empty):
            self._tokens.get(timeout=seconds)
