"""Contestants make all graphs of their steps, the target's and the draft model's, before they are timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from langchain_specdec.bench import build, ours, weights
from langchain_specdec.bench.build import set_up
from langchain_specdec.bench.contestant import Prompt, parse_contestants
from langchain_specdec.bench.contestant_engine import EngineContestant
from langchain_specdec.bench.header import describe_graphs
from langchain_specdec.bench.measure import grouped
from langchain_specdec.bench.plan import Plan
from langchain_specdec.bench.workload import Question
from langchain_specdec.models import make_runner as factory
from langchain_specdec.models import module_runner
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.cuda.graph_store import GraphStore
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.sampling.params import SamplingParams
from tests.support.recorded_graphs import RecordedCapture

pytestmark = [pytest.mark.slow, pytest.mark.transformers, pytest.mark.usefixtures("only_operators")]

QUESTIONS = [Question(str(i), "qa", f"the cat {i} sat on the mat, the cat {i} sat on") for i in range(4)]


def capture_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the bench's runners capture, as they do on a GPU."""
    monkeypatch.setattr(module_runner, "can_pack", lambda model: False)
    monkeypatch.setattr(factory, "native_library", lambda: None)

    def make(loaded: Any, *, compile: str, **options: Any) -> CapturedRunner:  # noqa: A002 - the name that users give
        runner = factory.make_runner(loaded, **options)
        assert isinstance(runner, ModelRunner)
        return CapturedRunner(runner, RecordedCapture(), "auto")

    monkeypatch.setattr(ours, "make_runner", make)
    for module in ("local", "local_drafts"):
        monkeypatch.setattr(f"langchain_specdec.backends.{module}.make_runner", make)
    load = weights.load_weights
    monkeypatch.setattr(build, "load_weights", lambda *args, **options: replace(load(*args, **options), captured=[]))


def plan(names: Sequence[str], batch: int, **params: Any) -> Plan:
    sampling = SamplingParams(**{"max_new_tokens": 12, "seed": 0, "ignore_eos": True, **params})
    return Plan(
        "random:tiny",
        parse_contestants(names, has_draft_model=True, batch=batch),
        sampling,
        draft_model="random:tiny",
        batch=batch,
        device="cpu",
        # Emptying the slots takes steps too, which are not timed and need no graph.
        keep_prefixes=True,
        synthetic_cost=None,
        compile="auto",
    )


def runners_of(contestant: Any) -> list[CapturedRunner]:
    assert isinstance(contestant, EngineContestant)
    engine = contestant._engine
    runners = [engine.runner, *engine.drafter.runners]
    assert all(isinstance(runner, CapturedRunner) for runner in runners)
    return runners  # type: ignore[return-value]


def counts(runner: CapturedRunner) -> tuple[int, int]:
    """How many graphs were made, and how many forwards ran without one."""
    capture: Any = runner.store._capture
    return capture.num_recorded, runner.num_forwards - capture.num_replayed


@pytest.mark.parametrize(
    ("batch", "temperature", "names"),
    [(1, 0.8, ["plain", "draft_model:3", "auto"]), (3, 0.0, ["plain", "auto@2", "synthetic:4"])],
)
def test_runs_make_no_graph_and_lack_none(
    batch: int, temperature: float, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capture_on_cpu(monkeypatch)
    with set_up(plan(names, batch, temperature=temperature), QUESTIONS) as setup:
        groups = grouped(setup.prompts, batch)
        texts = {}
        for contestant in setup.contestants:
            contestant.warm_up(groups)
            if contestant.name == "synthetic:4":
                # It is told the answers before the clock starts.
                for group in groups:
                    contestant.run(group)
            runners = runners_of(contestant)
            before = [counts(runner) for runner in runners]
            texts[contestant.name] = [contestant.run(group).token_ids for group in groups]
            assert [counts(runner) for runner in runners] == before, contestant.name
            for runner in runners:
                assert runner.store.is_frozen
                assert (runner.store.failure, runner.store.rejected) == ("", {})
                # Prompts and answers end below the second bucket, so graphs are of one length.
                assert {bucket.length for bucket in runner.store.graphs} == {min(256, runner.cache.max_length)}
                assert {bucket.is_sampled for bucket in runner.store.graphs} == {temperature > 0}
        assert all(found == texts["plain"] for found in texts.values())
        described = describe_graphs(setup.target.captured, setup.target.obstacle)
    assert described is not None
    kinds = [graph["shape"].split()[0] for graph in described["graphs"] if graph["is_used"]]
    assert kinds.count("draft") == sum(
        len(runner.store.graphs) for c in setup.contestants for runner in runners_of(c)[1:]
    )
    assert len([c for c in setup.contestants if len(runners_of(c)) == 2]) == len(names) - 1


def warm(contestant: Any, *lengths: int) -> None:
    contestant.warm_up([[Prompt(str(n), "qa", tuple(range(3, 3 + n)))] for n in lengths])


def test_only_lengths_rows_and_widths_that_come_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    capture_on_cpu(monkeypatch)
    question = Question("1", "qa", "the cat sat on the mat. " * 40)
    with set_up(plan(["plain@4", "draft_model:3@4"], 4), [question]) as setup:
        plain, drafting = setup.contestants
        warm(plain, 40, 60)
        assert {(b.rows, b.width, b.length) for b in runners_of(plain)[0].store.graphs} == {
            (1, width, 256) for width in (1, 2)
        }
        warm(drafting, 240, 300)
        target, draft = (runner.store.graphs for runner in runners_of(drafting))
        assert {(b.rows, b.width, b.length) for b in target} == {
            (1, width, length) for width in (1, 2, 3, 4) for length in (256, 512)
        }
        assert {(b.rows, b.width, b.length) for b in draft} == {
            (1, width, length) for width in (1, 2) for length in (256, 512)
        }


def test_the_limit_of_graphs_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    capture_on_cpu(monkeypatch)
    monkeypatch.setattr("langchain_specdec.runner.cuda.captured_runner.GraphStore", partial(GraphStore, max_graphs=3))
    with set_up(plan(["draft_model:3"], 3), QUESTIONS) as setup:
        (contestant,) = setup.contestants
        groups = grouped(setup.prompts, 3)
        contestant.warm_up(groups)
        before = [counts(runner)[0] for runner in runners_of(contestant)]
        contestant.run(groups[0])
        # One row comes first.
        assert before == [3, 3]
        assert [counts(runner)[0] for runner in runners_of(contestant)] == before
        assert {b.rows for b in runners_of(contestant)[0].store.graphs} == {1}
