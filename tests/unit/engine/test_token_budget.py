"""Memory by tokens held: who waits for room, what is let go for it, and what comes back to the system."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.drafters.acceptance import AcceptanceRates
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.scheduler import Scheduler
from langchain_specdec.engine.stopping import StopChecker
from langchain_specdec.models import make_runner as make_runner_module
from langchain_specdec.runner.kv_cache import SlotCache
from langchain_specdec.runner.lazy_memory import LazyZeros, is_memory_lazy
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    References,
    byte_tokenizer,
    make_draft_drafter,
    perturbed,
    read,
    tiny_model,
    token_ids,
)

MakeEngine = Callable[..., Engine]
_STATM = Path("/proc/self/statm")
on_lazy_memory = pytest.mark.skipif(not _STATM.exists(), reason="memory is given back on Linux")


def make_request(request_id: int, prompt: Sequence[int], max_new_tokens: int = 5) -> Request:
    no_text: Any = None
    stopper = StopChecker(no_text, max_new_tokens, (), (), {}, {})
    params = SamplingParams(max_new_tokens=max_new_tokens)
    return Request(request_id, tuple(prompt), params, 0, stopper, CompletionStream(), AcceptanceRates())


def of_size(request_id: int, size: int) -> Request:
    """A request of so many tokens, five of which are new."""
    return make_request(request_id, [1000 + request_id, *range(1, size - 5)])


def add(scheduler: Scheduler, *requests: Request) -> list[Request]:
    for request in requests:
        scheduler.add(request)
    return scheduler.admit()


def finish(scheduler: Scheduler, request: Request) -> None:
    request.token_ids.extend([77] * request.params.max_new_tokens)
    request.num_cached = len(request.token_ids) - 1
    scheduler.remove(request)


def test_a_request_waits_for_its_room_and_nobody_passes_it() -> None:
    scheduler = Scheduler(4, 1000, token_budget=100)
    small, large, late = of_size(0, 30), of_size(1, 80), of_size(2, 10)
    assert add(scheduler, small, large, late) == [small]
    assert scheduler.admit() == []
    finish(scheduler, small)
    assert scheduler.admit() == [large, late]


def test_what_rests_is_let_go_the_longest_rested_first() -> None:
    scheduler = Scheduler(4, 1000, token_budget=100)
    requests = [of_size(i, 30) for i in range(3)]
    add(scheduler, *requests)
    for request in (requests[1], requests[0], requests[2]):
        finish(scheduler, request)
    # 29 tokens rest in each of three slots; the fourth is empty and has rested longest.
    (new,) = add(scheduler, of_size(3, 40))
    assert new.slot not in {request.slot for request in requests}
    assert scheduler.take_let_go() == [(requests[1].slot, 0)]
    assert scheduler.take_let_go() == []
    # What was let go cannot be gone on from; what was kept can.
    again = make_request(4, requests[2].prompt_ids)
    add(scheduler, again)
    assert (again.slot, again.num_reused) == (requests[2].slot, len(again.prompt_ids) - 1)
    finish(scheduler, again)
    gone = make_request(5, requests[1].prompt_ids)
    add(scheduler, gone)
    assert gone.num_reused == 0


def test_nothing_is_let_go_for_a_request_that_has_to_wait_all_the_same() -> None:
    scheduler = Scheduler(3, 1000, token_budget=100)
    rested, running = of_size(0, 30), of_size(1, 50)
    add(scheduler, rested, running)
    finish(scheduler, rested)
    assert add(scheduler, of_size(2, 60)) == []
    assert scheduler.take_let_go() == []


def test_a_slot_keeps_no_more_than_its_request_may_fill() -> None:
    scheduler = Scheduler(1, 1000, token_budget=100)
    long, short = of_size(0, 90), of_size(1, 20)
    add(scheduler, long)
    finish(scheduler, long)
    add(scheduler, short)
    assert scheduler.take_let_go() == [(0, 20)]


def test_what_other_weights_computed_is_let_go() -> None:
    scheduler = Scheduler(2, 1000, token_budget=100)
    rested, running = of_size(0, 30), of_size(1, 30)
    add(scheduler, rested, running)
    finish(scheduler, rested)
    scheduler.forget()
    assert scheduler.take_let_go() == [(rested.slot, 0)]
    finish(scheduler, running)
    assert scheduler.take_let_go() == [(running.slot, 0)]


@settings(max_examples=100)
@given(
    num_slots=st.integers(1, 4),
    sizes=st.lists(st.integers(7, 60), min_size=1, max_size=14),
    seed=st.integers(0, 2**32),
)
def test_the_slots_never_hold_more_than_the_budget(num_slots: int, sizes: list[int], seed: int) -> None:
    rng, budget = random.Random(seed), 70
    scheduler = Scheduler(num_slots, 1000, token_budget=budget)
    waiting = [
        make_request(i, [rng.randrange(2) for _ in range(size - 5)], rng.randint(1, 5)) for i, size in enumerate(sizes)
    ]
    held = dict.fromkeys(range(num_slots), 0)  # tokens that stand in each slot's memory
    served: list[int] = []
    while waiting or scheduler.requests:
        if waiting and rng.random() < 0.6:
            scheduler.add(waiting.pop(0))
        admitted = scheduler.admit()
        for slot, start in scheduler.take_let_go():
            assert held[slot] > start
            held[slot] = start
        served.extend(request.request_id for request in admitted)
        for request in admitted:
            assert request.num_cached <= held[request.slot]
        for request in scheduler.running:
            # As far as it may come; the most that the promise of room has to hold for.
            held[request.slot] = max(held[request.slot], request.max_tokens)
        assert sum(held.values()) <= budget
        for request in scheduler.running:
            if rng.random() < 0.4:
                finish(scheduler, request)
                held[request.slot] = request.num_cached
    assert served == list(range(len(sizes)))


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@on_lazy_memory
def test_zeros_take_memory_where_they_are_written_and_give_it_back() -> None:
    zeros = LazyZeros(1 << 36)  # more than most machines have
    before = resident()
    zeros.array[1 << 30 : (1 << 30) + (64 << 20)] = 7
    taken = resident() - before
    assert (63 << 20) < taken < (80 << 20)
    zeros.clear((1 << 30) + 5, (1 << 30) + (64 << 20) - 5)
    assert resident() - before < (16 << 20)
    assert zeros.array[(1 << 30) : (1 << 30) + 5].tolist() == [7] * 5
    assert zeros.array[(1 << 30) + 5 : (1 << 30) + 5000].any() == False  # noqa: E712 - numpy's own
    assert zeros.array[(1 << 30) + (64 << 20) - 6 : (1 << 30) + (64 << 20)].tolist() == [0] + [7] * 5


@pytest.mark.parametrize("start", [0, 1, 3, 700])
def test_a_wiped_slot_is_zeros_and_its_neighbours_are_not(start: int) -> None:
    cache = SlotCache(2, 3, 1000)
    for layer in cache._slot_layers:
        layer.lazy_initialization(torch.ones(1, 2, 1, 8))
        for buffer in layer.buffers:
            buffer[:] = 1.0
    cache.wipe(1, start)
    for layer in cache._slot_layers:
        for buffer in layer.buffers:
            assert buffer[1, :, :start].eq(1).all()
            assert buffer[1, :, start:].eq(0).all()
            assert buffer[[0, 2]].eq(1).all()


@on_lazy_memory
def test_wiping_a_long_slot_writes_to_none_of_it() -> None:
    # As after a step whose rejected draft left NaN: from there on to the end of the slot.
    cache = SlotCache(4, 1, 1 << 20)
    for layer in cache._slot_layers:
        layer.lazy_initialization(torch.ones(1, 2, 1, 64))
    before = resident()
    cache.wipe(0, 5)
    assert resident() - before < (8 << 20) < cache.num_bytes


@on_lazy_memory
def test_a_prompt_takes_the_memory_of_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_runner_module, "free_memory", lambda device: 2**40)
    model = tiny_model(max_position_embeddings=1 << 20, num_hidden_layers=1)
    backend = LocalBackend(model, byte_tokenizer(), drafter="none", compile="off")
    engine = backend.engine
    try:
        assert backend.max_length == 1 << 20
        read(engine.submit([1] * 10, SamplingParams(max_new_tokens=2)))
        before = resident()
        read(engine.submit([2] * 2000, SamplingParams(max_new_tokens=2)))
        assert engine.runner.cache.num_bytes > 2**30
        assert resident() - before < 2**27
    finally:
        backend.close()


def test_requests_take_turns_where_they_have_no_room_together(engines: MakeEngine) -> None:
    model = tiny_model()
    references = References(model)
    params = SamplingParams(max_new_tokens=10, ignore_eos=True)
    prompts = [[i, 5, 6, 7, *range(20)] for i in range(6)]
    for drafter in (Drafter(), make_draft_drafter(perturbed(model, 0.1))):
        engine = engines(model, drafter, token_budget=80)
        most = 0
        decode = engine._stepper.decode

        def counted(requests: Sequence[Request], decode: Any = decode) -> Any:
            nonlocal most
            most = max(most, len(requests))
            return decode(requests)

        engine._stepper.decode = counted  # type: ignore[method-assign]
        streams = engine.submit_all([CompletionRequest(prompt, params) for prompt in prompts])
        for prompt, stream in zip(prompts, streams, strict=True):
            assert token_ids(read(stream)[0]) == references(prompt, params)
        # 34 tokens each.
        assert most == 2


def test_memory_that_cannot_be_given_back_fails_nobody(engines: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines(tiny_model(), token_budget=40)
    monkeypatch.setattr(engine.runner.cache, "wipe", lambda *_: (_ for _ in ()).throw(OSError("no")))
    for first in range(3):
        tokens, _ = read(engine.submit([first] * 20, SamplingParams(max_new_tokens=3, ignore_eos=True)))
        assert len(tokens) == 3


def test_memory_is_lazy_where_the_system_does_not_count_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setting = tmp_path / "overcommit_memory"
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("langchain_specdec.runner.lazy_memory._OVERCOMMIT", setting)
    assert is_memory_lazy()
    for value, is_lazy in (("0\n", True), ("1\n", True), ("2\n", False)):
        setting.write_text(value)
        assert is_memory_lazy() == is_lazy
