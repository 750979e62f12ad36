"""Streams that are read for one call, in whatever threads, and end with it."""

from __future__ import annotations

import threading
import weakref
from contextvars import Context, ContextVar, copy_context
from typing import Protocol


class _Stoppable(Protocol):
    def stop(self, reason: str) -> None: ...


class StreamScope:
    """Stops, when it is told to, all streams that are read in its context, and those that would be read in it after."""

    def __init__(self) -> None:
        # The collector may end an abandoned batch, and so stop this scope, in a thread that adds a stream.
        self._lock = threading.RLock()
        self._streams: weakref.WeakSet[_Stoppable] = weakref.WeakSet()
        self._reason: str | None = None
        self._outer = _current.get()

    def context(self) -> Context:
        """A copy of the current context, in which streams that are read belong to this scope."""
        context = copy_context()
        context.run(_current.set, self)
        return context

    def add(self, stream: _Stoppable) -> None:
        """Take in a stream, and stop it at once where this scope was stopped before."""
        with self._lock:
            self._streams.add(stream)
            reason = self._reason
        if reason is not None:
            stream.stop(reason)
        elif self._outer is not None:
            self._outer.add(stream)

    def stop(self, reason: str) -> None:
        """Stop all streams.

        Args:
            reason: What their readers are told.
        """
        with self._lock:
            self._reason = reason
            streams = list(self._streams)
        for stream in streams:
            stream.stop(reason)


_current: ContextVar[StreamScope | None] = ContextVar("specdec_stream_scope", default=None)


def join_scope(stream: _Stoppable) -> None:
    """Have a stream belong to the scope of the running context, if there is one."""
    if (scope := _current.get()) is not None:
        scope.add(stream)
