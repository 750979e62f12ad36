"""Promise 1: speculation never changes the text.

Nearly all of these compare with `plain_reference`, which runs the model's own uncached forward over the whole text for
every token. They use float64 weights: there rounding is so far below the gap between two tokens' scores that any
difference is a mistake, on any machine. float32 has tests of its own, on texts without near ties.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.sampling.choice import SamplingTable, process_logits
from langchain_specdec.sampling.noise import gumbel_noise
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    EOS,
    VOCAB,
    OracleDrafter,
    References,
    TreeOracleDrafter,
    make_draft_drafter,
    make_engine,
    perturbed,
    plain_reference,
    random_prompt,
    read,
    tiny_model,
    token_ids,
)

DRAFTERS = (
    "none",
    "prompt_lookup",
    "itself",
    "near",
    "stranger",
    "auto",
    "auto_near",
    "auto_isolated",
    "oracle_0",
    "oracle_50",
    "oracle_90",
    "oracle_100",
    "tree",
)
LENGTHS: tuple[int | Literal["auto"], ...] = (*range(1, 11), "auto")
ARRIVALS = ("together", "staggered", "threads")
# Flat: every draft pays. Steep: lengths vary, zero among them. None: measured on this machine, as in real use.
COSTS = {"flat": StepCost.flat, "steep": lambda: StepCost({(1, 1): 1.0, (1, 3): 1.4, (1, 11): 4.0}), "measured": None}


class Case(NamedTuple):
    prompt: tuple[int, ...]
    params: SamplingParams


def random_params(rng: random.Random, longest: int = 16) -> SamplingParams:
    """Parameters of every kind, each often off."""

    def maybe(chance: float, value: Any, otherwise: Any = None) -> Any:
        return value if rng.random() < chance else otherwise

    bias = {rng.randrange(VOCAB): rng.uniform(-10, 10) for _ in range(rng.randrange(1, 6))}
    return SamplingParams(
        max_new_tokens=rng.randrange(1, longest + 1),
        temperature=rng.choice([0, 0, 0.7, 1.5]),
        top_k=maybe(0.3, rng.choice([1, 2, 20, 1000])),
        top_p=maybe(0.3, rng.choice([0.05, 0.6, 0.95, 1.0])),
        min_p=maybe(0.3, rng.choice([0.0, 0.02, 0.3, 1.0])),
        repetition_penalty=maybe(0.3, rng.choice([0.5, 1.2, 2.0]), 1.0),
        presence_penalty=maybe(0.2, rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(0.2, rng.uniform(-2, 2), 0.0),
        logit_bias=maybe(0.2, bias),
        seed=rng.choice([0, 1, 2**64 - 1, rng.randrange(2**64)]),
        ignore_eos=rng.random() < 0.5,
    )


class World:
    """Models on one device, many random cases, and what plain decoding writes for each."""

    def __init__(self, device: str, dtype: torch.dtype = torch.float64) -> None:
        self.target = tiny_model(0, device, dtype)
        self.near = perturbed(self.target, 0.02)
        self.stranger = tiny_model(1, device, dtype)
        self.references = References(self.target)
        rng = random.Random(2024)
        cases = [Case(tuple(random_prompt(rng)), random_params(rng)) for _ in range(80)]
        # Oracles know a text by its prompt, so no prompt may come twice.
        self.cases = list({case.prompt: case for case in cases}.values())

    def plain(self, case: Case) -> list[int]:
        return self.references(*case)

    def drafter(self, name: str, cases: Sequence[Case] = (), num_slots: int = 4) -> Drafter:
        if name.startswith("auto"):
            tree = LookupTreeDrafter(5, is_shared=name != "auto_isolated")
            if name != "auto_near":
                return tree
            return CombinedDrafter([tree, make_draft_drafter(self.near, num_slots=num_slots, prefill_chunk=7)])
        if name in ("itself", "near", "stranger"):
            model = {"itself": self.target, "near": self.near, "stranger": self.stranger}[name]
            return make_draft_drafter(model, num_slots=num_slots)
        if name == "prompt_lookup":
            return PromptLookupDrafter(5)
        if name == "none":
            return Drafter()
        known = {case.prompt: self.plain(case) for case in cases}
        if name == "tree":
            return TreeOracleDrafter(known, 0.9)
        return OracleDrafter(known, int(name.removeprefix("oracle_")) / 100)


@pytest.fixture(scope="module")
def world(device: str) -> World:
    return World(device)


class Reader:
    """Reads a stream bit by bit."""

    def __init__(self, stream: CompletionStream) -> None:
        self._stream = stream
        self.tokens: list[Token] = []
        self.finish: FinishEvent | None = None

    def step(self) -> None:
        event = next(self._stream, None)
        if isinstance(event, TokenEvent):
            self.tokens.extend(event.tokens)
        elif event is not None:
            self.finish = event

    def rest(self) -> list[int]:
        while self.finish is None:
            self.step()
        return token_ids(self.tokens)


def run(engine: Engine, cases: Sequence[Case], arrival: str, rng: random.Random) -> Iterator[tuple[Case, list[int]]]:
    """Put all cases through the engine in some order and yield what each wrote."""
    order = rng.sample(list(cases), len(cases))
    if arrival == "threads":
        with ThreadPoolExecutor(4) as pool:
            written = pool.map(lambda case: token_ids(read(engine.submit(*case))[0]), order)
            yield from zip(order, written, strict=True)
        return
    readers: list[Reader] = []
    for case in order:
        if arrival == "staggered" and readers:
            # Earlier streams are somewhere in their text when this one comes.
            for _ in range(rng.randrange(6)):
                rng.choice(readers).step()
        readers.append(Reader(engine.submit(*case)))
    for case, reader in zip(order, readers, strict=True):
        yield case, reader.rest()


@pytest.mark.slow
@pytest.mark.transformers
@settings(max_examples=40)
@given(
    name=st.sampled_from(DRAFTERS),
    length=st.sampled_from(LENGTHS),
    nodes=st.sampled_from([0, 3, 20]),
    cost=st.sampled_from(sorted(COSTS)),
    num_slots=st.integers(1, 4),
    chunk=st.sampled_from([1, 3, 16, 512]),
    arrival=st.sampled_from(ARRIVALS),
    indices=st.lists(st.integers(0, 75), min_size=1, max_size=8, unique=True),
    seed=st.integers(0, 2**32),
)
def test_text_is_that_of_plain_decoding_in_any_configuration(
    world: World,
    name: str,
    length: int | Literal["auto"],
    nodes: int,
    cost: str,
    num_slots: int,
    chunk: int,
    arrival: str,
    indices: list[int],
    seed: int,
) -> None:
    cases = [world.cases[i] for i in indices]
    make_cost = COSTS[cost]
    engine = make_engine(
        world.target,
        world.drafter(name, cases, num_slots),
        num_slots=num_slots,
        draft_length=length,
        max_tree_nodes=nodes,
        prefill_chunk=chunk,
        step_cost=make_cost() if make_cost else None,
    )
    with closing(engine):
        for case, written in run(engine, cases, arrival, random.Random(seed)):
            assert written == world.plain(case), case


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["prompt_lookup", "near", "oracle_90"])
def test_text_is_that_of_plain_decoding_at_every_draft_length(
    world: World, name: str, length: int | Literal["auto"]
) -> None:
    rng = random.Random(f"{name} {length}")
    cases = rng.sample(world.cases, 4)
    with closing(make_engine(world.target, world.drafter(name, cases), draft_length=length)) as engine:
        for case, written in run(engine, cases, "together", rng):
            assert written == world.plain(case), case


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
def test_all_cases_in_one_engine(world: World, name: str) -> None:
    # More prompts than slots, so that slots change hands and prompts find remains of others in theirs.
    drafter = world.drafter(name, world.cases)
    with closing(make_engine(world.target, drafter, num_slots=4, max_tree_nodes=16)) as engine:
        for case, written in run(engine, world.cases[:40], "threads", random.Random(name)):
            assert written == world.plain(case), case


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("name", ["itself", "near", "oracle_90", "tree"])
def test_penalties_inside_accepted_runs(world: World, name: str, temperature: float) -> None:
    # Strong enough that a token counted once too often, or too late, changes what comes next.
    rng = random.Random(5)
    penalties: tuple[dict[str, Any], ...]
    penalties = ({"repetition_penalty": 2.0}, {"presence_penalty": 2.0}, {"frequency_penalty": -2.0})
    cases = [
        Case(
            tuple(random_prompt(rng)),
            SamplingParams(max_new_tokens=24, temperature=temperature, seed=i, ignore_eos=True, **penalty),
        )
        for i, penalty in enumerate(penalties)
    ]
    with closing(make_engine(world.target, world.drafter(name, cases), draft_length=8)) as engine:
        for case in cases:
            tokens, finish = read(engine.submit(*case))
            assert token_ids(tokens) == world.plain(case)
            assert finish.speculation.accepted_tokens > 3
            if name == "itself":
                assert finish.speculation.acceptance_rate == 1.0  # The drafter counts as the target does.


@pytest.mark.parametrize("num_requests", [1, 2, 3, 4, 5, 13])
def test_text_does_not_depend_on_batch_mates(world: World, num_requests: int) -> None:
    # The same request alone and among others that differ in every parameter.
    case = Case(world.cases[0].prompt, SamplingParams(max_new_tokens=16, temperature=1.5, seed=3, ignore_eos=True))
    cases = [case, *world.cases[1:num_requests]]
    with closing(make_engine(world.target, world.drafter("oracle_50", cases))) as engine:
        for other, written in run(engine, cases, "together", random.Random(num_requests)):
            assert written == world.plain(other), other


@pytest.fixture(scope="module")
def world32(device: str) -> World:
    """In float32 two ways to compute a sum differ in the last digits, which can turn a near tie. Texts in which no
    choice is that close must come out the same to the token; most texts are such, and these cases are."""
    world, rng = World(device, torch.float32), random.Random(7)
    world.cases = []
    for temperature in (0, 0.7, 1.5) * 2:
        while True:
            params = SamplingParams(
                max_new_tokens=20, temperature=temperature, seed=rng.randrange(2**64), ignore_eos=True
            )
            case = Case(tuple(random_prompt(rng)), params)
            if smallest_gap(world, case) > 1e-3:
                world.cases.append(case)
                break
    return world


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
def test_float32_text_is_that_of_plain_decoding(world32: World, name: str) -> None:
    with closing(make_engine(world32.target, world32.drafter(name, world32.cases), draft_length=4)) as engine:
        for case, written in run(engine, world32.cases, "together", random.Random(name)):
            assert written == world32.plain(case)


def smallest_gap(world: World, case: Case) -> float:
    """How far the closest rival of any token of the text was behind."""
    written = world.plain(case)
    start, vocab = len(case.prompt), world.target.config.vocab_size
    ids = torch.tensor([[*case.prompt, *written[:-1]]], device=world.target.device)
    with torch.inference_mode():
        logits = world.target(input_ids=ids, use_cache=False).logits[:, start - 1 :]
    table = SamplingTable([case.params], [case.params.seed or 0], [0], vocab, logits.device)
    positions = torch.arange(start, start + len(written), device=logits.device)[None]
    scores = process_logits(logits, table) + table.temperature * gumbel_noise(table.seeds, positions, vocab)
    best = scores.topk(2).values
    return float((best[..., 0] - best[..., 1]).min())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "prompt_lookup", "near", "auto_near"])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_prefill_writes_the_same(world: World, name: str, chunk: int) -> None:
    rng = random.Random(chunk)
    params = SamplingParams(max_new_tokens=8, temperature=0.7, seed=1)
    cases = [Case(tuple(rng.randrange(256) for _ in range(length)), params) for length in (40, 97, 2, 1)]
    with closing(make_engine(world.target, world.drafter(name), prefill_chunk=chunk)) as engine:
        for case, written in run(engine, cases, "together", rng):
            assert written == world.plain(case)
        # The last token of a prompt is run by the first step, for its logits.
        assert engine.num_prefill_tokens == sum(len(case.prompt) - 1 for case in cases)


@pytest.mark.parametrize("name", DRAFTERS)
def test_prompt_of_one_token(world: World, name: str) -> None:
    params = SamplingParams(max_new_tokens=12, temperature=0.7, seed=5)
    cases = [Case((token,), params) for token in (0, 65, 255, EOS, 257)]
    with closing(make_engine(world.target, world.drafter(name, cases))) as engine:
        for case, written in run(engine, cases, "together", random.Random(0)):
            assert written == world.plain(case)
        assert engine.num_prefill_tokens == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "prompt_lookup", "itself", "near", "auto_near"])
def test_reused_prefix_saves_prefill_and_keeps_the_text(world: World, name: str) -> None:
    rng = random.Random(11)
    params = SamplingParams(max_new_tokens=10, temperature=0.7, seed=9, ignore_eos=True)
    first = tuple(rng.randrange(256) for _ in range(30))
    answer = tuple(world.references(first, params))
    turned = (first[20] + 1) % 256
    followers = {
        "the same prompt": (first, 29),
        "a prompt that turns off half-way": ((*first[:20], turned, 1, 2), 20),
        "the beginning of the prompt": (first[:10], 9),
        "a conversation that goes on": ((*first, *answer, 4, 5), 39),
        "nothing in common": (((first[0] + 1) % 256, *first[1:]), 0),
    }
    for description, (prompt, num_shared) in followers.items():
        with closing(make_engine(world.target, world.drafter(name), num_slots=1)) as engine:
            assert token_ids(read(engine.submit(first, params))[0]) == list(answer)
            before = engine.num_prefill_tokens
            tokens, finish = read(engine.submit(prompt, params))
            assert token_ids(tokens) == world.references(prompt, params), description
            assert finish.cached_tokens == num_shared, description
            assert engine.num_prefill_tokens - before == len(prompt) - 1 - num_shared, description
            assert finish.prompt_tokens == len(prompt)


@pytest.mark.parametrize("name", ["none", "near", "oracle_50"])
def test_what_a_cancelled_request_left_can_be_reused(world: World, name: str) -> None:
    params = SamplingParams(max_new_tokens=100, ignore_eos=True)
    case = Case(tuple(range(1, 30)), replace(params, max_new_tokens=12))
    with closing(make_engine(world.target, world.drafter(name, [case]), num_slots=1, draft_length=4)) as engine:
        stream = engine.submit(case.prompt, params)
        for _ in range(3):
            next(stream)
        stream.close()
        tokens, finish = read(engine.submit(*case))
        assert token_ids(tokens) == world.plain(case)
        assert finish.cached_tokens == len(case.prompt) - 1


def test_requests_of_a_batch_that_share_a_slot_in_turn(world: World) -> None:
    # One slot, many prompts with common beginnings: whatever one left, the next must not read past what it shares.
    rng = random.Random(3)
    stem = tuple(rng.randrange(256) for _ in range(24))
    params = SamplingParams(max_new_tokens=6, temperature=0.7, repetition_penalty=1.3)
    cases = [Case((*stem[: rng.randrange(1, 25)], i, i + 1), replace(params, seed=i)) for i in range(12)]
    for name in ("prompt_lookup", "auto_near"):
        with closing(make_engine(world.target, world.drafter(name, num_slots=1), num_slots=1)) as engine:
            for case, written in run(engine, cases, "together", rng):
                assert written == world.plain(case)


@pytest.mark.parametrize("name", ["none", "near", "oracle_90"])
def test_drawn_seed_is_reported_and_repeats_the_text(world: World, name: str) -> None:
    params = SamplingParams(max_new_tokens=12, temperature=1.5, ignore_eos=True)
    case = Case((1, 2, 3), params)
    with closing(make_engine(world.target, world.drafter(name, [case]))) as engine:
        seeds = set()
        for _ in range(3):
            tokens, finish = read(engine.submit(*case))
            seeds.add(finish.seed)
            assert token_ids(tokens) == plain_reference(world.target, case.prompt, replace(params, seed=finish.seed))
    assert len(seeds) == 3


@pytest.mark.parametrize("name", ["none", "near", "oracle_90", "tree"])
def test_logprobs_are_the_models_own_wherever_a_token_comes_from(world: World, name: str) -> None:
    params = SamplingParams(max_new_tokens=10, temperature=1.5, top_k=3, seed=2, logprobs=4, ignore_eos=True)
    case = Case((10, 20, 30), params)
    written = world.plain(case)
    ids = torch.tensor([[*case.prompt, *written[:-1]]], device=world.target.device)
    with torch.inference_mode():
        expected = world.target(input_ids=ids).logits[0, len(case.prompt) - 1 :].log_softmax(-1)
    with closing(make_engine(world.target, world.drafter(name, [case]), draft_length=3)) as engine:
        tokens, _ = read(engine.submit(*case))
    assert token_ids(tokens) == written
    for token, row in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-5)
        assert token.top_logprobs is not None
        assert list(token.top_logprobs) == row.topk(4).indices.tolist()
        assert list(token.top_logprobs.values()) == pytest.approx(row.topk(4).values.tolist(), abs=1e-5)


def test_prompts_of_very_different_length_share_no_prefill_that_would_not_fit(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    # A row far along in its slot must not be padded to the width of a long prompt: it would reach past the slot's end.
    params = SamplingParams(max_new_tokens=2)
    first = tuple(range(200))
    cases = [Case((*first, *[1] * 10), params), Case((9,) * 240, params)]
    with closing(make_engine(world.target, Drafter(), num_slots=2)) as engine:
        read(engine.submit(first, params))
        # Held, so that the engine sees both at once.
        with engine._inbox.lock:
            streams = [engine.submit(*case) for case in cases]
        for case, stream in zip(cases, streams, strict=True):
            assert token_ids(read(stream)[0]) == world.plain(case)
    assert not caplog.records
