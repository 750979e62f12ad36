"""A status line that changes in place, in a terminal; plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading

from rich.console import Console
from rich.status import Status as RichStatus
from rich.text import Text

from tgi_launcher.standard_streams import discard_output


class Status:
    """Where `tgi-launch start` writes to: plain lines, of which none changes.

    Attributes:
        problem: Why standard output takes no more: its reader has left, as `head` does, or a disk is full.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._lock = threading.Lock()

    def show(self, text: str) -> None:
        """What it is doing, in place of what was shown before. Not here: it would be a line every moment."""

    def step(self, text: str) -> None:
        """The begin of a stage."""
        self.say(f"… {text}")

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            try:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
            except OSError as error:
                discard_output()
                is_left = isinstance(error, BrokenPipeError)
                self.problem = (
                    "Nobody reads standard output any more" if is_left
                    else f"Standard output cannot be written to ({error.strerror})"
                )  # fmt: skip

    def log(self, text: str) -> None:
        """A line of TGI's log."""
        self.say(f"  | {text}")

    def close(self) -> None:
        """The end."""


class _LiveStatus(Status):
    """One line at the bottom that changes, with what stays above it."""

    def __init__(self) -> None:
        super().__init__()
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


def make_status() -> Status:
    """The status that fits standard output."""
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return _LiveStatus() if is_terminal else Status()
