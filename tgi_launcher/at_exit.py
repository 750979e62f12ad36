"""Servers that end with this process: stopped when it exits, and let go of by its forks."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import Protocol

from tgi_launcher.errors import TGIError


class Stoppable(Protocol):
    """What is stopped when this process exits."""

    def begin_stop(self) -> None:
        """Ask it to end, without waiting."""

    def stop(self) -> None:
        """Wait until it has ended."""

    def forget(self) -> None:
        """Let go of it, in a fork of the process that it belongs to."""


_running: weakref.WeakSet[Stoppable] = weakref.WeakSet()


def register(running: Stoppable) -> None:
    """Stop it when this process exits."""
    _running.add(running)


def unregister(ended: Stoppable) -> None:
    """It has ended before the process."""
    _running.discard(ended)


def _stop_all() -> None:
    running = list(_running)
    for server in running:
        server.begin_stop()  # all of them first, so that they finish their requests side by side
    for server in running:
        with contextlib.suppress(TGIError):
            server.stop()


def _forget_all() -> None:
    for server in list(_running):
        server.forget()
    _running.clear()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_all)
