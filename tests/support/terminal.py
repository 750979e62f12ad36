"""What a terminal shows of a program."""

from __future__ import annotations

import os
import pty
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


def without_progress(stderr: str) -> str:
    """Standard error without the lines that come every ten seconds, as they do on a busy machine."""
    return re.sub(r"^.* \(\d+ s\)\n", "", stderr, flags=re.MULTILINE)
