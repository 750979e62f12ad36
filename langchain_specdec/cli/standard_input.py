"""Standard input as text, whole or line by line; a wait for it is told."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from langchain_specdec.errors import InvalidParameterError

# Until somebody who did not mean to give anything should know what is waited for.
_PATIENCE_SECONDS = 1.0
# More than any model reads; a writer that never ends would fill the memory.
_MOST_BYTES = 2**26


def is_terminal() -> bool:
    """Whether a person types the input."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_text() -> str:
    """All of standard input, without the line break at its end, as `echo` and editors put one there.

    Returns:
        The text; "" where there is no standard input.

    Raises:
        InvalidParameterError: It is not UTF-8, or too long for any model.
    """
    told = "Reading standard input to its end. If there is none to read, add: < /dev/null"
    return _read(told, is_line=False).removesuffix("\n").removesuffix("\r")


def read_line() -> str | None:
    """The next line of standard input, with its line break; None at the end, and where there is no standard input.

    Raises:
        InvalidParameterError: It is not UTF-8, or too long for any model.
    """
    return _read("Reading messages from standard input, one a line.", is_line=True) or None


def _read(told: str, *, is_line: bool) -> str:
    """The next line, or all, of standard input; `told` says on stderr what is waited for."""
    if sys.stdin is None:  # closed before Python started
        return ""
    try:
        with _told(told):
            read = sys.stdin.buffer.readline if is_line else sys.stdin.buffer.read
            data = read(_MOST_BYTES + 1)
    except OSError as error:
        # Open for writing only, as `nohup` leaves it: nothing can be there.
        if error.errno == errno.EBADF:
            return ""
        raise
    if len(data) > _MOST_BYTES:
        msg = f"Standard input has more than {_MOST_BYTES >> 20} MB, which is more than any model reads. Shorten it."
        raise InvalidParameterError(msg)
    return _decoded(data)


def _decoded(data: bytes) -> str:
    try:
        # Some editors, and pipes of PowerShell, begin a text with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"Standard input is not UTF-8 text: {error}. Convert it first."
        raise InvalidParameterError(msg) from error


@contextmanager
def _told(message: str) -> Iterator[None]:
    """Say on stderr what is waited for, unless it comes soon."""
    timer = threading.Timer(_PATIENCE_SECONDS, print, (message,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
