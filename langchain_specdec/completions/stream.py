"""The reader's end of a completion: events in order, by iteration or `async` iteration."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType

from typing_extensions import Self

from langchain_specdec.completions.events import FinishEvent, TokenEvent

__all__ = ["CompletionStream"]

Event = TokenEvent | FinishEvent


class CompletionStream(Iterator[Event], AsyncIterator[Event]):
    """Events of one completion, from the engine's thread to one reader in a thread or an event loop.

    Iteration ends after the `FinishEvent`; a failed request raises its error instead. `close` (also by leaving a
    `with` block) before the end cancels the request and frees its slot.

    Args:
        on_close: Called once when the reader closes the stream before its end.
    """

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._on_close = on_close
        self._events: deque[Event | BaseException] = deque()
        self._ready = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._is_ended = False
        self.is_closed = False

    def put(self, event: Event | BaseException) -> None:
        """Hand an event, or the error that ends the completion, to the reader. Called by the engine."""
        with self._ready:
            self._events.append(event)
            self._ready.notify_all()
            waiter = self._waiter
        if waiter is not None:
            loop, flag = waiter
            # The reader's loop may have been closed under it; then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(flag.set)

    def close(self) -> None:
        """Stop reading. The engine drops the request at its next step. Closing twice does nothing."""
        with self._ready:
            if self.is_closed:
                return
            self.is_closed = True
            is_ended = self._is_ended
            self._ready.notify_all()
        if not is_ended:
            self._on_close()

    async def aclose(self) -> None:
        """`close`, for readers in an event loop; it never blocks."""
        self.close()

    def __next__(self) -> Event:
        with self._ready:
            while not self._events and not self._is_over:
                self._ready.wait()
            if self._is_over:
                raise StopIteration
            return self._take()

    async def __anext__(self) -> Event:
        loop = asyncio.get_running_loop()
        flag = asyncio.Event()
        while True:
            with self._ready:
                if self._is_over:
                    self._waiter = None
                    raise StopAsyncIteration
                if self._events:
                    self._waiter = None
                    return self._take()
                self._waiter = (loop, flag)
            await flag.wait()
            flag.clear()

    @property
    def _is_over(self) -> bool:
        return self.is_closed or self._is_ended

    def _take(self) -> Event:
        event = self._events.popleft()
        if not isinstance(event, TokenEvent):
            self._is_ended = True
        if isinstance(event, BaseException):
            raise event
        return event

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
