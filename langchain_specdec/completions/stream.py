"""The reader's end of a completion: its events in order, by `for` or `async for`, and its time limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from typing_extensions import Self

from langchain_specdec.completions import interpreter_end
from langchain_specdec.completions.events import Event, FinishEvent, TokenEvent
from langchain_specdec.completions.stream_scope import join_scope
from langchain_specdec.completions.wakeup import Wakeup
from langchain_specdec.errors import (
    CompletionTimeoutError,
    EngineClosedError,
    GenerationError,
    InvalidParameterError,
)
from langchain_specdec.grammar.cancellation import wanted_while

_NO_LOOP = "The completion was stopped, because the event loop that read it was closed."


class TimeLimit(NamedTuple):
    """Seconds that a completion may take, as `checked_timeout` gives them, and since when, by `time.monotonic`."""

    seconds: float | None
    since: float | None = None


NO_LIMIT = TimeLimit(None)


def checked_timeout(value: object) -> float | None:
    """The seconds of a timeout; None is without limit.

    Raises:
        InvalidParameterError: It is no number above 0.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        msg = f"timeout must be a number of seconds above 0, or None for no limit, got {value!r}."
        raise InvalidParameterError(msg)
    # A lock takes no longer time.
    return min(float(value), threading.TIMEOUT_MAX)


@dataclass(eq=False)
class _Waiter:
    """A read that waits in an event loop."""

    loop: asyncio.AbstractEventLoop
    flag: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        # The loop may be closed by now; then nobody waits.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.flag.set)


class CompletionStream(Iterator[Event], AsyncIterator[Event]):
    """Events of one completion, from a backend's thread to one reader in a thread or an event loop.

    Iteration ends after the `FinishEvent`; a failed request raises its error instead. `close` (also by leaving a
    `with` block) before the end cancels the request and frees what it holds, and so does the end of the event loop
    that reads.

    Args:
        on_close: Called once when the stream is closed, or stopped, before its end.
    """

    def __init__(self, on_close: Callable[[], object] = lambda: None) -> None:
        self._on_close = on_close
        self._events: deque[Event | BaseException] = deque()
        self._lock = threading.RLock()
        self._news = Wakeup()
        # Both weak: a loop that is dropped without being closed takes its tasks along only if nothing here holds them.
        self._waiter: Callable[[], _Waiter | None] = _nobody
        self._loop: Callable[[], asyncio.AbstractEventLoop | None] | None = None
        self._began = time.monotonic()
        self._first_token_at: float | None = None
        self._timeout = 0.0
        self._deadline: float | None = None
        self._is_ended = False
        self._is_stopped = False
        self._is_in_scope = False
        self._is_read_whole = False
        self.is_closed = False
        self._pid = os.getpid()

    def put(self, event: Event | BaseException) -> None:
        """Hand an event, or the error that ends the completion, to the reader. Called by the backend."""
        with self._lock:
            if not self._is_stopped:
                if self._first_token_at is None and isinstance(event, TokenEvent):
                    self._first_token_at = time.monotonic()
                self._events.append(event)
                if not (self._is_read_whole and isinstance(event, TokenEvent)):
                    self._wake()
        if self._has_lost_its_loop:
            self.stop(_NO_LOOP)

    def stop(self, reason: str) -> None:
        """End the completion at its source; its reader gets a `GenerationError`. Called in any thread.

        Args:
            reason: What the error says.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self.is_closed or self._is_ended or self._is_stopped:
                return
            self._is_stopped = True
            self._events.clear()
            self._events.append(GenerationError(reason))
            self._wake()
        self._on_close()

    def whole(self) -> Self:
        """This stream, for a reader that does nothing before the end: a step wakes it no more, which takes a core."""
        self._is_read_whole = True
        return self

    def belongs_to(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Note the event loop that reads; None is a thread. The completion is stopped once that loop is closed."""
        try:
            self._loop = None if loop is None else weakref.ref(loop)
        except TypeError:
            self._loop = lambda: loop

    def set_timeout(self, timeout: float | None, since: float | None = None) -> None:
        """Limit the time of the completion. A read after it closes the stream and raises `CompletionTimeoutError`.

        Args:
            timeout: Seconds, as `checked_timeout` gives them; None is without limit.
            since: When they began, by `time.monotonic`; None is now.
        """
        if since is not None:
            self._began = since
        self._timeout = timeout or 0.0
        since = time.monotonic() if since is None else since
        self._deadline = None if timeout is None else since + timeout

    def close(self) -> None:
        """Stop reading. The backend drops the request as soon as it can. Closing twice does nothing."""
        if os.getpid() != self._pid:
            # It goes on in the process that forked this one, whose lock may never be let go of here.
            self.is_closed = True
            return
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
            self._wake()
        if not self._is_ended and not self._is_stopped:
            self._on_close()

    async def aclose(self) -> None:
        """`close`, for readers in an event loop; it never blocks."""
        self.close()

    def __next__(self) -> Event:
        self._check_process()
        if not self._is_in_scope:
            self._is_in_scope = True
            join_scope(self)
        self._loop = None
        while not self._has_news:
            self._news.wait(self._seconds_left)
        return self._take(StopIteration())

    async def __anext__(self) -> Event:
        self._check_process()
        waiter = _Waiter(asyncio.get_running_loop())
        loop, flag = waiter.loop, waiter.flag
        self.belongs_to(loop)
        while True:
            with self._lock:
                has_news = self._has_news
                self._waiter = _nobody if has_news else weakref.ref(waiter)
            if has_news:
                return self._take(StopAsyncIteration())
            # A timer instead of `asyncio.wait_for`, which can lose a cancellation before Python 3.12.
            seconds = self._seconds_left
            timer = None if seconds is None else loop.call_later(seconds, flag.set)
            try:
                await flag.wait()
            finally:
                if timer is not None:
                    timer.cancel()
            flag.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            msg = "This completion runs in the process that started it, and can be read there only (no fork)."
            raise EngineClosedError(msg)

    def _wake(self) -> None:
        self._news.set()
        if (waiter := self._waiter()) is not None:
            waiter.wake()

    @property
    def _has_lost_its_loop(self) -> bool:
        if self._loop is None:
            return False
        loop = self._loop()
        return loop is None or loop.is_closed()

    @property
    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    @property
    def _has_news(self) -> bool:
        return bool(self._events) or self._is_ended or self.is_closed or self._seconds_left == 0.0

    def _take(self, end: Exception) -> Event:
        """The next event where there is news; raises `end` where there is no more."""
        if self._is_ended or self.is_closed:
            self._news.set()  # for another reader, who would wait for good
            raise end
        if self._seconds_left == 0.0:
            self.close()
            msg = (
                f"The completion took longer than timeout={self._timeout:g} seconds and was stopped. Raise timeout, "
                f"or lower max_new_tokens."
            )
            raise CompletionTimeoutError(msg)
        event = self._events.popleft()
        self._is_ended = not isinstance(event, TokenEvent)
        if self._is_ended:
            self._news.set()
        if isinstance(event, BaseException):
            raise interpreter_end.replaced(event)
        if isinstance(event, FinishEvent) and self._first_token_at is not None:
            return replace(event, time_to_first_token=self._first_token_at - self._began)
        return event


def _nobody() -> None:
    """No read waits."""


async def started_in_thread(start: Callable[[], Sequence[CompletionStream]]) -> list[CompletionStream]:
    """Streams whose start takes a while, without blocking the running event loop.

    A task that is cancelled meanwhile does not wait for the start; its streams are closed as soon as there are any, and
    a start that waits for something itself is told (`check_wanted`).
    """
    lock = threading.Lock()
    started: list[CompletionStream] = []
    is_wanted = True
    loop = asyncio.get_running_loop()
    # The loop's own threads are few, and others wait for them.
    own_thread = ThreadPoolExecutor(1, thread_name_prefix="specdec-start")

    def run() -> None:
        with wanted_while(lambda: is_wanted):
            streams = start()
        for stream in streams:
            stream.belongs_to(loop)
        with lock:
            started.extend(streams)
            if not is_wanted:
                close()

    def close() -> None:
        for stream in started:
            stream.close()

    try:
        await loop.run_in_executor(own_thread, run)
    except asyncio.CancelledError:
        with lock:
            is_wanted = False
            close()
        raise
    finally:
        own_thread.shutdown(wait=False)
    return started
