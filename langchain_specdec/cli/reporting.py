"""How commands end: errors as one line on stderr, exit codes, and what a broken pipe or Ctrl-C means."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from langchain_specdec.cli.terminal_text import visible
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError, SpecDecError

__all__ = ["FAILED", "INTERRUPTED", "WRONG_USE", "reported"]

FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130


@contextmanager
def reported(*, debug: bool = False) -> Iterator[None]:
    """Turn whatever ends a command early into a message and an exit code.

    Args:
        debug: Let errors through, with their traceback.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output has left, as `head` does. Python would fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except Exception as error:
        if debug:
            raise
        # It may quote a model's files, such as what its chat template raises.
        print(f"error: {visible(_message(error))}", file=sys.stderr)
        code = WRONG_USE if isinstance(error, InvalidParameterError) else FAILED
        raise typer.Exit(code) from None


def _message(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, MissingDependencyError):
        return text  # it ends in commands, each on a line of its own
    text = " ".join(text.split())
    if isinstance(error, (SpecDecError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"
