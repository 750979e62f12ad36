"""A thread that compiles, and its end with the program: at once, whatever it is doing.

The interpreter must not end under such a thread, which may be inside the model, and compiling takes up to a minute. So
it is stopped: an exception is raised in it, and the compiler that it waits for is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

# Longest wait at the program's end: a stopped thread ends where it next runs a line of Python.
_MAX_SECONDS = 30.0
# Longest wait for compilers that were killed; the system takes a moment.
_KILL_SECONDS = 1.0


class CompileThread(threading.Thread):
    """Runs an action in the background, and stops it when the program ends.

    Args:
        action: What to run.
        stopped: Called before the action is stopped, so that it can tell that from a failure.
    """

    def __init__(self, action: Callable[[], None], stopped: Callable[[], None]) -> None:
        super().__init__(target=action, name="specdec-compile", daemon=True)
        self._stopped = stopped
        _threads.add(self)

    def end(self) -> None:
        """Stop the action, and wait until nothing of it runs any more."""
        self._stopped()
        deadline = time.monotonic() + _MAX_SECONDS
        with self._unreported():
            while self.is_alive() and time.monotonic() < deadline:
                # Again and again: it may be caught, and another compiler started.
                exception = ctypes.py_object(SystemExit)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), exception)
                _kill(list(self._children()))
                self.join(0.05)

    @contextlib.contextmanager
    def _unreported(self) -> Iterator[None]:
        """Print no traceback of the exception that stops: a finalizer or a weak reference's callback reports it."""
        hook = sys.unraisablehook

        def report(unraisable: sys.UnraisableHookArgs) -> None:
            if unraisable.exc_type is not SystemExit or threading.current_thread() is not self:
                hook(unraisable)

        sys.unraisablehook = report
        try:
            yield
        finally:
            sys.unraisablehook = hook

    def _children(self) -> Iterator[psutil.Process]:
        """Processes that this thread has started, and theirs; only Linux tells them from other threads'."""
        with contextlib.suppress(OSError, psutil.Error):
            for pid in Path(f"/proc/self/task/{self.native_id}/children").read_text(encoding="ascii").split():
                process = psutil.Process(int(pid))
                # The compiler's own first: it writes to the pipe that the thread reads.
                yield from process.children(recursive=True)
                yield process


def _kill(processes: Sequence[psutil.Process]) -> None:
    """End compilers, and remove what they were writing: half a library would be loaded by the next program."""
    # Asked first of all: one that loses its child may be gone before it is its turn.
    outputs = [path for process in processes for path in _outputs(process)]
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + _KILL_SECONDS
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.001)
    for path in outputs:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _outputs(process: psutil.Process) -> list[Path]:
    with contextlib.suppress(psutil.Error):
        return [
            Path(value)
            for option, value in itertools.pairwise(process.cmdline())
            if option == "-o" and Path(value).is_absolute()
        ]
    return []


def _is_alive(process: psutil.Process) -> bool:
    """Whether it may still write. It is not waited for: whoever started it is told by its exit code."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


_threads: weakref.WeakSet[CompileThread] = weakref.WeakSet()

if hasattr(os, "register_at_fork"):
    # They are not in a child, which would end the parent's compilers.
    os.register_at_fork(after_in_child=_threads.clear)


@atexit.register
def end_compile_threads() -> None:
    """Stop everything that compiles."""
    for thread in list(_threads):
        thread.end()
