"""Terminals for tests: one in the place of standard output, one that is emulated, and a program on one of its own."""

from __future__ import annotations

import os
import pty
import re
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pexpect  # type: ignore[import-untyped]
import pyte
import pytest


@contextmanager
def terminal_output(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A terminal in place of standard output; what was written to it, as one text, is there at the end.

    A terminal holds some thousand characters that nobody reads, so that is the most to write.
    """
    reader, writer = pty.openpty()
    written: list[str] = []
    with monkeypatch.context() as patch, os.fdopen(reader, "rb", buffering=0) as output:
        with os.fdopen(writer, "w", encoding="utf-8") as terminal:
            patch.setattr(sys, "stdout", terminal)
            yield written
            terminal.flush()
            os.write(writer, b"\0")
            received = b""
            while not received.endswith(b"\0"):
                received += output.read(4096) or b""
        written.append(received[:-1].decode().replace("\r\n", "\n"))


class Screen:
    """An emulated terminal: what a person sees, and what has scrolled away above it."""

    def __init__(self, columns: int = 60, lines: int = 20) -> None:
        self._screen = pyte.HistoryScreen(columns, lines, history=2000)
        self._stream = pyte.Stream(self._screen)
        self.raw = ""

    def write(self, text: str) -> int:
        """Take what a program writes."""
        self.raw += text
        # A terminal driver returns the carriage at a line feed.
        self._stream.feed(text.replace("\r\n", "\n").replace("\n", "\r\n"))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def answer_to(self, send: Callable[[str], Any]) -> None:
        """Where the terminal's own answers go, such as that to a question for the cursor's place."""
        self._screen.write_process_input = send  # type: ignore[assignment, method-assign]

    def resize(self, columns: int, lines: int) -> None:
        """Take another size; what stands there is not broken anew."""
        self._screen.resize(lines, columns)

    @property
    def text(self) -> str:
        """All lines, without blanks at their ends."""
        columns = self._screen.columns
        gone = ["".join(line[column].data for column in range(columns)).rstrip() for line in self._screen.history.top]
        return "\n".join([*gone, *(line.rstrip() for line in self._screen.display)]).rstrip()


class Program:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, *arguments: str, columns: int = 60, lines: int = 20, **environment: str) -> None:
        # These would stand for the size of a window that changes; test runners set them.
        own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.screen = Screen(columns, lines)
        self._process = pexpect.spawn(
            arguments[0],
            list(arguments[1:]),
            dimensions=(lines, columns),
            env={**own, "TERM": "xterm-256color", **environment},
            encoding="utf-8",
            # Ctrl-C has a terminal drop what was not read yet, which may begin in the middle of a character.
            codec_errors="replace",
        )
        self.screen.answer_to(self._process.send)

    def type(self, keys: str) -> None:
        """Press keys."""
        self._process.send(keys)

    def resize(self, columns: int, lines: int) -> None:
        """Give the window another size."""
        self.screen.resize(columns, lines)
        self._process.setwinsize(lines, columns)

    def wait_for(self, pattern: str, seconds: float = 60.0) -> str:
        """Read until the screen shows a pattern; the screen's text."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.screen.text):
            assert time.monotonic() < deadline, f"no {pattern!r} on the screen:\n{self.screen.text}"
            with suppress(pexpect.TIMEOUT):
                try:
                    self.screen.write(self._process.read_nonblocking(65536, timeout=1))
                except pexpect.EOF:
                    pytest.fail(f"the program ended without {pattern!r} on the screen:\n{self.screen.text}")
        return self.screen.text

    def modes(self) -> list[Any]:
        """How the terminal is set: whether it echoes, sends lines or keys, and so on."""
        return termios.tcgetattr(self._process.child_fd)

    def wait(self) -> int:
        """Read to the end; the exit code."""
        while self._process.isalive():
            with suppress(pexpect.TIMEOUT, pexpect.EOF):
                self.screen.write(self._process.read_nonblocking(65536, timeout=1))
        return int(self._process.exitstatus)

    def close(self) -> None:
        """End the program if it still runs."""
        self._process.close(force=True)


def without_progress(stderr: str) -> str:
    """Standard error without the lines that come every ten seconds, as they do on a busy machine."""
    return re.sub(r"^.* \(\d+ s\)\n", "", stderr, flags=re.MULTILINE)
