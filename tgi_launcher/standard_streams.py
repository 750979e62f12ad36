"""Standard streams as programs find them: closed, full, left by their reader, or in an encoding without Unicode."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

FAILED = 1
INTERRUPTED = 130

_LAST_STANDARD_DESCRIPTOR = 2
# Seconds after which an interrupt is sent again: what dropped it has ended by then.
_AGAIN = 0.02
_REPLACING = "tgi_launcher.replacing"
# Encodings of terminals that lacked a character of what was written to them.
_lacking: list[str] = []
_is_unicode = True


class _Output(io.TextIOWrapper):
    """Standard output, which remembers that a write has failed.

    Attributes:
        failure: The first that did.
        is_dropped: Whether what is written goes nowhere since.
    """

    failure: OSError | None = None
    is_dropped = False

    def write(self, text: str) -> int:
        """Write a text."""
        with self._noted():
            return super().write(text)

    def flush(self) -> None:
        """Write what is held back."""
        with self._noted():
            super().flush()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
            raise


def run_program(program: Callable[[], object]) -> NoReturn:
    """Run a program whose result goes to standard output, and end the process with its exit code.

    Args:
        program: What to run. It may end by `SystemExit`.
    """
    _prepare()
    _repeat_dropped_interrupts()
    code: object = 0
    try:
        program()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        _tell("Interrupted.")
        code = INTERRUPTED
    except OSError:
        if not is_output_lost():
            raise
        code = FAILED
    if is_output_lost():
        code = FAILED
    if _lacking:
        _tell(
            f"Characters that {_lacking[0]}, the encoding of this terminal, does not have are shown as '?'. "
            "To see them, set PYTHONUTF8=1 or LC_ALL=C.UTF-8 if the terminal takes UTF-8."
        )
    sys.exit(code)  # type: ignore[arg-type]


def is_output_lost() -> bool:
    """Whether standard output takes no more. If so, that is told, once, and what it should get is dropped.

    A reader that has left, as `head` does, is no error, so that is not told.
    """
    output = sys.stdout
    if not isinstance(output, _Output):
        return False
    with contextlib.suppress(OSError):
        output.flush()
    if output.failure is not None and not output.is_dropped:
        discard_output()
        if not isinstance(output.failure, BrokenPipeError):
            _tell(f"error: Standard output cannot be written to: {output.failure.strerror}.")
    return output.failure is not None


def discard_output() -> None:
    """Let standard output go nowhere: Python would fail once more when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    if isinstance(sys.stdout, _Output):
        sys.stdout.is_dropped = True


def takes_unicode() -> bool:
    """Whether who reads standard output expects UTF-8, by the locale and the variables of Python."""
    return _is_unicode


def has_surrogates(argument: str) -> bool:
    """Whether an argument of the command line could not be decoded: Python leaves its bytes as halves of pairs."""
    return any("\ud800" <= sign <= "\udfff" for sign in argument)


def _prepare() -> None:
    global _is_unicode  # a process has one standard output
    is_open = sys.stdout is not None  # it is None where it was closed before Python started
    _fill_descriptors()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process
    if not is_open:
        _tell("error: Standard output is closed. To run without it, add: > /dev/null")
        sys.exit(FAILED)
    if isinstance(sys.stdout, io.TextIOWrapper):
        _is_unicode = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout = _output(sys.stdout)
        sys.__stdout__ = sys.stdout  # type: ignore[misc]  # what it was has no buffer any more
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A line typed in another encoding is told by who reads it.
        sys.stdin.reconfigure(errors="surrogateescape")


def _repeat_dropped_interrupts() -> None:
    """Send a Ctrl-C again that came within a finalizer or a callback: Python prints it there, and goes on."""
    if sys.platform == "win32":  # which cannot send a signal to a thread
        return
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            main = threading.main_thread().ident
            again = threading.Timer(_AGAIN, signal.pthread_kill, (main, signal.SIGINT))
            again.daemon = True
            again.start()
        else:
            report(unraisable)

    sys.unraisablehook = hook


def _output(found: io.TextIOWrapper) -> _Output:
    codecs.register_error(_REPLACING, _replace)
    # A terminal without Unicode shows a replacement instead of ending the program. What goes into a pipe or a file is
    # for programs, which could not make the text of replacements.
    encoding, errors = (found.encoding, _REPLACING) if found.isatty() else ("utf-8", "backslashreplace")
    line_buffering, write_through = found.line_buffering, found.write_through
    return _Output(
        found.detach(), encoding=encoding, errors=errors, line_buffering=line_buffering, write_through=write_through
    )


def _fill_descriptors() -> None:
    """Open what was closed, so that no file which is opened next takes the place of a standard stream."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD_DESCRIPTOR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _tell(line: str) -> None:
    # Where standard error takes nothing either, the exit code has to do.
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    _lacking.append(error.encoding)
    return "?" * (error.end - error.start), error.end
