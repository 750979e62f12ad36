"""Measures what steps cost on this machine, before the first step whose draft length depends on it.

It is measured anew whenever layers begin or cease to run compiled, and when one row has all its captured graphs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from langchain_specdec.drafters.base import Drafter
from langchain_specdec.engine.draft_length import StepCost
from langchain_specdec.engine.graphs import WIDTHS
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.rows import RowBatch
from langchain_specdec.engine.runner import ModelRunner
from langchain_specdec.noise import Noise

__all__ = ["measure_step_cost"]

_BUDGET_SECONDS = 2.0
_MAX_ROUNDS = 5


def measure_step_cost(runner: ModelRunner, drafter: Drafter, request: Request) -> StepCost:
    """Time target forwards of several widths, interleaved, and a draft forward.

    They run in the request's own slot beyond its text, where whatever they leave is overwritten. Widths that the time
    does not suffice for, and several rows at once, are extrapolated until steps of that kind have run.

    Args:
        runner: The target model.
        drafter: The drafter in use.
        request: A request that is about to decode.

    Returns:
        The least costs, since whatever else the machine does only adds to them; and none above that of a wider
        forward, for the same reason. At most 5 rounds of at most 9 forwards. No forward starts that would not be over
        after 2 seconds by the ones before it, except for two of each of the two narrowest widths.
    """
    widths = sorted({w for w in WIDTHS if w < runner.max_width} | {runner.max_width})
    token = request.token_ids[-1]
    noise = Noise.of([request.params], [request.seed])
    seconds: dict[int, list[float]] = {}
    draft_seconds = []
    deadline = time.perf_counter() + _BUDGET_SECONDS
    for round_number in range(_MAX_ROUNDS):
        latest, previous = 0.0, 1
        for width in list(widths):
            if width not in widths[:2] and time.perf_counter() + latest * width / previous > deadline:
                # What could not even be tried is left out, so that the rounds compare the same widths.
                if round_number < 2:
                    del widths[widths.index(width) :]
                break
            tokens = [token] * width

            def verify(tokens: list[int] = tokens) -> None:
                runner.verify(RowBatch([request.slot], [request.num_cached], [tokens], noise=noise))

            latest, previous = _timed(verify, runner.device), width
            # The first round pays for allocations and for kernels that are picked on first use.
            if round_number:
                seconds.setdefault(width, []).append(latest)
        draft_seconds.append(drafter.measure_step(request))
        if round_number and time.perf_counter() > deadline:
            break
    least = {(1, width): min(min(seconds[w]) for w in widths if w >= width) for width in widths}
    return StepCost(least, min(draft_seconds))


def _timed(action: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
