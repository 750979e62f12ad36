"""The end of the interpreter: what is told then to those who read completions, or ask for them."""

from __future__ import annotations

import atexit
import threading

from langchain_specdec.errors import EngineClosedError

ENDING = "Python is shutting down, so no completion runs any more. Ask for it, and read it, before the program ends."


class _End:
    has_begun = False


def begin() -> None:
    """Note that it has begun: the main thread has ended, and all threads but daemons."""
    _End.has_begun = True


def has_begun() -> bool:
    """Whether the interpreter is ending."""
    return _End.has_begun


def ending_error() -> BaseException:
    """What a completion raises then.

    In a daemon thread that is what ends a thread without a traceback: Python is about to stop it wherever it is.
    """
    return SystemExit() if threading.current_thread().daemon else EngineClosedError(ENDING)


def replaced(error: BaseException) -> BaseException:
    """The error of a completion, or what is raised in its place once the interpreter is ending."""
    is_its_doing = threading.current_thread().daemon or isinstance(error, EngineClosedError)
    return ending_error() if _End.has_begun and is_its_doing else error


def start_thread(thread: threading.Thread) -> None:
    """Start a thread that completions need.

    Raises:
        EngineClosedError: The interpreter is ending, and starts no more threads.
    """
    atexit.unregister(begin)
    # Registered last, it is called first: before anything that completions depend on ends.
    atexit.register(begin)
    try:
        thread.start()
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise
        begin()
        raise ending_error() from None
