"""The real model that comes along: how soon a cold engine answers, and what speculation is worth on real prompts."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.models import embedded as embedded_model
from langchain_specdec.sampling.params import SamplingParams
from tools.gpu_check.bench_runs import run_bench
from tools.gpu_check.check import Check
from tools.gpu_check.child import LeftOutError

_CONTESTANTS = "plain,auto,auto@8,hf,hf-prompt-lookup:10"


def embedded(check: Check) -> None:
    """A cold engine in a process of its own, then the workload, which `GPU_CHECK_WORKLOAD` names."""
    if not embedded_model.is_available():
        raise LeftOutError("the embedded model is not installed")
    if check.is_rehearsal:
        cold_engine(check)
    else:
        process = multiprocessing.get_context("spawn").Process(target=cold_engine, args=(check,))
        process.start()
        process.join()
        check.expect(process.exitcode == 0, f"the cold engine's process ends with {process.exitcode}")
    path = os.environ.get("GPU_CHECK_WORKLOAD", "")
    workload = f"--workload {path}" if path and Path(path).exists() else ""
    for dtype in check.pick(("bfloat16", "float32"), ("float32",)):
        compiled = check.pick(f"--dtype {dtype} --compile reduce-overhead", "")
        limits = "--limit 1 --max-prompt-tokens 900 --max-new-tokens 96"
        contestants = f"--contestants {check.pick(_CONTESTANTS, 'plain,auto')}"
        run_bench(check, f"embedded {dtype}", f"{workload} {compiled} {limits} {contestants}")


def cold_engine(check: Check) -> None:
    """Load the model, and time the first requests."""
    started = time.perf_counter()
    backend = LocalBackend("embedded", dtype=check.pick("bfloat16", "float32"), device=str(check.device))
    check.note(loaded_seconds=time.perf_counter() - started)
    params = SamplingParams(max_new_tokens=check.pick(64, 4))
    for number in range(check.pick(4, 2)):
        started = time.perf_counter()
        stream = backend.stream(CompletionRequest("The sea is", params))
        next(stream)
        first = time.perf_counter() - started
        num_events = 1 + sum(1 for _ in stream)
        check.note(request=number, first_seconds=first, seconds=time.perf_counter() - started, events=num_events)
    backend.close()
