"""Which kernels a step runs, for how long, and how long the device waits between them."""

from __future__ import annotations

from functools import partial

import torch

from tools.gpu_check.check import Check
from tools.gpu_check.runners import batch_of, free, plain, runner_of

_NUM_STEPS = 3
_TOP = 25


@torch.inference_mode()
def profile(check: Check) -> None:
    """Captured steps, with a trace, and eager ones."""
    for name in check.pick(("qwen1.5-1.8b", "llama-8b"), ("tiny",)):
        runner = runner_of(check, name, slots=8, length=1000, width=9)
        batch = batch_of(1, 8, 700, temperature=0.8)
        for _ in range(3):
            runner.begin_turn()
            runner.verify(batch)
        for way, verify in (("captured", runner.verify), ("eager", plain(runner).verify)):
            trace = check.out / f"{name}.trace.json.gz" if way == "captured" else None
            whole_us = 1e3 * check.timed(partial(verify, batch), 5, 1)[1]
            kernels = check.kernels(lambda verify=verify, batch=batch: _steps(check, partial(verify, batch)), trace)  # type: ignore[misc]
            busy_us = sum(us for _, _, us in kernels) / _NUM_STEPS
            check.note(
                profile=name,
                way=way,
                kernels=sum(count for _, count, _ in kernels) / _NUM_STEPS,
                step_us=whole_us,
                busy_us=busy_us,
                gap_us=whole_us - busy_us,
                top=[(key[:90], count / _NUM_STEPS, round(us / _NUM_STEPS, 1)) for key, count, us in kernels[:_TOP]],
            )
        del runner, verify
        free(check)


def _steps(check: Check, step: partial[object]) -> None:
    for _ in range(_NUM_STEPS):
        step()
        check.wait()
