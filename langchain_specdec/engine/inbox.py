"""What reaches an engine's thread from outside, and the end of such threads with the interpreter."""

from __future__ import annotations

import atexit
import os
import threading
import weakref

from langchain_specdec.completions import interpreter_end
from langchain_specdec.completions.wakeup import Wakeup
from langchain_specdec.engine.request import Request
from langchain_specdec.errors import EngineClosedError


class Inbox:
    """What reaches the engine's thread from outside. It outlives neither the engine nor its thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._news = Wakeup()
        self.submitted: list[Request] = []
        self.cancelled: list[Request] = []
        self.is_closed = False
        self.is_reset = False
        self._pid = os.getpid()

    def wait(self) -> None:
        """Block until there is something to take."""
        while not (self.submitted or self.cancelled or self.is_closed):
            self._news.wait()

    def submit(self, requests: list[Request]) -> None:
        """Ask for requests to be run.

        Raises:
            EngineClosedError: The thread has ended, or is about to.
        """
        with self.lock:
            if self.is_closed:
                error = EngineClosedError("The engine was closed, or it failed. Make a new one.")
                raise interpreter_end.replaced(error)
            self.submitted += requests
            self._news.set()

    def cancel(self, request: Request) -> None:
        """Ask for a request to be dropped."""
        with self.lock:
            if not self.is_closed:
                self.cancelled.append(request)
                self._news.set()

    def reset(self) -> None:
        """Ask for all that was kept of earlier requests to be forgotten before another one starts."""
        with self.lock:
            self.is_reset = True

    def close(self) -> None:
        """Ask the thread to end. In a forked child, which has no such thread, this does nothing."""
        if os.getpid() != self._pid:
            return  # the thread that held the lock may not be there to let go of it
        with self.lock:
            self.is_closed = True
            self._news.set()

    def end(self) -> list[Request]:
        """Take no more; what was not taken up yet, and never will be."""
        with self.lock:
            self.is_closed = True
            left, self.submitted = self.submitted, []
        return left


# All engine threads that may still run, also those whose engine is gone. A thread ends once its inbox is closed.
_threads: weakref.WeakKeyDictionary[threading.Thread, Inbox] = weakref.WeakKeyDictionary()


def keep_until_exit(thread: threading.Thread, inbox: Inbox) -> None:
    """Have an engine's thread end before the interpreter does."""
    _threads[thread] = inbox


def _let_go_after_fork() -> None:
    """Leave the parent's engines to the parent: their threads are not in a child."""
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


@atexit.register
def _end_threads() -> None:
    """End all engines before the interpreter does: it would stop their threads inside the model, and crash."""
    interpreter_end.begin()
    threads = list(_threads.items())
    for _, inbox in threads:
        inbox.close()
    for thread, _ in threads:
        if thread.is_alive():  # one that could not start cannot be joined
            thread.join(30.0)
