"""How long measuring what steps cost may take, by a clock that the test sets."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from langchain_specdec.drafters.base import Drafter
from langchain_specdec.engine import step_cost
from langchain_specdec.engine.step_cost import StepCost, measure_step_cost
from langchain_specdec.runner import device_time
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.params import SamplingParams


class Measured:
    """What measuring brought on a machine where a forward takes what `seconds` says of its width."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], max_width: int = 33) -> None:
        self.now = 0.0
        self.widths: list[int] = []
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(step_cost, "time", clock)
        monkeypatch.setattr(device_time, "time", clock)

        def verify(batch: RowBatch) -> None:
            self.widths.append(batch.width)
            self.now += seconds(batch.width)

        runner: Any = SimpleNamespace(verify=verify, max_width=max_width, device=torch.device("cpu"))
        request: Any = SimpleNamespace(slot=0, num_cached=5, token_ids=[1], params=SamplingParams(), seed=0)
        cost = measure_step_cost(runner, Drafter(), request)
        assert cost is not None
        self.cost: StepCost = cost


def of_native(width: int) -> float:
    return 0.005 * (1 + 0.12 * (width - 1))


def test_fast_steps_are_measured_in_a_few_tenths_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch, of_native)
    assert measured.now <= 0.3
    # Each width twice at least, of which the first time does not count.
    assert {width: measured.widths.count(width) >= 2 for width in (1, 2, 3, 5, 8, 16, 32, 33)} == dict.fromkeys(
        (1, 2, 3, 5, 8, 16, 32, 33), True
    )
    for width in (1, 2, 8, 33):
        assert measured.cost.verify_seconds(1, width) == pytest.approx(of_native(width))


def test_slower_steps_may_take_longer_and_never_more_than_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for plain in (0.01, 0.03, 0.1, 0.3):
        measured = Measured(monkeypatch, lambda width: plain * of_native(width) / 0.005)  # noqa: B023
        assert measured.now <= min(60 * plain, 2.0) + 1e-9
        assert measured.cost.verify_seconds(1, 2) == pytest.approx(1.12 * plain)


def test_two_forwards_are_all_that_a_stalled_machine_has_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch, lambda width: 3.0)
    assert measured.widths == [1, 2]
    # They say nothing of what a width costs, and width is not taken to be free for that.
    assert measured.cost.verify_seconds(1, 1) == 3.0
    assert measured.cost.verify_seconds(1, 33) == pytest.approx(3.0 * (1 + 0.1 * 32))


def test_forwards_that_are_stalled_now_and_then_keep_within_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        measured = Measured(monkeypatch, lambda width: of_native(width) + (rng.random() < 0.2) * 0.5)  # noqa: B023
        # One that was under way when it was over, and the two that are always tried.
        assert measured.now <= 2.0 + 2 * 0.6
        costs = [measured.cost.verify_seconds(1, width) for width in range(1, 34)]
        assert costs == sorted(costs)


def test_a_runner_of_one_width_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Measured(monkeypatch, of_native, max_width=1).cost.verify_seconds(1, 1) == pytest.approx(0.005)
    assert Measured(monkeypatch, lambda width: 5.0, max_width=2).widths == [1, 2]
