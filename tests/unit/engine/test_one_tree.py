"""One tree of what is computed and what is free: the same text, fewer steps, and never slower than plain decoding."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.drafters.acceptance import AcceptanceRates, DraftKind
from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.draft_model import model_kinds
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.engine import draft_planner
from langchain_specdec.engine.draft_planner import DraftPlanner
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.runner.verify import Verdict
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    OracleDrafter,
    References,
    TreeOracleDrafter,
    make_draft_drafter,
    perturbed,
    read,
    tiny_model,
    token_ids,
)

MakeEngine = Callable[..., Engine]
PROMPTS = [(5, 6, 7, 8, 9), (1, 2, 3, 1, 2), (40, 41), (100, 7, 7, 7)]


@pytest.fixture(scope="module")
def target(device: str) -> Any:
    return tiny_model(0, device).double()


@pytest.fixture(scope="module")
def references(target: Any) -> References:
    return References(target)


# --- Texts and steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_text_is_that_of_plain_decoding(
    target: Any, engines: MakeEngine, references: References, temperature: float
) -> None:
    params = SamplingParams(max_new_tokens=30, temperature=temperature, seed=5, ignore_eos=True)
    drafter = CombinedDrafter([LookupTreeDrafter(5), make_draft_drafter(perturbed(target, 0.05))])
    cost = StepCost({(1, 1): 1.0, (1, 17): 1.6, (4, 17): 2.0}, draft=0.05)
    engine = engines(target, drafter, max_tree_nodes=16, step_cost=cost)
    sources: set[str] = set()
    # Together and one by one; the second time much of the text is known.
    for batch in (PROMPTS, *([prompt] for prompt in PROMPTS)):
        with engine._inbox.lock:
            streams = [engine.submit(prompt, params) for prompt in batch]
        for prompt, stream in zip(batch, streams, strict=True):
            tokens, finish = read(stream)
            assert token_ids(tokens) == references(prompt, params)
            stats = finish.speculation
            sources |= set(stats.accepted_by_source)
            assert sum(stats.drafted_by_source.values()) == stats.drafted_tokens
            assert sum(stats.accepted_by_source.values()) == stats.accepted_tokens == sum(stats.accepted_per_position)
    assert sources >= {"draft_model", "answers"}


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_constrained_text_is_that_of_plain_decoding(target: Any, engines: MakeEngine, temperature: float) -> None:
    grammar = Grammar(regex=r"(ab|cd){1,9}[0-9]+ the same words (x|y)")
    params = SamplingParams(max_new_tokens=50, temperature=temperature, seed=5, grammar=grammar)
    drafter = CombinedDrafter([LookupTreeDrafter(5), make_draft_drafter(perturbed(target, 0.05))])
    plain, merged = engines(target, Drafter()), engines(target, drafter, max_tree_nodes=16)
    for prompt in PROMPTS[:2]:
        expected = token_ids(read(plain.submit(prompt, params))[0])
        for _ in range(2):
            tokens, finish = read(merged.submit(prompt, params))
            assert token_ids(tokens) == expected
            assert finish.speculation.accepted_by_source["grammar"] == finish.speculation.forced_tokens > 0


def test_a_right_draft_is_taken_beside_a_wrong_one(target: Any, engines: MakeEngine, references: References) -> None:
    # The first step trusts the free one, as both are as likely by then; from then on both are checked in each step.
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    right = references(PROMPTS[0], params)
    wrong = OracleDrafter({PROMPTS[0]: right}, 0.0)
    draft_model = make_draft_drafter(target)
    engine = engines(target, CombinedDrafter([wrong, draft_model]), max_tree_nodes=16, max_draft_tokens=4)
    tokens, finish = read(engine.submit(PROMPTS[0], params))
    assert token_ids(tokens) == right
    # Four of the model and one of the target's own in each other step, as if the free one were not there.
    assert finish.speculation.num_steps == 9
    assert finish.speculation.accepted_by_source == {"draft_model": 31}
    assert finish.speculation.drafted_by_source["oracle"] > 4
    assert draft_model.num_forwards == 31


class Head(TreeOracleDrafter):
    """Computes a tree level by level, a wrong token before the right one in each."""

    num_forwards = 0

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        reaches = request.rates.chain(self._levels(limits.max_depth))
        return [Proposal(reaches=reaches, steps_per_token=1, grows=True, limits=limits)] if reaches else []

    def propose(
        self, requests: Sequence[DraftingRequest], proposals: Sequence[Proposal], lengths: Sequence[int]
    ) -> list[Draft]:
        # What is computed grows for as long as it is promising, which this one always is.
        grown = [len(p.reaches) if length else 0 for p, length in zip(proposals, lengths, strict=True)]
        self.num_forwards += max(grown)
        return [self._tree(*each) for each in zip(requests, proposals, grown, strict=True)]

    def _tree(self, request: DraftingRequest, proposal: Proposal, length: int) -> Draft:
        if not length or proposal.limits is None:
            return EMPTY_DRAFT
        (known,) = super().consider(request, replace(proposal.limits, max_depth=length))
        kinds = tuple(("head", node % 2) for node in range(len(known.draft)))
        return replace(known.draft, kinds=kinds, levels=self._levels(length))

    def _levels(self, count: int) -> tuple[DraftKind, ...]:
        return tuple(("head-level", depth) for depth in range(count))


def test_computed_trees_are_planned_by_level_and_judged_by_node(
    target: Any, engines: MakeEngine, references: References
) -> None:
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    right = references(PROMPTS[0], params)
    cost = StepCost({(1, 1): 1.0, (1, 17): 1.3}, draft=0.05)
    drafter = CombinedDrafter([LookupTreeDrafter(5), Head({PROMPTS[0]: right}, 1.0)])
    engine = engines(target, drafter, max_tree_nodes=16, max_draft_tokens=4, step_cost=cost)
    tokens, finish = read(engine.submit(PROMPTS[0], params))
    assert token_ids(tokens) == right
    stats = finish.speculation
    assert stats.num_steps <= 13
    assert stats.accepted_by_source["head"] >= 44
    # Once the first token of each level is known to be wrong, it is no longer checked.
    assert stats.drafted_by_source["head"] < 2 * stats.accepted_by_source["head"]


def test_no_forward_runs_where_what_is_free_is_as_good(
    target: Any, engines: MakeEngine, references: References
) -> None:
    params = SamplingParams(max_new_tokens=90, ignore_eos=True)
    right = references(PROMPTS[0], params)
    draft_model = make_draft_drafter(target)
    drafter = CombinedDrafter([OracleDrafter({PROMPTS[0]: right}, 1.0), draft_model])
    cost = StepCost({(1, 1): 1.0, (1, 17): 1.5}, draft=0.2)
    engine = engines(target, drafter, max_tree_nodes=16, max_draft_tokens=5, step_cost=cost)
    _, finish = read(engine.submit(PROMPTS[0], params))
    assert finish.speculation.num_steps == 15
    # Both are expected to be right in 7 of 10 at first; later the free one alone is known to be.
    assert draft_model.num_forwards <= 5


def test_a_fixed_length_is_a_chain_of_the_preferred_source(
    target: Any, engines: MakeEngine, references: References
) -> None:
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    oracle, draft_model = OracleDrafter({PROMPTS[0]: references(PROMPTS[0], params)}, 1.0), make_draft_drafter(target)
    for drafters, source in (([oracle, draft_model], "oracle"), ([draft_model, oracle], "draft_model")):
        engine = engines(target, CombinedDrafter(drafters), max_tree_nodes=16, draft_length=4)
        _, finish = read(engine.submit(PROMPTS[0], params))
        assert finish.speculation.drafted_by_source == finish.speculation.accepted_by_source == {source: 32}


# --- Time, by the cost of steps ---------------------------------------------------------------------------------------


class Guesser(Drafter):
    """Guesses the token 0, which is always right, by chances; those of its model take time on the clock."""

    num_layers = 1
    num_forwards = 0

    def __init__(self, clock: SimpleNamespace, cost: StepCost, by_model: float, by_lookup: float | None) -> None:
        self._clock, self._cost, self._by_model, self._by_lookup = clock, cost, by_model, by_lookup
        self._rng = random.Random(1)

    def _guesses(self, chance: float, count: int) -> list[int]:
        return [0 if self._rng.random() < chance else 1 for _ in range(count)]

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        kinds = model_kinds(limits.max_depth)
        offers = [Proposal(reaches=request.rates.chain(kinds), steps_per_token=1, limits=limits)]
        if self._by_lookup is not None:
            draft = Draft.chain(self._guesses(self._by_lookup, 4), [("lookup", place) for place in range(4, 8)])
            offers.insert(0, Proposal(draft, request.rates.chain(draft.kinds)))
        return offers

    def propose(
        self, requests: Sequence[DraftingRequest], proposals: Sequence[Proposal], lengths: Sequence[int]
    ) -> list[Draft]:
        drafts = super().propose(requests, proposals, lengths)
        rows = [row for row, proposal in enumerate(proposals) if proposal.steps_per_token]
        count = max([lengths[row] for row in rows], default=0)
        self.num_forwards += count
        self._clock.now += count * self._cost.draft_seconds(1)
        for row in rows:
            drafts[row] = Draft.chain(self._guesses(self._by_model, lengths[row]), model_kinds(lengths[row]))
        return drafts


class SureHead(Guesser):
    """Is sure of some tokens, nine of ten of which are right, and of the others knows that hardly any is."""

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        *free, _ = super().consider(request, limits)
        depth = limits.max_depth
        return [*free, Proposal(reaches=(1.0,) * depth, steps_per_token=1, grows=True, limits=limits)]

    def propose(
        self, requests: Sequence[DraftingRequest], proposals: Sequence[Proposal], lengths: Sequence[int]
    ) -> list[Draft]:
        computed = [p.steps_per_token and length for p, length in zip(proposals, lengths, strict=True)]
        drafts = Drafter.propose(self, requests, proposals, lengths)
        for row, length in enumerate(computed):
            tokens: list[tuple[int, bool]] = []
            is_sure = bool(length)
            while is_sure and len(tokens) < len(proposals[row].reaches):
                self.num_forwards += 1
                self._clock.now += self._cost.draft_seconds(1)
                is_sure = self._rng.random() < self._by_model
                tokens.append(((0 if self._rng.random() < (0.9 if is_sure else 0.05) else 1), is_sure))
            if tokens:
                kinds = [("sure" if is_sure else "unsure", 0) for _, is_sure in tokens]
                drafts[row] = Draft.chain([token for token, _ in tokens], kinds)
        return drafts


def relative_time(
    monkeypatch: pytest.MonkeyPatch,
    widths: dict[tuple[int, int], float],
    draft: float,
    by_model: float,
    by_lookup: float | None = None,
    *,
    kind: type[Guesser] = Guesser,
    is_given: bool = True,
    rows: int = 1,
    steps: int = 400,
) -> float:
    """Seconds of so many steps over those of plain decoding for the same tokens, by the true cost of steps."""
    true, clock = StepCost(widths, draft), SimpleNamespace(now=0.0)
    monkeypatch.setattr(draft_planner, "measure_step_cost", lambda *_: StepCost(widths, draft))
    runner: Any = SimpleNamespace(
        is_width_free=False, takes_trees=True, pads_rows=True, graphs=None, clock=lambda: clock.now
    )
    runner.begin_turn, runner.make_next_graph = (lambda **_: None), (lambda _: None)
    drafter = kind(clock, true, by_model, by_lookup)
    planner = DraftPlanner(runner, drafter, 8, 16, "auto", StepCost(widths, draft) if is_given else None)
    nothing: Any = None
    shared, requests = AcceptanceRates(), []
    for index in range(rows):
        stream, params = CompletionStream(on_close=lambda: None), SamplingParams(max_new_tokens=100 * steps)
        requests.append(Request(index, (1, 2), params, 0, nothing, stream, AcceptanceRates(shared)))
        requests[-1].token_ids.append(3)
    num_tokens = 0
    for _ in range(steps):
        plan = planner.plan(requests)
        drafts = planner.propose(requests, plan)
        width = 1 + max(map(len, drafts))
        clock.now += true.verify_seconds(rows, width)
        paths = [path_of(draft) for draft in drafts]
        planner.learn(requests, plan, Verdict([], [[0] * width] * rows, paths, nothing, None))
        for request, path in zip(requests, paths, strict=True):
            request.token_ids += [0] * len(path)
            num_tokens += len(path)
    return float(clock.now) / (num_tokens / rows * true.verify_seconds(rows, 1))


def path_of(draft: Draft) -> list[int]:
    """The nodes that stand where the token 0 is always right."""
    path = [0]
    for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        if parent == path[-1] - 1 and token == 0:
            path.append(node + 1)
    return path


FREE = {(1, 1): 1.0, (1, 64): 1.0}
DEAR = {(1, 1): 1.0, (1, 2): 1.15, (1, 11): 2.5}


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("widths", [FREE, DEAR])
@pytest.mark.parametrize("draft", [0.05, 0.3])
def test_a_draft_that_is_always_wrong_costs_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch, widths: dict[tuple[int, int], float], draft: float, is_given: bool
) -> None:
    # What it takes to see that it is wrong included.
    assert relative_time(monkeypatch, widths, draft, 0.0, is_given=is_given) < 1.015
    # Beside free drafts it takes nothing of what those bring.
    both, alone = (relative_time(monkeypatch, widths, d, 0.0, 0.7, is_given=is_given) for d in (draft, 100.0))
    assert both < alone * 1.02


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("widths", [FREE, DEAR])
@pytest.mark.parametrize(("draft", "by_lookup"), [(0.05, None), (0.3, None), (0.05, 0.7), (0.3, 0.7)])
def test_a_head_that_is_never_sure_costs_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
    widths: dict[tuple[int, int], float],
    draft: float,
    by_lookup: float | None,
    is_given: bool,
) -> None:
    found, alone = (
        relative_time(monkeypatch, widths, d, share, by_lookup, kind=kind, is_given=is_given)
        for d, share, kind in ((draft, 0.0, SureHead), (100.0, 0.0, Guesser))
    )
    assert found < 1.02 * alone


def test_a_head_pays_by_the_tokens_that_it_is_sure_of(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two of five tokens are right, and one costs a third of a plain step with its forward: blindly that hardly pays.
    widths = {(1, 1): 1.0, (1, 2): 1.25, (1, 11): 3.5}
    found, blind = (
        relative_time(monkeypatch, widths, 0.1, share, kind=kind) for share, kind in ((0.4, SureHead), (0.4, Guesser))
    )
    assert found < 0.9 * blind


@pytest.mark.parametrize("by_model", [0.05, 0.1, 0.3])
def test_a_weak_draft_that_takes_long_is_left_alone(monkeypatch: pytest.MonkeyPatch, by_model: float) -> None:
    assert relative_time(monkeypatch, DEAR, 0.3, by_model) < 1.01


@pytest.mark.parametrize("rows", [1, 4])
def test_a_good_draft_brings_nearly_all_that_it_can(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    widths = {(1, 1): 1.0, (1, 17): 1.5, (4, 1): 1.2, (4, 17): 1.8}
    found = relative_time(monkeypatch, widths, 0.1, 0.8, is_given=False, rows=rows)
    true = StepCost(widths, 0.1)
    best = min(
        (true.verify_seconds(rows, 1 + n) + true.draft_seconds(n))
        / true.verify_seconds(rows, 1)
        / sum(0.8**i for i in range(n + 1))
        for n in range(9)
    )
    assert found < 1.06 * best


@pytest.mark.parametrize(("by_model", "by_lookup"), [(0.8, 0.3), (0.4, 0.8)])
def test_two_sources_are_no_worse_than_the_better_one(
    monkeypatch: pytest.MonkeyPatch, by_model: float, by_lookup: float
) -> None:
    both = relative_time(monkeypatch, FREE, 0.1, by_model, by_lookup, steps=1000)
    alone = (by_model, None) if by_model > by_lookup else (0.0, by_lookup)
    assert both < 1.04 * relative_time(monkeypatch, FREE, 0.1, *alone, steps=1000)
