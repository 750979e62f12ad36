"""Signals that a command heeds while it runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def handled(number: int, handler: Callable[..., object]) -> Iterator[None]:
    """Have a signal handled so while the block runs, and as before at its end, unless the block set another handler.

    Only the main thread may set handlers: in others nothing is done.

    Args:
        number: The signal.
        handler: Called as `signal.signal` says.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        if signal.getsignal(number) is handler:
            signal.signal(number, before)


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Have SIGTERM end the program by a `SystemExit`: killed at once, it would leave a terminal that echoes nothing."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    with handled(signal.SIGTERM, leave):
        yield
