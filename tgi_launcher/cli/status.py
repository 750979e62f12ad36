"""A status line that changes in place, in a terminal; plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
from typing import Protocol

from rich.console import Console
from rich.status import Status as RichStatus
from rich.text import Text

__all__ = ["Status", "make_status"]


class Status(Protocol):
    """Where `tgi-launch start` writes to."""

    def show(self, text: str) -> None:
        """What it is doing; replaces what was shown before."""

    def step(self, text: str) -> None:
        """The begin of a stage."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def log(self, text: str) -> None:
        """A line of TGI's log."""

    def close(self) -> None:
        """The end."""


def make_status() -> Status:
    """The status that fits standard output."""
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return _LiveStatus() if is_terminal else _PlainStatus()


class _PlainStatus:
    """Lines only, and none that change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def show(self, text: str) -> None:
        """Nothing: it would be a line every moment."""

    def step(self, text: str) -> None:
        """A line."""
        self.say(f"… {text}")

    def say(self, text: str) -> None:
        """A line."""
        with self._lock:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def log(self, text: str) -> None:
        """A line."""
        self.say(f"  | {text}")

    def close(self) -> None:
        """Nothing is left to be done."""


class _LiveStatus:
    """One line at the bottom that changes, with what stays above it."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._status = RichStatus("starting", console=self._console)
        self._status.start()

    def show(self, text: str) -> None:
        """Replace the last line."""
        self._status.update(Text(text))

    def step(self, text: str) -> None:
        """Seen in the last line anyway."""

    def say(self, text: str) -> None:
        """A line above the last."""
        self._console.print(Text(text), soft_wrap=True)

    def log(self, text: str) -> None:
        """A line above the last, dimmed."""
        self._console.print(Text(f"  | {text}", style="dim"), soft_wrap=True)

    def close(self) -> None:
        """Remove the last line."""
        self._status.stop()
