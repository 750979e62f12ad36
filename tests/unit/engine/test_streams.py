"""Streams from any thread and event loop: they end, free what they held, and fail alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, TokenEvent
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.drafters.base import Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.errors import (
    EngineClosedError,
    GenerationError,
    InvalidParameterError,
    PromptTooLongError,
    SpecDecError,
)
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.runner.verify import Verdict
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    OracleDrafter,
    References,
    byte_tokenizer,
    make_draft_drafter,
    make_engine,
    perturbed,
    random_prompt,
    read,
    tiny_model,
    token_ids,
    wait_until,
)

POISON = 257  # A token that no text of these tests has by itself.
PARAMS = SamplingParams(max_new_tokens=20, temperature=0.7, seed=4, ignore_eos=True)
LONG = SamplingParams(max_new_tokens=200, ignore_eos=True)
MakeEngine = Callable[..., Engine]


class World:
    def __init__(self, device: str) -> None:
        self.target = tiny_model(0, device).double()
        self.near = perturbed(self.target, 0.02)
        self.references = References(self.target)
        rng = random.Random(5)
        self.prompts = [(i, *random_prompt(rng, 20)) for i in range(50)]


@pytest.fixture(scope="module")
def world(device: str) -> World:
    return World(device)


def is_at_rest(engine: Engine) -> bool:
    return engine.num_running == 0 and engine.num_waiting == 0


async def aread(stream: CompletionStream) -> list[int]:
    """All tokens of a stream, read in an event loop; it is closed in any case."""
    ids: list[int] = []
    try:
        async for event in stream:
            if isinstance(event, TokenEvent):
                ids.extend(token_ids(event.tokens))
    finally:
        await stream.aclose()
    return ids


def hold_forwards(engine: Engine) -> threading.Event:
    """Have the engine's decoding wait for an event."""
    released = threading.Event()
    verify = engine.runner.verify

    def held(*args: Any) -> Any:
        assert released.wait(20)
        return verify(*args)

    engine.runner.verify = held  # type: ignore[method-assign, assignment]
    return released


# --- Streams that are closed early ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "prompt_lookup", "near"])
def test_half_of_50_streams_closed_early(world: World, engines: MakeEngine, name: str) -> None:
    drafters: dict[str, Callable[[], Drafter]] = {
        "none": Drafter,
        "prompt_lookup": lambda: PromptLookupDrafter(5),
        "near": lambda: make_draft_drafter(world.near),
    }
    engine = engines(world.target, drafters[name](), num_slots=4)
    read(engine.submit((1,), PARAMS))  # Its thread runs.
    num_threads = threading.active_count()
    streams = [engine.submit(prompt, PARAMS) for prompt in world.prompts]
    for stream in streams[48:0:-4]:  # From the last, so that nearly all of these have not started.
        stream.close()
    for stream in streams[1::4]:
        for _ in range(3):
            next(stream)
        stream.close()
    for i, stream in enumerate(streams):
        if i % 4 in (2, 3):
            assert token_ids(read(stream)[0]) == world.references(world.prompts[i], PARAMS)
        elif i:
            assert next(stream, None) is None
    streams[0].close()
    assert wait_until(lambda: is_at_rest(engine))
    assert threading.active_count() == num_threads
    # All four slots are to be had again.
    released = hold_forwards(engine)
    with engine._inbox.lock:
        again = [engine.submit(prompt, LONG) for prompt in world.prompts[:4]]
    assert wait_until(lambda: engine.num_running == 4)
    for stream in again:
        stream.close()
    released.set()
    assert wait_until(lambda: is_at_rest(engine))


@pytest.mark.slow
async def test_half_of_50_async_streams_closed_or_cancelled_early(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target, make_draft_drafter(world.near), num_slots=4)
    await aread(engine.submit((1,), PARAMS))
    num_threads, tasks_before = threading.active_count(), asyncio.all_tasks()

    async def some(stream: CompletionStream, num_events: int) -> None:
        async with contextlib.aclosing(stream):
            async for _ in stream:
                num_events -= 1
                if num_events <= 0:
                    return

    async def cancelled_midway(stream: CompletionStream) -> None:
        started = asyncio.Event()

        async def reader() -> None:
            try:
                async for _ in stream:
                    started.set()
                    await asyncio.sleep(0)  # Events that have come already would be read without a pause.
            finally:
                await stream.aclose()

        task = asyncio.create_task(reader())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    streams = [engine.submit(prompt, PARAMS) for prompt in world.prompts]
    unstarted = [asyncio.create_task(aread(stream)) for stream in reversed(streams[4::6])]
    await asyncio.sleep(0)  # They wait for their first event now.
    for task in unstarted:
        task.cancel()
    outcomes = await asyncio.gather(*unstarted, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    jobs: dict[int, Coroutine[Any, Any, list[int] | None]] = {}
    for i, stream in enumerate(streams):
        if i % 2:
            jobs[i] = aread(stream)
        elif i % 6 == 0:
            jobs[i] = some(stream, i % 5)
        elif i % 6 == 2:
            jobs[i] = cancelled_midway(stream)
    results = dict(zip(jobs, await asyncio.gather(*jobs.values()), strict=True))
    for i in range(1, 50, 2):
        assert results[i] == world.references(world.prompts[i], PARAMS)
    assert await asyncio.to_thread(wait_until, lambda: is_at_rest(engine))
    assert asyncio.all_tasks() == tasks_before
    # to_thread keeps one worker of its own.
    assert threading.active_count() <= num_threads + 1


def test_a_closed_stream_gets_no_further_step(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target)
    verify = engine.runner.verify
    streams: list[CompletionStream] = []

    def spy(*args: Any) -> Any:
        if engine.num_target_forwards == 2:
            streams[0].close()  # During the third step.
        return verify(*args)

    engine.runner.verify = spy  # type: ignore[method-assign, assignment]
    with engine._inbox.lock:  # Held until the spy can know the stream.
        streams.append(engine.submit((1, 2, 3), LONG))
    # Blocks until the close: events that came before it are dropped with the stream.
    assert all(isinstance(event, TokenEvent) for event in streams[0])
    assert wait_until(lambda: is_at_rest(engine))
    assert engine.num_target_forwards == 3


def test_closing_a_stream_wakes_its_reader(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target, num_slots=1)
    with engine.submit((1,), LONG):
        waiting = engine.submit((2,), LONG)
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(list, waiting)
            waiting.close()
            assert reader.result(timeout=20) == []


def test_closing_twice_or_after_the_end_does_nothing(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target)
    stream = engine.submit((1, 2), PARAMS)
    tokens, _ = read(stream)
    stream.close()
    stream.close()
    assert next(stream, None) is None
    early = engine.submit((1, 2), LONG)
    early.close()
    early.close()
    with engine.submit((1, 2), LONG) as left:
        next(left)
    assert left.is_closed
    assert wait_until(lambda: is_at_rest(engine))
    # No close has hit a request that was not meant.
    assert read(engine.submit((1, 2), PARAMS))[0] == tokens


def test_a_forgotten_stream_runs_to_its_end_and_frees_its_slot(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target, num_slots=1)
    engine.submit((1, 2), PARAMS)
    assert token_ids(read(engine.submit((3,), PARAMS))[0]) == world.references((3,), PARAMS)
    assert wait_until(lambda: is_at_rest(engine))


# --- Many readers -----------------------------------------------------------------------------------------------------


def test_readers_in_several_event_loops(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target, PromptLookupDrafter(5))

    def loop(prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
        async def main() -> list[list[int]]:
            return await asyncio.gather(*(aread(engine.submit(prompt, PARAMS)) for prompt in prompts))

        return asyncio.run(main())

    groups = [world.prompts[i : i + 3] for i in (0, 3, 6)]
    with ThreadPoolExecutor(3) as pool:
        for group, texts in zip(groups, pool.map(loop, groups), strict=True):
            assert texts == [world.references(prompt, PARAMS) for prompt in group]


async def test_a_wait_that_is_cancelled_loses_no_event(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target)
    stream = engine.submit((7, 8), PARAMS)
    ids: list[int] = []
    finish = None
    while finish is None:
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            event = await task
            if isinstance(event, FinishEvent):
                finish = event
            else:
                ids.extend(token_ids(event.tokens))
    assert ids == world.references((7, 8), PARAMS)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_the_event_loop_is_free_while_a_stream_waits(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target)
    released = hold_forwards(engine)
    task = asyncio.create_task(aread(engine.submit((1,), PARAMS)))
    await asyncio.sleep(0.01)  # Would not return if the reader blocked the loop.
    assert not task.done()
    released.set()
    assert await task == world.references((1,), PARAMS)


def test_a_reader_whose_event_loop_is_gone_does_no_harm(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target)
    released = hold_forwards(engine)

    async def start() -> CompletionStream:
        stream = engine.submit((5,), PARAMS)
        asyncio.ensure_future(anext(stream))  # noqa: RUF006 - it is meant to be left behind
        await asyncio.sleep(0.01)
        return stream

    stream = asyncio.run(start())
    released.set()
    # The loop that waited is closed. The events are there for whoever reads on, here in a thread.
    assert token_ids(read(stream)[0]) == world.references((5,), PARAMS)


# --- The engine's end -------------------------------------------------------------------------------------------------


def test_closing_the_engine_ends_its_streams_with_an_error(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target, num_slots=2)
    streams = [engine.submit((i,), LONG) for i in range(5)]
    next(streams[0])
    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(list, stream) for stream in streams]
        engine.close()
        for reader in readers:
            with pytest.raises(EngineClosedError):
                reader.result(timeout=20)
    assert is_at_rest(engine)
    assert all(next(stream, None) is None for stream in streams)


async def test_closing_the_engine_wakes_readers_in_an_event_loop(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target, num_slots=1)
    tasks = [asyncio.create_task(aread(engine.submit((i,), LONG))) for i in range(3)]
    await asyncio.sleep(0.01)
    await asyncio.to_thread(engine.close)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, EngineClosedError)


def test_a_closed_engine_takes_no_requests(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target)
    read(engine.submit((1,), PARAMS))
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError, match="closed"):
        engine.submit((1,), PARAMS)
    unused = engines(world.target)
    unused.close()
    with pytest.raises(EngineClosedError):
        unused.submit((1,), PARAMS)


def test_an_engine_starts_its_thread_with_the_first_request(world: World, engines: MakeEngine) -> None:
    num_threads = threading.active_count()
    engine = engines(world.target)
    assert threading.active_count() == num_threads
    read(engine.submit((1,), PARAMS))
    assert threading.active_count() == num_threads + 1
    engine.close()
    assert threading.active_count() == num_threads


def test_a_dropped_engine_ends_its_thread_and_frees_the_model(device: str) -> None:
    def use() -> tuple[threading.Thread, Callable[[], Any]]:
        engine = make_engine(tiny_model(0, device), Drafter())
        read(engine.submit((1, 2), PARAMS))
        assert engine._thread is not None
        return engine._thread, weakref.ref(engine.runner)

    thread, runner = use()
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()
    gc.collect()
    assert runner() is None


def test_a_dropped_engine_finishes_what_runs(world: World) -> None:
    engine = make_engine(world.target, Drafter())
    thread_count = threading.active_count()
    stream = engine.submit((1, 2), PARAMS)
    first = next(stream)
    assert isinstance(first, TokenEvent)
    del engine
    ids = [*token_ids(first.tokens), *token_ids(read(stream)[0])]
    assert ids == world.references((1, 2), PARAMS)
    assert wait_until(lambda: threading.active_count() <= thread_count)


def test_a_stream_whose_engine_was_dropped_at_once_never_hangs(world: World) -> None:
    def leave() -> CompletionStream:
        engine = make_engine(world.target, Drafter())
        read(engine.submit((1,), SamplingParams(max_new_tokens=1)))
        wait_until(lambda: is_at_rest(engine))
        return engine.submit((1, 2), PARAMS)

    for _ in range(5):
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read, leave())
            # Either the engine's thread had taken it up already, or it says so.
            with contextlib.suppress(EngineClosedError):
                assert token_ids(reader.result(timeout=20)[0]) == world.references((1, 2), PARAMS)


def test_an_engine_from_another_process_refuses(world: World, engines: MakeEngine) -> None:
    engine = engines(world.target)
    engine._pid -= 1  # As after a fork: the thread did not come along.
    with pytest.raises(EngineClosedError, match="process"):
        engine.submit((1,), PARAMS)


def test_a_bug_of_the_engine_itself_leaves_nobody_waiting(
    world: World, engines: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines(world.target, num_slots=1)
    streams = [engine.submit((i,), LONG) for i in range(3)]
    next(streams[0])

    def broken() -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(engine._scheduler, "next_decode", broken)
    with ThreadPoolExecutor(3) as pool:
        for reader in [pool.submit(list, stream) for stream in streams]:
            with pytest.raises(GenerationError, match="a bug"):
                reader.result(timeout=20)
    with pytest.raises(EngineClosedError):
        engine.submit((1,), PARAMS)


# --- Requests that fail -----------------------------------------------------------------------------------------------


def fail_on_poison(model: Any) -> Any:
    """Have every forward of the model raise that meets the poisoned token."""

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        if (kwargs["input_ids"] == POISON).any():
            raise RuntimeError("poisoned")

    model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    return model


def check_only_poisoned_fail(world: World, engine: Engine, poisoned: Sequence[tuple[int, ...]], message: str) -> None:
    """Mix poisoned prompts among others, twice; only they may fail, and the engine goes on."""
    healthy = world.prompts[:6]
    for _ in range(2):
        prompts = [p for pair in zip(healthy, [*poisoned, *healthy], strict=False) for p in pair]
        with engine._inbox.lock:
            streams = [engine.submit(prompt, PARAMS) for prompt in prompts]
        for prompt, stream in zip(prompts, streams, strict=True):
            if prompt in poisoned:
                with pytest.raises(GenerationError, match=message) as caught:
                    read(stream)
                assert caught.value.__cause__ is not None
                assert next(stream, None) is None
            else:
                assert token_ids(read(stream)[0]) == world.references(prompt, PARAMS)
    assert wait_until(lambda: is_at_rest(engine))


@pytest.mark.parametrize("name", ["none", "prompt_lookup", "near"])
def test_a_failing_forward_fails_its_own_request_only(
    world: World, engines: MakeEngine, device: str, name: str
) -> None:
    drafters: dict[str, Callable[[], Drafter]] = {
        "none": Drafter,
        "prompt_lookup": lambda: PromptLookupDrafter(5),
        "near": lambda: make_draft_drafter(world.near),
    }
    model = fail_on_poison(tiny_model(0, device).double())
    engine = engines(model, drafters[name](), num_slots=4, draft_length=3)
    # In the prefill, in the first step, and in a prompt that another request's remains begin.
    check_only_poisoned_fail(
        world, engine, [(POISON, 1, 2), (3, 4, POISON), (*world.prompts[0], POISON, 7)], "poisoned"
    )


@pytest.mark.parametrize("where", ["prefill", "consider", "propose", "measure_step", "follow"])
def test_a_failing_drafter_costs_nobody_a_text(
    world: World, engines: MakeEngine, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(OracleDrafter):
        num_layers = 1

        def check(self, place: str, requests: Sequence[DraftingRequest]) -> None:
            if place == where and any(POISON in request.token_ids for request in requests):
                raise ValueError("no draft today")

        def prefill(self, requests: Sequence[DraftingRequest], *args: Any) -> None:
            self.check("prefill", requests)

        def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
            self.check("consider", [request])
            return super().consider(request, limits)

        def propose(self, requests: Sequence[DraftingRequest], *args: Any) -> list[Draft]:
            self.check("propose", requests)
            return super().propose(requests, *args)

        def measure_step(self, request: DraftingRequest) -> float:
            self.check("measure_step", [request])
            return 0.0

        def follow(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
            self.check("follow", requests)

    prompts = [(1, POISON, 2), *world.prompts[:4], (3, POISON, 4)]
    known = {prompt: world.references(prompt, PARAMS) for prompt in prompts}
    drafter = Failing(known, 0.8)
    # What cannot be measured is not drafted, in any request: it is measured again each time here.
    how: dict[str, Any] = {"step_cost": None} if where == "measure_step" else {"draft_length": 4}
    engine = engines(world.target, drafter, num_slots=3, **how)
    for _ in range(2):
        for prompt, stream in [(prompt, engine.submit(prompt, PARAMS)) for prompt in prompts]:
            assert token_ids(read(stream)[0]) == known[prompt]
    assert "The drafter failed to" in caplog.text
    assert "no draft today" in caplog.text
    # A text that comes alone after those is drafted for.
    if where != "measure_step":
        assert wait_until(lambda: is_at_rest(engine))
        assert read(engine.submit(prompts[1], PARAMS))[1].speculation.accepted_tokens > 0
    # Every request was released, once.
    assert wait_until(lambda: is_at_rest(engine))
    assert len(drafter.released) == len(set(drafter.released)) == 12 + (where != "measure_step")


def test_a_draft_model_that_failed_is_right_about_the_next_text(world: World, engines: MakeEngine, device: str) -> None:
    # The same weights: each of its drafts is right, unless what is in its slots is not what they are taken to hold.
    drafter = make_draft_drafter(fail_on_poison(tiny_model(0, device).double()))
    engine = engines(world.target, drafter, num_slots=1, draft_length=3)
    for prompt in ((3, 4, 5, POISON), (POISON, 1, 2), (3, 4, 5, 6)):
        tokens, finish = read(engine.submit(prompt, PARAMS))
        assert token_ids(tokens) == world.references(prompt, PARAMS)
        stats = finish.speculation
        assert stats.accepted_tokens == stats.drafted_tokens
        assert (stats.drafted_tokens == 0) == (POISON in prompt)


def test_a_drafter_that_fails_to_forget_harms_nobody(world: World, engines: MakeEngine) -> None:
    class Failing(PromptLookupDrafter):
        def release(self, request: DraftingRequest) -> None:
            raise ValueError("cannot forget")

    engine = engines(world.target, Failing(5), num_slots=2)
    for prompt in world.prompts[:4]:
        assert token_ids(read(engine.submit(prompt, PARAMS))[0]) == world.references(prompt, PARAMS)


def test_a_failing_tokenizer_fails_its_own_request_only(world: World, engines: MakeEngine) -> None:
    poisoned = world.prompts[10]
    # A token that only the poisoned request writes, some way into its text.
    others = {t for prompt in world.prompts[:6] for t in world.references(prompt, PARAMS)}
    position, token = next(
        (i, t) for i, t in enumerate(world.references(poisoned, PARAMS)) if i > 2 and t not in others
    )

    class Failing(PrivateTokenizer):
        def decode(self, tokens: Sequence[int]) -> str:
            if token in tokens:
                raise KeyError("no such token")
            return super().decode(tokens)

    engine = engines(world.target, PromptLookupDrafter(5), tokenizer=Failing(byte_tokenizer()))
    check_only_poisoned_fail(world, engine, [poisoned], "no such token")
    # What earlier steps wrote has arrived.
    seen: list[int] = []
    with pytest.raises(GenerationError):
        for event in engine.submit(poisoned, PARAMS):
            assert isinstance(event, TokenEvent)
            seen.extend(token_ids(event.tokens))
    assert seen
    assert seen == world.references(poisoned, PARAMS)[: len(seen)]
    assert len(seen) <= position


def test_what_a_failed_request_left_is_not_reused(world: World, engines: MakeEngine, device: str) -> None:
    model = fail_on_poison(tiny_model(0, device).double())
    engine = engines(model, num_slots=1)
    prompt = world.prompts[0]
    with pytest.raises(GenerationError):
        read(engine.submit((*prompt, POISON), PARAMS))
    tokens, finish = read(engine.submit(prompt, PARAMS))
    assert token_ids(tokens) == world.references(prompt, PARAMS)
    assert finish.cached_tokens == 0


async def test_a_failure_reaches_a_reader_in_an_event_loop(engines: MakeEngine, device: str) -> None:
    engine = engines(fail_on_poison(tiny_model(0, device)))
    with pytest.raises(GenerationError, match="poisoned"):
        await aread(engine.submit((POISON,), PARAMS))


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        ((), PARAMS, InvalidParameterError, "empty"),
        ((1, 258), PARAMS, InvalidParameterError, "258.*0 to 257"),
        ((-1,), PARAMS, InvalidParameterError, "-1"),
        ((1,), SamplingParams(logit_bias={300: 1.0}), InvalidParameterError, "300"),
        ((1,) * 57, SamplingParams(max_new_tokens=200), PromptTooLongError, "57 tokens.*200.*256"),
        ((1,), SamplingParams(max_new_tokens=256), PromptTooLongError, "256"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(
    world: World,
    engines: MakeEngine,
    prompt: tuple[int, ...],
    params: SamplingParams,
    error: type[SpecDecError],
    message: str,
) -> None:
    engine = engines(world.target)
    num_threads = threading.active_count()
    with pytest.raises(error, match=message):
        engine.submit(prompt, params)
    with pytest.raises(error, match=message):
        engine.submit_all([CompletionRequest((1,), PARAMS), CompletionRequest(prompt, params)])
    assert engine.submit_all([]) == []
    assert is_at_rest(engine)
    assert threading.active_count() == num_threads  # Not even a thread was started.


# --- Long prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("num_long", [1, 2])
def test_a_long_prompt_stalls_a_running_stream_by_one_chunk_at_most(
    world: World, engines: MakeEngine, num_long: int
) -> None:
    chunk = 16
    engine = engines(world.target, prefill_chunk=chunk, num_slots=4)
    prefill, verify = engine.runner.prefill, engine.runner.verify
    calls: list[tuple[str, list[int]]] = []
    prompts = [tuple(random.Random(i).randrange(256) for _ in range(200)) for i in range(num_long)]
    late: list[CompletionStream] = []

    def spy_prefill(batch: RowBatch) -> None:
        # Padding counts too: it takes as long as tokens do.
        assert len(batch.tokens) * batch.width <= chunk
        calls.append(("prefill", list(batch.slots)))
        prefill(batch)

    def spy_verify(batch: RowBatch) -> Any:
        calls.append(("verify", list(batch.slots)))
        if len(calls) == 5:
            late.extend(engine.submit(prompt, PARAMS) for prompt in prompts)
        return verify(batch)

    engine.runner.prefill = spy_prefill  # type: ignore[method-assign]
    engine.runner.verify = spy_verify  # type: ignore[method-assign]
    running = engine.submit((9,), LONG)
    assert token_ids(read(running)[0]) == world.references((9,), LONG)
    for prompt, stream in zip(prompts, late, strict=True):
        assert token_ids(read(stream)[0]) == world.references(prompt, PARAMS)
    prefills = [i for i, (kind, _) in enumerate(calls) if kind == "prefill"]
    assert len(prefills) == num_long * -(-199 // chunk)
    # After every chunk comes a step, and the running stream is in it.
    for i in prefills:
        kind, slots = calls[i + 1]
        assert kind == "verify"
        assert 0 in slots


def test_a_long_prompt_does_not_hold_up_shorter_ones_behind_it(world: World, engines: MakeEngine) -> None:
    # Later requests that need no prefill decode while the chunks of the first go in.
    engine = engines(world.target, prefill_chunk=4)
    prefill, verify = engine.runner.prefill, engine.runner.verify
    calls: list[tuple[str, int]] = []

    def spy_prefill(batch: RowBatch) -> None:
        calls.append(("prefill", len(batch.slots)))
        prefill(batch)

    def spy_verify(batch: RowBatch) -> Any:
        calls.append(("verify", len(batch.slots)))
        return verify(batch)

    engine.runner.prefill = spy_prefill  # type: ignore[method-assign]
    engine.runner.verify = spy_verify  # type: ignore[method-assign]
    params = SamplingParams(max_new_tokens=2)
    with engine._inbox.lock:
        streams = [engine.submit(prompt, params) for prompt in (tuple(range(41)), (9,))]
    for stream in streams:
        read(stream)
    assert calls == [("prefill", 1), ("verify", 1)] * 2 + [("prefill", 1)] * 8 + [("verify", 1)] * 2
