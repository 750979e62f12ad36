"""The reader's end of a completion: its time limit, and that closing and cancelling always reach the source."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor

import pytest

from langchain_specdec.backends.remote.loop_thread import LoopThread
from langchain_specdec.completions import interpreter_end
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.completions.stream import CompletionStream, checked_timeout, started_in_thread
from langchain_specdec.engine.inbox import Inbox
from langchain_specdec.errors import (
    BackendUnavailableError,
    CompletionTimeoutError,
    EngineClosedError,
    GenerationError,
    InvalidParameterError,
)
from tests.support.tiny_models import wait_until

EVENT = TokenEvent((Token(1, "a", drafted=False),))
FINISH = FinishEvent("length", 1, 1, 0)


class Source:
    """A stream, and how often it was closed at its source."""

    def __init__(self) -> None:
        self.num_closes = 0
        self.stream = CompletionStream(self.close)

    def close(self) -> None:
        self.num_closes += 1


def test_a_read_past_the_time_limit_closes_the_source() -> None:
    source = Source()
    source.stream.set_timeout(0.05)
    source.stream.put(EVENT)
    assert next(source.stream) == EVENT
    start = time.monotonic()
    with pytest.raises(CompletionTimeoutError, match=r"longer than timeout=0.05 seconds and was stopped"):
        next(source.stream)
    assert time.monotonic() - start < 10
    assert source.num_closes == 1
    source.stream.put(EVENT)
    assert list(source.stream) == []


async def test_a_read_past_the_time_limit_closes_the_source_in_an_event_loop() -> None:
    source = Source()
    source.stream.set_timeout(0.05)
    source.stream.put(EVENT)
    assert await anext(source.stream) == EVENT
    with pytest.raises(CompletionTimeoutError):
        await anext(source.stream)
    assert source.num_closes == 1
    assert [event async for event in source.stream] == []


def test_a_time_limit_may_have_begun_before_the_stream() -> None:
    source = Source()
    source.stream.set_timeout(60.0, since=time.monotonic() - 61.0)
    source.stream.put(EVENT)
    with pytest.raises(CompletionTimeoutError, match="timeout=60 seconds"):
        next(source.stream)


def test_events_that_came_too_late_are_not_given() -> None:
    source = Source()
    source.stream.set_timeout(0.001)
    source.stream.put(EVENT)
    time.sleep(0.01)
    with pytest.raises(CompletionTimeoutError):
        next(source.stream)


def test_a_completion_that_ends_in_time_has_no_more_limit() -> None:
    source = Source()
    source.stream.set_timeout(0.2)
    source.stream.put(EVENT)
    source.stream.put(FINISH)
    assert list(source.stream) == [EVENT, FINISH]
    time.sleep(0.25)
    assert list(source.stream) == []
    source.stream.close()
    assert source.num_closes == 0


async def test_closing_from_elsewhere_wakes_a_reader_in_an_event_loop() -> None:
    source = Source()
    reader = asyncio.create_task(anext(source.stream))
    await asyncio.sleep(0)
    threading.Thread(target=source.stream.close).start()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(reader, 20)


async def test_a_cancellation_beside_an_event_is_never_lost() -> None:
    async def read(stream: CompletionStream) -> None:
        with stream:
            async for _ in stream:
                pass

    for num_turns in range(6):
        source = Source()
        source.stream.set_timeout(60.0)
        task = asyncio.create_task(read(source.stream))
        await asyncio.sleep(0)
        source.stream.put(EVENT)
        # As many turns of the loop as it takes to wake the reader, and one more or less.
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)
        assert source.num_closes == 1


async def test_leaving_a_generator_over_a_stream_closes_the_source() -> None:
    source = Source()

    async def events() -> AsyncIterator[object]:
        with source.stream:
            async for event in source.stream:
                yield event

    source.stream.put(EVENT)
    generator = events()
    await anext(generator)
    await generator.aclose()  # type: ignore[attr-defined]
    assert source.num_closes == 1


# Event loops that end before their readers


def left_in(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[object, object, object]) -> asyncio.Task[object]:
    """A task that has begun to wait when its loop is stopped."""
    task = loop.create_task(coroutine)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    return task


async def reading(stream: CompletionStream) -> AsyncGenerator[object, None]:
    with stream:
        async for event in stream:
            yield event


def test_a_loop_that_is_closed_under_a_reader_that_waits_ends_the_completion() -> None:
    source, loop = Source(), asyncio.new_event_loop()
    task = left_in(loop, anext(source.stream))
    loop.close()
    assert source.num_closes == 0
    source.stream.put(EVENT)
    source.stream.put(EVENT)
    assert source.num_closes == 1
    with pytest.raises(GenerationError, match="event loop that read it was closed"):
        next(source.stream)
    source.stream.close()
    assert source.num_closes == 1
    del task


def test_a_loop_that_is_closed_under_a_generator_that_rests_ends_the_completion() -> None:
    source, loop = Source(), asyncio.new_event_loop()
    source.stream.put(EVENT)
    events = reading(source.stream)
    assert loop.run_until_complete(anext(events)) == EVENT
    loop.close()
    source.stream.put(EVENT)
    assert source.num_closes == 1


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_loop_that_is_dropped_ends_the_completion(timeout: float | None) -> None:
    source, loop = Source(), asyncio.new_event_loop()
    source.stream.set_timeout(timeout)
    task = left_in(loop, anext(reading(source.stream)))
    del task, loop
    with pytest.warns(ResourceWarning):
        gc.collect()
    source.stream.put(EVENT)
    assert source.num_closes == 1


def test_a_loop_that_is_closed_while_a_completion_starts_ends_it() -> None:
    source, loop = Source(), asyncio.new_event_loop()
    is_starting, may_start = threading.Event(), threading.Event()

    def start() -> list[CompletionStream]:
        is_starting.set()
        may_start.wait(20)
        return [source.stream]

    task = left_in(loop, started_in_thread(start))
    assert is_starting.wait(20)
    loop.close()
    may_start.set()

    def is_closed() -> bool:
        source.stream.put(EVENT)
        return source.num_closes == 1

    assert wait_until(is_closed)
    del task


async def test_another_loop_may_read_on() -> None:
    source = Source()
    source.stream.put(EVENT)
    assert await anext(source.stream) == EVENT
    source.stream.put(FINISH)
    assert await asyncio.to_thread(lambda: asyncio.run(anext(source.stream))) == FINISH
    assert source.num_closes == 0


# The end of the interpreter


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter_end._End, "has_begun", True)


@pytest.mark.usefixtures("ending")
def test_what_ends_with_the_interpreter_says_so() -> None:
    source = Source()
    source.stream.put(EngineClosedError("The engine was closed. Make a new one."))
    with pytest.raises(EngineClosedError, match="Python is shutting down"):
        next(source.stream)
    # Other errors are what they are.
    other = Source()
    other.stream.put(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        next(other.stream)


def test_a_thread_that_no_longer_starts_is_told_as_the_end_of_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter_end._End, "has_begun", False)

    async def asked() -> None:
        """What a backend would run."""

    for text, expected in (
        ("can't create new thread at interpreter shutdown", "shutting down"),
        ("no more", "no more"),
    ):

        def fail(thread: threading.Thread, text: str = text) -> None:
            raise RuntimeError(text)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            loop = LoopThread(asked)
            for _ in range(2):
                with pytest.raises(RuntimeError, match=expected):
                    loop.submit(asked())
            loop.close()


@pytest.mark.usefixtures("ending")
def test_a_daemon_that_reads_while_the_interpreter_ends_does_so_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(arguments.exc_type))
    source = Source()
    source.stream.put(BackendUnavailableError("The server has ended."))
    reader = threading.Thread(target=next, args=(source.stream,), daemon=True)
    reader.start()
    reader.join(20)
    assert told == [SystemExit]  # which the hook of Python passes over


async def test_a_forked_child_can_neither_read_nor_end_it() -> None:
    source = Source()
    source.stream.put(EVENT)
    source.stream._pid -= 1  # As after a fork, while another thread held the lock.
    with source.stream._lock:
        with pytest.raises(EngineClosedError, match="process"):
            next(source.stream)
        with pytest.raises(EngineClosedError, match="process"):
            await anext(source.stream)
        source.stream.close()
    assert source.num_closes == 0


def test_an_error_is_raised_where_it_is_read() -> None:
    source = Source()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(list, source.stream)
        source.stream.put(EVENT)
        source.stream.put(ZeroDivisionError("a bug"))
        with pytest.raises(ZeroDivisionError):
            reader.result(timeout=20)
    source.stream.close()
    assert source.num_closes == 0


@pytest.mark.parametrize("value", [0, -1, True, float("inf"), float("nan"), "1"])
def test_a_timeout_is_a_number_above_zero(value: object) -> None:
    with pytest.raises(InvalidParameterError, match="timeout must be a number of seconds above 0"):
        checked_timeout(value)


def test_a_very_long_timeout_is_what_a_lock_takes() -> None:
    assert checked_timeout(1e300) == threading.TIMEOUT_MAX
    assert checked_timeout(None) is None


def test_an_interrupt_keeps_no_lock_that_the_source_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, inbox = CompletionStream(), Inbox()
    enter = threading.Condition.__enter__

    def interrupted(condition: threading.Condition) -> bool:
        enter(condition)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # Where Ctrl-C may come: a condition is Python code, and its lock is taken by then.
        patched.setattr(threading.Condition, "__enter__", interrupted)
        for action in (stream.close, inbox.reset, inbox.close):
            with contextlib.suppress(KeyboardInterrupt):
                action()

    def go_on() -> None:
        stream.put(EVENT)
        inbox.end()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def _reader_in_thread(stream: CompletionStream) -> list[object]:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: list(stream))
        # It sleeps by now, or finds all of them at once; woken it is by the last alone.
        time.sleep(0.05)
        for _ in range(20):
            stream.put(EVENT)
        stream.put(FINISH)
        return list(future.result(10))


def test_a_reader_of_the_whole_is_woken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_whole, count in ((False, 23), (True, 3)):
        source = Source()
        wakes: list[int] = []
        stream = source.stream.whole() if is_whole else source.stream
        wake = stream._news.set
        monkeypatch.setattr(stream._news, "set", lambda wake=wake, wakes=wakes: (wakes.append(1), wake()))
        assert len(_reader_in_thread(stream)) == 21
        # One by the end, and two for other readers after it.
        assert len(wakes) == count


def test_a_reader_of_the_whole_keeps_its_time_limit_and_its_error() -> None:
    late, failed = Source().stream.whole(), Source().stream.whole()
    late.set_timeout(0.05)
    late.put(EVENT)
    with pytest.raises(CompletionTimeoutError):
        list(late)
    failed.put(EVENT)
    failed.put(GenerationError("it failed"))
    with pytest.raises(GenerationError, match="it failed"):
        list(failed)


async def test_a_reader_of_the_whole_in_an_event_loop_is_woken_at_the_end() -> None:
    stream = Source().stream.whole()
    task = asyncio.ensure_future(_events_of(stream))
    await asyncio.sleep(0)
    for _ in range(5):
        stream.put(EVENT)
    await asyncio.sleep(0.02)
    assert not task.done()
    stream.put(FINISH)
    assert len(await asyncio.wait_for(task, 10)) == 6


async def _events_of(stream: CompletionStream) -> list[object]:
    return [event async for event in stream]
