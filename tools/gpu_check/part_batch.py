"""Many prompts at once: tokens a second, and how much of a step is Python's."""

from __future__ import annotations

import time
from typing import Any

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.sampling.params import SamplingParams
from tools.gpu_check.bench_runs import run_bench
from tools.gpu_check.check import Check
from tools.gpu_check.part_bench import TARGET, common
from tools.gpu_check.runners import backend_of, free, model_of


def batch(check: Check) -> None:
    """The engine's host time, then ours beside `generate`, which may be cut."""
    model, tokenizer = model_of(check, "qwen1.5-1.8b")
    for count in check.pick((1, 8, 32, 64), (2,)):
        _host_share(check, model, tokenizer, count)
        free(check)
    del model
    for count in check.pick((8, 32, 64), (2,)):
        contestants = f"--contestants plain@1,plain@{count},auto@{count},hf@{count}"
        run_bench(check, f"batch {count}", f"{TARGET} {common(check)} --batch {count} --ignore-eos {contestants}")


def _host_share(check: Check, model: Any, tokenizer: Any, count: int) -> None:
    """Time within `verify`, which launches, and the whole of a step; the rest waits for the device or is Python."""
    backend = backend_of(check, model, tokenizer, is_captured=True, drafter="none", num_slots=count, max_length=256)
    params = SamplingParams(max_new_tokens=check.pick(64, 4), ignore_eos=True)
    requests = [CompletionRequest([5 + row, 6, 7, 8], params) for row in range(count)]
    backend.complete(requests)
    runner: Any = backend.engine.runner
    launching: list[float] = []
    verify = runner.verify

    def timed_verify(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        found = verify(*arguments, **options)
        launching.append(time.perf_counter() - started)
        return found

    runner.verify = timed_verify
    started = time.perf_counter()
    backend.complete(requests)
    seconds = time.perf_counter() - started
    num_steps = max(len(launching), 1)
    step_ms, launch_ms = 1e3 * seconds / num_steps, 1e3 * sum(launching) / num_steps
    check.note(host_share=count, steps=num_steps, step_ms=step_ms, launch_ms=launch_ms)
    backend.close()
