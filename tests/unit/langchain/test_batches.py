"""Batches of runs: what is interrupted, left or failed ends all of its completions at once, as a single call does."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import RunnableLambda

from langchain_specdec import ChatSpeculative, SpeculativeLLM
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.completions.stream_scope import StreamScope
from langchain_specdec.errors import EngineClosedError, GenerationError, InvalidParameterError
from tests.support.backends import Counter, ScriptedBackend, scripted
from tests.support.tiny_models import wait_until


class Endless(ScriptedBackend):
    """Completions that go on until they are closed; those of prompts with "bad" fail at once."""

    def __init__(self) -> None:
        super().__init__("x")
        self.num_closed = 0

    def _closed(self) -> None:
        self.num_closed += 1

    def _start(self, request: CompletionRequest) -> CompletionStream:
        stream = CompletionStream(self._closed)
        self.streams.append(stream)
        prompt = request.prompt if isinstance(request.prompt, str) else self.tokenizer.decode(request.prompt)
        if "bad" in prompt:
            stream.put(GenerationError("bad luck"))
        return stream


def models() -> Sequence[Any]:
    return (
        ChatSpeculative(backend=Endless()),
        SpeculativeLLM(backend=Endless()),
    )


def ended(backend: Endless, number: int) -> bool:
    return wait_until(lambda: backend.num_closed == len(backend.streams) == number)


@contextmanager
def interrupted_once(is_time: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C ends the block once it is time."""
    main = threading.main_thread().ident
    assert main is not None
    is_over = threading.Event()

    def press() -> None:
        if wait_until(is_time):
            # A signal that comes just before Python waits for a lock is noticed with the next one only.
            while not is_over.is_set():
                signal.pthread_kill(main, signal.SIGINT)
                is_over.wait(5)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        is_over.set()
        thread.join()


SYNC: dict[str, Callable[[Any], Any]] = {
    "batch": lambda model: model.batch(["a", "b", "c"]),
    "batch with return_exceptions": lambda model: model.batch(["a", "b", "c"], return_exceptions=True),
    "batch_as_completed": lambda model: list(model.batch_as_completed(["a", "b", "c"])),
    "map": lambda model: model.map().invoke(["a", "b", "c"]),
    "chain": lambda model: (RunnableLambda(str) | model).batch(["a", "b", "c"]),
}


@pytest.mark.parametrize("way", SYNC)
@pytest.mark.parametrize("which", [0, 1], ids=["chat", "llm"])
def test_an_interrupt_ends_all_completions_of_a_batch_at_once(way: str, which: int) -> None:
    model = models()[which]
    with interrupted_once(lambda: len(model.backend.streams) == 3):
        SYNC[way](model)
    assert ended(model.backend, 3)


def test_a_failure_that_is_not_returned_ends_the_others_at_once() -> None:
    chat: Any = models()[0]
    counter = Counter()
    with pytest.raises(GenerationError, match="bad luck"):
        chat.batch(["a", "b", "bad"], {"callbacks": [counter]})
    assert wait_until(lambda: chat.backend.num_closed == 2 and len(counter.errors) == 3)
    assert all(isinstance(error, GenerationError) for error in counter.errors)


@pytest.mark.parametrize("which", [0, 1], ids=["chat", "llm"])
def test_leaving_batch_as_completed_ends_the_others(which: int) -> None:
    model = models()[which]
    found = model.batch_as_completed(["bad", "a", "b"], return_exceptions=True)
    assert isinstance(next(found)[1], GenerationError)
    assert wait_until(lambda: len(model.backend.streams) == 3)
    found.close()
    assert wait_until(lambda: model.backend.num_closed == 2)


def test_an_interrupt_does_not_wait_for_a_rate_limiter() -> None:
    may_go = threading.Event()
    waiting: list[bool] = []

    class Never(BaseRateLimiter):
        def acquire(self, *, blocking: bool = True) -> bool:
            waiting.append(may_go.is_set())
            return may_go.wait(20)

        async def aacquire(self, *, blocking: bool = True) -> bool:
            return self.acquire()

    chat: Any = ChatSpeculative(backend=Endless(), rate_limiter=Never())
    with interrupted_once(lambda: len(waiting) == 2):
        chat.batch(["a", "b", "c"], {"max_concurrency": 2})
    # What starts after all is stopped at once; what had no thread yet never starts.
    assert chat.backend.streams == []
    may_go.set()
    assert ended(chat.backend, 2)


def test_what_a_callback_reads_in_a_batch_ends_with_it() -> None:
    inner: Any = ChatSpeculative(backend=Endless())

    class Asking(BaseCallbackHandler):
        raise_error = True
        run_inline = True

        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            inner.batch(["x", "y"])

    outer = scripted("done")
    with interrupted_once(lambda: len(inner.backend.streams) == 4):
        outer.batch(["a", "b"], {"callbacks": [Asking()]})
    assert ended(inner.backend, 4)


ASYNC: dict[str, Callable[[Any], Any]] = {
    "abatch": lambda model: model.abatch(["a", "b", "c"]),
    "abatch with return_exceptions": lambda model: model.abatch(["a", "b", "c"], return_exceptions=True),
    "abatch_as_completed": lambda model: collected(model.abatch_as_completed(["a", "b", "c"])),
}


async def collected(found: Any) -> list[Any]:
    return [outcome async for outcome in found]


@pytest.mark.parametrize("way", ASYNC)
@pytest.mark.parametrize("which", [0, 1], ids=["chat", "llm"])
async def test_cancelling_a_batch_ends_all_its_completions(way: str, which: int) -> None:
    model = models()[which]
    task = asyncio.ensure_future(ASYNC[way](model))
    assert await asyncio.to_thread(wait_until, lambda: len(model.backend.streams) == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.backend.num_closed == 3


async def test_a_failure_in_an_event_loop_leaves_no_task_behind() -> None:
    chat: Any = ChatSpeculative(backend=Endless())
    before = asyncio.all_tasks()
    with pytest.raises(GenerationError, match="bad luck"):
        await chat.abatch(["a", "bad", "b"])
    assert asyncio.all_tasks() == before
    assert chat.backend.num_closed == len(chat.backend.streams) - 1
    found = chat.abatch_as_completed(["bad", "a"], return_exceptions=True)
    await anext(found)
    await found.aclose()
    assert asyncio.all_tasks() == before


class Runs(BaseCallbackHandler):
    """The tags, names and ids of runs."""

    run_inline = True

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.seen.append((messages[0][0].content, kwargs["tags"], kwargs["name"], kwargs["metadata"].get("number")))


@pytest.mark.parametrize("limit", [None, 1, 2])
async def test_each_run_of_a_batch_has_its_own_config(limit: int | None) -> None:
    chat = scripted("x")
    runs = Runs()
    configs: list[Any] = [
        {"callbacks": [runs], "tags": [word], "run_name": word, "metadata": {"number": number}}
        for number, word in enumerate("abc")
    ]
    for config in configs:
        if limit is not None:
            config["max_concurrency"] = limit
    expected = [(word, [word], word, number) for number, word in enumerate("abc")]

    async def batch() -> list[Any]:
        return chat.batch(list("abc"), configs)

    async def as_completed() -> list[Any]:
        return [answer for _, answer in chat.batch_as_completed(list("abc"), configs)]

    async def as_completed_in_loop() -> list[Any]:
        return [answer for _, answer in await collected(chat.abatch_as_completed(list("abc"), configs))]

    for ask in (batch, lambda: chat.abatch(list("abc"), configs), as_completed, as_completed_in_loop):
        answers = await ask()
        assert [answer.text for answer in answers] == ["x"] * 3
        assert sorted(runs.seen) == expected
        runs.seen.clear()


async def test_batches_of_nothing_and_wrong_limits() -> None:
    for model in models():
        assert model.batch([]) == await model.abatch([]) == list(model.batch_as_completed([])) == []
        with pytest.raises(InvalidParameterError, match="max_concurrency"):
            list(model.batch_as_completed(["a", "b"], {"max_concurrency": 0}))
        with pytest.raises(InvalidParameterError, match="max_concurrency"):
            await collected(model.abatch_as_completed(["a", "b"], {"max_concurrency": 0}))


def test_a_batch_whose_threads_cannot_start_any_more_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("concurrent.futures.thread._shutdown", True)
    with pytest.raises(EngineClosedError, match="shutting down"):
        scripted("x").batch(["a", "b"])


def test_a_batch_without_inputs_takes_any_configs() -> None:
    for model in models():
        assert model.batch([], [{}]) == asyncio.run(model.abatch([], [{}])) == []


def test_a_second_interrupt_ends_all_completions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = models()[0]

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.shutdown", interrupted)
    with interrupted_once(lambda: len(chat.backend.streams) == 3):
        chat.batch(["a", "b", "c"])
    assert ended(chat.backend, 3)


def test_a_scope_that_is_stopped_while_it_takes_a_stream_in_goes_on() -> None:
    scope = StreamScope()
    stopped: list[str] = []

    class Stream:
        def __hash__(self) -> int:
            # Where a collector may run, and end an abandoned batch.
            scope.stop("left")
            return 1

        def stop(self, reason: str) -> None:
            stopped.append(reason)

    stream = Stream()
    thread = threading.Thread(target=scope.add, args=(stream,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert stopped == ["left"]
