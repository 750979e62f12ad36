"""Nobody waits for a graph, a measurement or a draft model's graph before the first token; they come when it is out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from langchain_specdec.completions.events import TokenEvent
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.engine import draft_planner, step_cost
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost, measure_step_cost
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.device_time import seconds_of
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.sampling.params import SamplingParams
from tests.support.recorded_graphs import RecordedCapture
from tests.support.tiny_models import References, loaded, perturbed, read, tiny_model, token_ids, wait_until

pytestmark = pytest.mark.usefixtures("only_operators")

PROMPT = (5, 6, 7, 8, 9, 5, 6, 7)
PARAMS = SamplingParams(max_new_tokens=40, ignore_eos=True)


@pytest.fixture
def make() -> Any:
    engines: list[Engine] = []

    def build(runner: Any, drafter: Drafter, **options: Any) -> Engine:
        engines.append(Engine(runner, drafter, loaded(runner.model).tokenizer, (256,), max_tree_nodes=8, **options))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def captured(model: Any) -> CapturedRunner:
    return CapturedRunner(ModelRunner(model, 4, 256, 9), RecordedCapture(), "reduce-overhead")


@pytest.mark.parametrize("is_captured", [True, False])
@pytest.mark.parametrize("has_draft_model", [True, False])
def test_the_first_token_takes_one_forward(is_captured: bool, has_draft_model: bool, make: Any) -> None:
    runner = captured(tiny_model())
    draft = captured(perturbed(tiny_model(), 0.05))
    drafters: list[Drafter] = [LookupTreeDrafter(5, is_shared=False)]
    if has_draft_model:
        drafters.append(DraftModelDrafter(draft, 258, 512))
    plain = runner.uncaptured
    engine = make(runner if is_captured else plain, CombinedDrafter(drafters))
    engine._start_thread = lambda: None
    stream = engine.submit(PROMPT, PARAMS)
    while engine.runner.num_forwards == 0:
        engine._run_once()
    assert engine.runner.num_forwards == 1
    assert runner.store.num_made == draft.store.num_made == 0
    assert isinstance(next(stream), TokenEvent)
    engine._run_once()
    if is_captured:
        # From here on graphs are made, one a turn.
        assert runner.store.num_made == 1
    while engine.num_running:
        engine._run_once()
    # What a CPU's steps cost cannot be assumed, so it was measured once a draft was to be had.
    assert engine._planner._is_cost_measured
    stream.close()


def test_a_request_that_joins_waits_for_no_graph_either(make: Any) -> None:
    runner = captured(tiny_model())
    engine = make(runner, LookupTreeDrafter(5, is_shared=False))
    engine._start_thread = lambda: None
    streams = [engine.submit(PROMPT, PARAMS)]
    for _ in range(4):
        engine._run_once()
    made = runner.store.num_made
    assert made > 0
    streams.append(engine.submit((1, 2, 3), PARAMS))
    engine._run_once()
    assert isinstance(next(streams[1]), TokenEvent)
    assert runner.store.num_made == made
    while engine.num_running:
        engine._run_once()
    for stream in streams:
        stream.close()


def test_what_nobody_could_measure_is_measured_while_idle(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # A GPU without graphs: width is assumed to be free until the first request is done.
    monkeypatch.setattr(ModelRunner, "is_width_free", True)
    calls: list[int] = []

    def spy(runner: Any, *rest: Any) -> StepCost | None:
        calls.append(runner.num_forwards)
        return measure_step_cost(runner, *rest)

    monkeypatch.setattr(draft_planner, "measure_step_cost", spy)
    references = References(tiny_model())
    engine = make(ModelRunner(tiny_model(), 2, 256, 9), LookupTreeDrafter(5, is_shared=False))
    assert token_ids(read(engine.submit(PROMPT, PARAMS))[0]) == references(list(PROMPT), PARAMS)
    assert wait_until(lambda: len(calls) == 1 and engine._planner._is_cost_measured)
    for prompt in (list(PROMPT), [1, 2, 3]):
        assert token_ids(read(engine.submit(prompt, PARAMS))[0]) == references(prompt, PARAMS)
    assert len(calls) == 1


def test_nothing_is_measured_between_graphs_that_are_there_and_some_that_are_not(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = captured(tiny_model())
    measured: list[bool] = []

    def spy(*args: Any) -> StepCost | None:
        measured.append(runner.awaits_graphs)
        return measure_step_cost(*args)

    monkeypatch.setattr(draft_planner, "measure_step_cost", spy)
    engine = make(runner, LookupTreeDrafter(5, is_shared=False))
    engine._start_thread = lambda: None
    short = SamplingParams(max_new_tokens=5, ignore_eos=True)
    for params in (short, short, PARAMS, PARAMS):
        stream = engine.submit(PROMPT, params)
        while engine.num_running or engine.num_waiting:
            engine._run_once()
        made = runner.store.num_made
        assert measured == [False] * (not runner.awaits_graphs)
        read(stream)
        assert runner.store.num_made == made
    assert measured == [False]


def test_what_is_prepared_is_measured_at_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # As `specdec bench` does: no measurement may be left to run beside the next contestant.
    monkeypatch.setattr(ModelRunner, "is_width_free", True)
    engine = make(ModelRunner(tiny_model(), 2, 256, 9), LookupTreeDrafter(5, is_shared=False))
    engine._start_thread = lambda: None
    engine.prepare(1, range(8, 50), PARAMS)
    stream = engine.submit(PROMPT, PARAMS)
    while not engine._planner._is_cost_measured:
        engine._run_once()
        assert engine.num_running, "it ran without having been measured"
    while engine.num_running:
        engine._run_once()
    read(stream)


def test_a_measurement_gives_way_to_a_request(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRunner, "is_width_free", True)
    began, go_on = threading.Event(), threading.Event()
    timed: Callable[..., float] = seconds_of
    counts: list[int] = []

    def slow(*args: Any) -> float:
        counts.append(1)
        began.set()
        go_on.wait(10)
        return timed(*args)

    results: list[tuple[bool, int]] = []

    def spy(*args: Any) -> StepCost | None:
        cost = measure_step_cost(*args)
        results.append((cost is None, len(counts)))
        return cost

    monkeypatch.setattr(step_cost, "seconds_of", slow)
    monkeypatch.setattr(draft_planner, "measure_step_cost", spy)
    engine = make(ModelRunner(tiny_model(), 2, 256, 9), LookupTreeDrafter(5, is_shared=False))
    read(engine.submit(PROMPT, PARAMS))
    assert began.wait(10)
    stream = engine.submit((1, 2, 3), PARAMS)
    go_on.set()
    read(stream)
    # It was dropped after the forward that ran. Once the request is done, another one begins.
    assert results[0] == (True, 1)


def test_a_measurement_that_fails_costs_nobody_anything(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRunner, "is_width_free", True)

    def fail(*args: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(draft_planner, "measure_step_cost", fail)
    engine = make(ModelRunner(tiny_model(), 2, 256, 9), LookupTreeDrafter(5, is_shared=False))
    references = References(tiny_model())
    for prompt in (list(PROMPT), [1, 2, 3]):
        assert token_ids(read(engine.submit(prompt, PARAMS))[0]) == references(prompt, PARAMS)


def test_a_draft_forward_is_assumed_to_cost_by_its_layers() -> None:
    draft = DraftModelDrafter(ModelRunner(tiny_model(num_hidden_layers=1), 2, 256, 9), 258, 512)
    drafter = CombinedDrafter([LookupTreeDrafter(5), draft])
    planner = draft_planner.DraftPlanner(captured(tiny_model(num_hidden_layers=4)), drafter, 5, 8, "auto", None)
    cost = planner._cost
    assert cost is not None
    assert cost.draft_seconds(2) == pytest.approx(0.5 * cost.verify_seconds(1, 1))
    assert cost.verify_seconds(8, 33) == cost.verify_seconds(1, 1)
