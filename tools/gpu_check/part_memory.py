"""Memory of the device: weights, slots and graphs, one after the other."""

from __future__ import annotations

import torch

from tools.gpu_check.bench_runs import run_bench
from tools.gpu_check.check import Check
from tools.gpu_check.part_bench import TARGET, common
from tools.gpu_check.runners import batch_of, captured, free, runner_of

_WIDTHS = (1, 2, 3, 5, 8, 16, 33)
# Rows whose graphs are made; graphs of many rows take the most.
_ROWS = {"llama-8b": (1, 8), "qwen1.5-1.8b": (1,)}


@torch.inference_mode()
def memory(check: Check) -> None:
    """Step by step, then by `specdec bench --memory`."""
    for name, all_rows in check.pick(_ROWS, {"tiny": (1,)}).items():
        free(check)
        runner = runner_of(check, name, slots=8, length=2048, width=33)
        check.note(memory=name, after="load", **check.memory())
        # The first forward takes the slots.
        runner.prefill(batch_of(1, 8, 0))
        check.note(memory=name, after="slots", **check.memory())
        for rows in all_rows:
            for width in check.pick(_WIDTHS, (1, 2)):
                for temperature in (0.0, 0.8):
                    runner.begin_turn()
                    runner.verify(batch_of(rows, width, 500, temperature))
            check.note(memory=name, after=f"{len(captured(runner).store.graphs)} graphs", **check.memory())
        del runner
    free(check)
    run_bench(check, "memory", f"--memory {TARGET} {common(check)} --category summarization --contestants plain")
