"""How often drafts are looked for while none pay: never for more than a small share of plain decoding's time."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.drafters.acceptance import AcceptanceRates
from langchain_specdec.drafters.base import Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.engine import draft_planner
from langchain_specdec.engine.draft_planner import DraftPlanner
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.sampling.params import SamplingParams

LOOK_SECONDS = 0.001
STEPS = 1000


class Looker(Drafter):
    """Offers one token, which is reached by a chance that the test sets, and takes a while to find it."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock, self.chance, self.num_looks = clock, 0.0, 0

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        self.num_looks += 1
        self.clock.now += LOOK_SECONDS
        return [Proposal(Draft.chain([1], [("lookup", 1)]), (self.chance,))]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(draft_planner, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def make_planner(
    monkeypatch: pytest.MonkeyPatch, drafter: Drafter, cost: StepCost, *, is_given: bool, pads_rows: bool = True
) -> DraftPlanner:
    monkeypatch.setattr(draft_planner, "measure_step_cost", lambda *_: cost)
    runner: Any = SimpleNamespace(
        is_width_free=False, takes_trees=True, pads_rows=pads_rows, graphs=None, begin_turn=lambda **_: None
    )
    runner.make_next_graph = lambda _: None
    return DraftPlanner(runner, drafter, 10, 0, "auto", cost if is_given else None)


def running(rows: int, constraint: Any = None) -> list[Request]:
    no_stopper: Any = None
    params = SamplingParams(max_new_tokens=10 * STEPS)
    requests = []
    for index in range(rows):
        stream = CompletionStream(on_close=lambda: None)
        request = Request(index, (1, 2), params, 0, no_stopper, stream, AcceptanceRates(), constraint)
        request.token_ids.append(3)
        requests.append(request)
    return requests


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("seconds", [0.02, 0.2])
def test_looking_takes_a_small_share_of_the_time_at_most_while_nothing_pays(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, rows: int, seconds: float
) -> None:
    drafter = Looker(clock)
    steep = StepCost({(rows, 1): seconds, (rows, 2): 2 * seconds})
    planner, requests = make_planner(monkeypatch, drafter, steep, is_given=False), running(rows)
    # The first looks are free.
    for _ in range(4):
        planner.plan(requests)
    assert drafter.num_looks == 4 * rows
    drafter.num_looks = 0
    for _ in range(STEPS):
        planner.plan(requests)
    share = drafter.num_looks * LOOK_SECONDS / (STEPS * seconds)
    # No more often than at each step.
    expected = min(0.004, rows * LOOK_SECONDS / seconds)
    assert 0.8 * expected <= share <= 1.3 * expected


def test_a_text_that_turns_predictable_is_looked_at_in_each_step(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    drafter = Looker(clock)
    cost = StepCost({(8, 1): 0.02, (8, 2): 0.025})
    planner, requests = make_planner(monkeypatch, drafter, cost, is_given=False), running(8)
    for _ in range(STEPS):
        planner.plan(requests)
    drafter.chance = 1.0
    for _ in range(STEPS):
        planner.plan(requests)
    drafter.num_looks = 0
    assert planner.plan(requests).lengths == (1,) * 8
    assert drafter.num_looks == 8


def test_given_costs_and_grammars_are_looked_at_in_each_step(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    steep = StepCost({(8, 1): 0.02, (8, 2): 0.04})
    given = Looker(clock)
    planner, requests = make_planner(monkeypatch, given, steep, is_given=True), running(8)
    # A grammar forces tokens, which are never passed over.
    forced = Looker(clock)
    measured, constrained = make_planner(monkeypatch, forced, steep, is_given=False), running(8, SimpleNamespace())
    for _ in range(STEPS):
        planner.plan(requests)
        measured.plan(constrained)
    assert given.num_looks == forced.num_looks == 8 * STEPS


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ((50, 40, 30), [0]),
        ((30, 40, 50), [2]),
        ((50, 50, 30), []),
        ((50, 50, 50), []),
        ((50, 50), [0]),
        ((49, 50), [1]),
    ],
)
def test_where_rows_are_not_padded_only_a_text_that_others_wait_for_drafts(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, budgets: tuple[int, ...], expected: list[int]
) -> None:
    drafter = Looker(clock)
    drafter.chance = 0.9
    cost = StepCost({(1, 1): 0.02, (1, 2): 0.03})
    planner, requests = make_planner(monkeypatch, drafter, cost, is_given=False, pads_rows=False), running(len(budgets))
    for request, budget in zip(requests, budgets, strict=True):
        request.params = SamplingParams(max_new_tokens=budget)
    planner.plan(requests[:1])  # costs are measured now
    lengths = planner.plan(requests).lengths
    assert [row for row, length in enumerate(lengths) if length] == expected


def test_where_rows_are_not_padded_all_draft_where_tokens_cost_little(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    drafter = Looker(clock)
    drafter.chance = 0.9
    cost = StepCost({(1, 1): 0.02, (1, 2): 0.022})
    planner, requests = make_planner(monkeypatch, drafter, cost, is_given=False, pads_rows=False), running(4)
    planner.plan(requests[:1])  # costs are measured now
    assert all(planner.plan(requests).lengths)
