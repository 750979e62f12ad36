"""Milliseconds of a step, eager and captured, by rows, width and length, and as a share of what the memory allows."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch

from langchain_specdec.bench.machine import read_bandwidth
from langchain_specdec.bench.module_weights import step_bytes
from langchain_specdec.runner import model_runner
from langchain_specdec.runner.runner import Runner
from tools.gpu_check.check import Check
from tools.gpu_check.runners import batch_of, captured, free, loaded_of, plain, runner_over

_MODELS = ("qwen1.5-1.8b", "llama-8b", "qwen1.5-0.5b", "llama-1b", "smollm2-135m")
_STARTS = (200, 1900)
# More slots than eight are for the models whose batches are measured.
_MANY = {"qwen1.5-1.8b": (8, 32, 64), "llama-8b": (8, 32)}
_DRAFT_LENGTH = 4


@torch.inference_mode()
def steps(check: Check) -> None:
    """One row in one slot and in eight, then as many rows as slots."""
    bandwidth = read_bandwidth(check.device) or 1.0
    for name in check.pick(_MODELS, ("tiny",)):
        loaded = loaded_of(check, name)
        least_ms = 1e3 * step_bytes(loaded.model) / bandwidth
        for slots in (1, *check.pick(_MANY.get(name, (8,)), (2,))):
            runner = runner_over(check, loaded, slots=slots, length=2100 if slots <= 8 else 1100, width=33)
            for rows, width, start in _cases(check, slots):
                _step(check, runner, {"model": name, "slots": slots}, (rows, width, start), least_ms)
            if slots == 1:
                _any_backend(check, runner, name)
                _draft(check, runner, name)
            del runner
            free(check)


def _cases(check: Check, slots: int) -> list[tuple[int, int, int]]:
    """Rows, width and start."""
    if slots == 1:
        widths, starts = check.pick(((1, 2, 5, 8, 16, 33), _STARTS), ((1, 5), _STARTS[:1]))
        return [(1, width, start) for start in starts for width in widths]
    one = [(1, 1, 200), (1, 8, 1900)] if slots == 8 else []
    return [*one, (slots, 1, 200), (slots, 5, 200)]


def _step(check: Check, runner: Runner, what: dict[str, Any], shape: tuple[int, int, int], least_ms: float) -> None:
    batch = batch_of(*shape)
    eager_host, eager = check.timed(partial(plain(runner).verify, batch), 5, 2)
    # Once to have the graph made, which is not to be timed.
    runner.begin_turn()
    runner.verify(batch)
    graph_host, graph = check.timed(partial(runner.verify, batch))
    rows, width, start = shape
    store = captured(runner).store
    check.note(
        step={**what, "rows": rows, "width": width, "start": start},
        least_ms=least_ms,
        eager_ms=eager,
        eager_host_ms=eager_host,
        graph_ms=graph,
        graph_host_ms=graph_host,
        share=least_ms / graph,
        graphs=len(store.graphs),
        rejected=list(store.rejected.values()),
    )
    check.expect(not store.failure, f"captures fail: {store.failure}")


def _any_backend(check: Check, runner: Runner, name: str) -> None:
    """What an eager step takes where PyTorch chooses how attention runs: cuDNN, say, plans anew for each length."""
    for is_pinned in (True, False):
        free_choice = mock.patch.object(model_runner, "pinned_backends", lambda _: nullcontext())
        with nullcontext() if is_pinned else free_choice:
            for start in (300, 301, 302):
                host, whole = check.timed(partial(plain(runner).verify, batch_of(1, 1, start)), 1, 0)
                check.note(pinned=is_pinned, model=name, start=start, eager_ms=whole, eager_host_ms=host)


def _draft(check: Check, runner: Runner, name: str) -> None:
    batch = batch_of(1, 1, 200)
    draft = partial(runner.chain, batch, _DRAFT_LENGTH, runner.vocab_size)
    eager = check.timed(partial(plain(runner).chain, batch, _DRAFT_LENGTH, runner.vocab_size), 5, 1)[1]
    for _ in range(2):
        runner.begin_turn()
        draft()
    check.note(draft=name, tokens=_DRAFT_LENGTH, eager_ms=eager, graph_ms=check.timed(draft)[1])
