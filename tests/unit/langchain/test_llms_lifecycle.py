"""What happens when a reader leaves, a model is closed or forgotten, or the engine itself fails: nobody hangs."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda

from langchain_specdec import SamplingParams, SpeculativeLLM
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import EngineClosedError, GenerationError
from tests.support.backends import (
    PROMPTS,
    Counter,
    engine_of,
    engine_threads,
    is_idle,
    lasting,
    make_backend,
    make_llm,
)
from tests.support.tiny_models import wait_until

pytestmark = pytest.mark.slow

LONG: dict[str, Any] = {"max_new_tokens": 200, "ignore_eos": True}
SHORT: dict[str, Any] = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def backend():
    with lasting(make_backend(drafter="none")) as backend:
        yield backend


@pytest.fixture
def llm(backend):
    """A model whose engine has to be at rest, and at work again, within seconds of the test's end."""
    llm = SpeculativeLLM(backend=backend, **LONG)
    expected = llm.invoke("hello", **SHORT)
    before = backend.engine.num_target_forwards
    yield llm
    assert is_idle(backend)
    # No test reads more than a few tokens of its 200.
    assert backend.engine.num_target_forwards - before < 150
    assert llm.invoke("hello", **SHORT) == expected


# Readers that leave


def test_a_stream_that_is_left_stops(llm, backend):
    for _ in llm.stream("hello"):
        assert backend.engine.num_running == 1
        break
    gc.collect()
    assert is_idle(backend)


def test_a_stream_that_is_closed_stops(llm, backend):
    counter = Counter()
    pieces = llm.stream("hello", {"callbacks": [counter]})
    next(pieces)
    pieces.close()
    assert is_idle(backend)
    assert (len(counter.ends), len(counter.errors)) == (0, 1)
    assert list(pieces) == []


def test_a_stream_that_is_forgotten_stops(llm, backend):
    pieces = llm.stream("hello")
    next(pieces)
    del pieces
    gc.collect()
    assert is_idle(backend)


def test_a_stream_of_a_chain_that_is_left_stops(llm, backend):
    pieces = (RunnableLambda(lambda x: x) | llm | RunnableLambda(lambda x: x)).stream("hello")
    for _ in (RunnableLambda(lambda x: x) | llm).stream("hello"):
        break
    del pieces
    gc.collect()
    assert is_idle(backend)


def test_a_stream_whose_reader_fails_stops(llm, backend):
    def read():
        for _ in llm.stream("hello"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert is_idle(backend)


def test_many_streams_left_at_once_leave_nothing(llm, backend):
    streams = [llm.stream(prompt) for prompt in PROMPTS]  # twice as many as slots
    for stream in streams[:4]:
        next(stream)
    starting = [threading.Thread(target=next, args=(stream,), daemon=True) for stream in streams[4:]]
    for thread in starting:
        thread.start()
    for stream in streams[:4]:
        stream.close()
    for thread, stream in zip(starting, streams[4:], strict=True):
        thread.join(20)
        stream.close()
    assert is_idle(backend)


async def test_an_async_stream_that_is_left_stops(llm, backend):
    async for _ in llm.astream("hello"):
        break
    pieces = llm.astream("hello")
    await pieces.__anext__()
    await pieces.aclose()
    await asyncio.sleep(0)
    gc.collect()
    assert await asyncio.to_thread(is_idle, backend)


def reading(llm):
    async def read():
        return [piece async for piece in llm.astream("hello")]

    return read


WAYS_TO_WAIT = {
    "astream": reading,
    "ainvoke": lambda llm: lambda: llm.ainvoke("hello"),
    "streaming ainvoke": lambda llm: lambda: llm.model_copy(update={"streaming": True}).ainvoke("hello"),
    "abatch": lambda llm: lambda: llm.abatch(PROMPTS),
    "abatch with return_exceptions": lambda llm: lambda: llm.abatch(PROMPTS, return_exceptions=True),
    "abatch with max_concurrency": lambda llm: lambda: llm.abatch(PROMPTS, {"max_concurrency": 2}),
    "chain": lambda llm: lambda: (RunnableLambda(lambda x: x) | llm).ainvoke("hello"),
}


@pytest.mark.parametrize("way", WAYS_TO_WAIT)
async def test_cancelling_a_task_stops_its_work(llm, backend, way):
    task = asyncio.create_task(WAYS_TO_WAIT[way](llm)())
    assert await asyncio.to_thread(wait_until, lambda: backend.engine.num_running > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(is_idle, backend)


@pytest.mark.parametrize("way", ["astream", "ainvoke", "abatch"])
async def test_a_timeout_stops_the_work(llm, backend, way):
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(WAYS_TO_WAIT[way](llm)(), 0.03)
    assert await asyncio.to_thread(is_idle, backend)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout came with Python 3.11")
async def test_a_timeout_block_stops_the_work(llm, backend):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03):
            await llm.ainvoke("hello")
    assert await asyncio.to_thread(is_idle, backend)


async def test_other_tasks_go_on_when_one_is_cancelled(llm, backend):
    others = [asyncio.create_task(llm.ainvoke(prompt, **SHORT)) for prompt in PROMPTS[:3]]
    leaving = asyncio.create_task(llm.ainvoke("hello"))
    await asyncio.sleep(0.01)
    leaving.cancel()
    assert await asyncio.gather(*others) == await llm.abatch(PROMPTS[:3], **SHORT)


def test_an_event_loop_that_ends_takes_its_streams_along(llm, backend):
    async def leave_in_the_middle():
        pieces = llm.astream("hello")
        await pieces.__anext__()
        task = asyncio.create_task(llm.ainvoke("hello there"))
        await asyncio.sleep(0)
        return pieces, task

    kept = asyncio.run(leave_in_the_middle())
    assert is_idle(backend)
    del kept


async def test_the_event_loop_stays_free(llm, backend):
    task = asyncio.create_task(llm.ainvoke("hello"))
    assert await asyncio.to_thread(wait_until, lambda: backend.engine.num_running > 0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()


# The end of a model


def test_closing_ends_what_runs_and_what_waits():
    llm = make_llm(**LONG)
    with ThreadPoolExecutor(9) as pool:
        work = [pool.submit(llm.invoke, prompt) for prompt in PROMPTS]
        assert wait_until(lambda: engine_of(llm).num_running == 4)
        llm.close()
        for future in work:
            with pytest.raises(EngineClosedError):
                future.result(20)
    assert engine_threads_of(llm) == []


async def test_closing_ends_async_readers():
    llm = make_llm(**LONG)
    pieces = llm.astream("hello")
    await pieces.__anext__()
    waiting = asyncio.create_task(llm.ainvoke("hello"))
    await asyncio.sleep(0)
    await asyncio.to_thread(llm.close)
    with pytest.raises(EngineClosedError):
        await asyncio.wait_for(waiting, 20)
    with pytest.raises(EngineClosedError):
        async for _ in pieces:
            pass


def engine_threads_of(llm):
    thread = engine_of(llm)._thread
    return [t for t in engine_threads() if t is thread]


def test_a_with_block_closes_even_when_it_fails():
    with pytest.raises(ZeroDivisionError), make_llm() as llm:
        llm.invoke("hello", **SHORT)
        raise ZeroDivisionError
    assert engine_threads_of(llm) == []


def test_a_forgotten_model_ends_its_thread():
    before = set(engine_threads())
    llm = make_llm()
    chain = llm | RunnableLambda(lambda x: x)
    chain.invoke("hello")
    chain.batch([*PROMPTS[:3]])
    list(chain.stream("hello"))
    assert len(set(engine_threads()) - before) == 1
    del llm, chain
    assert wait_until(lambda: not set(engine_threads()) - before)


def test_a_model_forgotten_in_the_middle_of_a_stream_ends_its_thread():
    before = set(engine_threads())
    pieces = make_llm(**LONG).stream("hello")
    next(pieces)
    assert len(set(engine_threads()) - before) == 1
    del pieces
    assert wait_until(lambda: not set(engine_threads()) - before)


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_stream_outlives_its_forgotten_backend_or_raises(pause):
    backend = make_backend()
    stream = backend.stream(CompletionRequest("hello", SamplingParams(**SHORT)))
    del backend
    gc.collect()
    time.sleep(pause)
    outcome: list[int | EngineClosedError] = []

    def read():
        try:
            outcome.append(len(list(stream)))
        except EngineClosedError as error:
            outcome.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    assert outcome, "the reader hangs"


@pytest.mark.process
def test_the_interpreter_ends_while_a_model_runs():
    code = (
        "from tests.support.backends import make_llm\n"
        "llm = make_llm(max_new_tokens=200, ignore_eos=True)\n"
        "pieces = llm.stream('hello'); next(pieces)\n"
        "print('leaving')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)  # noqa: S603
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "leaving", "")


# An engine that fails


class Breakdown(BaseException):
    """Not even an Exception."""


def break_scheduler(engine, error):
    def fail():
        raise error

    engine._scheduler.next_decode = fail


def break_inbox(engine, error):
    original = engine._take_inbox

    def fail():
        original()
        raise error

    engine._take_inbox = fail


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Breakdown("a bug")], ids=["exception", "base"])
@pytest.mark.parametrize("break_it", [break_scheduler, break_inbox])
def test_nobody_hangs_when_the_engine_fails(break_it, error):
    llm = make_llm(**LONG)
    pieces = llm.stream("hello")
    next(pieces)

    async def invoke():
        return await llm.ainvoke("hello", **SHORT)

    with ThreadPoolExecutor(9) as pool:
        work = [pool.submit(llm.invoke, prompt, **SHORT) for prompt in PROMPTS[:5]]
        work += [pool.submit(lambda: asyncio.run(invoke()))]
        break_it(engine_of(llm), error)
        for future in work:
            # Those before the failure may have ended well.
            assert isinstance(future.exception(20), (GenerationError, EngineClosedError, type(None)))
        assert any(isinstance(future.exception(), GenerationError) for future in work)
        rest = pool.submit(list, pieces)
        assert isinstance(rest.exception(20), GenerationError)
    assert "a bug" in str(rest.exception())
    with pytest.raises(EngineClosedError, match="failed"):
        llm.invoke("hello")
    assert wait_until(lambda: not engine_threads_of(llm))
    assert (engine_of(llm).num_running, engine_of(llm).num_waiting) == (0, 0)


def test_a_thread_that_cannot_start_is_tried_again(monkeypatch):
    llm = make_llm()
    with monkeypatch.context() as patch:

        def fail(self):
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            llm.invoke("hello")
    assert len(llm.invoke("hello")) > 0
    llm.close()


def test_a_request_that_fails_leaves_the_others_alone():
    llm = make_llm(max_new_tokens=20)
    expected = llm.batch(PROMPTS[:4])
    emitter = engine_of(llm)._stepper._emitter
    original = emitter._advance

    def fail_for_abc(request, *args):
        if request.prompt_ids == tuple(llm.get_token_ids(PROMPTS[1])):
            raise ValueError("bad luck")
        return original(request, *args)

    emitter._advance = fail_for_abc  # type: ignore[method-assign]
    outcomes = llm.batch(PROMPTS[:4], return_exceptions=True)
    assert isinstance(outcomes[1], GenerationError)
    assert "bad luck" in str(outcomes[1])
    assert [outcomes[i] for i in (0, 2, 3)] == [expected[i] for i in (0, 2, 3)]
    with pytest.raises(GenerationError, match="bad luck"):
        llm.batch(PROMPTS[:4])
    assert is_idle(llm.backend)
    assert llm.invoke(PROMPTS[0]) == expected[0]
    llm.close()
