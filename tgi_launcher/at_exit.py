"""Ties servers to the life of this process: stopped at its exit, and left alone by its forks."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import Protocol

from tgi_launcher.errors import TGIError

__all__ = ["Mortal", "add", "discard"]


class Mortal(Protocol):
    """What ends with the process."""

    def begin_stop(self) -> None:
        """Ask it to end, without waiting."""

    def stop(self) -> None:
        """Wait until it has ended."""

    def forget(self) -> None:
        """Let go of it, in a fork of the process that it belongs to."""


_alive: weakref.WeakSet[Mortal] = weakref.WeakSet()


def add(mortal: Mortal) -> None:
    """From here on it ends with this process."""
    _alive.add(mortal)


def discard(mortal: Mortal) -> None:
    """It has ended."""
    _alive.discard(mortal)


def _stop_all() -> None:
    mortals = list(_alive)
    for mortal in mortals:
        mortal.begin_stop()  # all at once, so that they drain side by side
    for mortal in mortals:
        with contextlib.suppress(TGIError):
            mortal.stop()


def _forget_all() -> None:
    for mortal in list(_alive):
        mortal.forget()
    _alive.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_all)
