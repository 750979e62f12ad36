"""Processes that a measurement starts beside itself, and ends with it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def child_process(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Have a process of this interpreter run while the block does.

    Its standard input ends with this process, however that ends.

    Args:
        arguments: Of the interpreter.
        options: Of `Popen`.
    """
    child = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, **options)  # noqa: S603 - constants
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def tell(child: subprocess.Popen[bytes], what: bytes) -> None:
    """Write to a process's standard input, if it has not ended."""
    assert child.stdin is not None  # noqa: S101 - it is a pipe
    with contextlib.suppress(OSError):  # it has ended
        child.stdin.write(what)
        child.stdin.flush()
