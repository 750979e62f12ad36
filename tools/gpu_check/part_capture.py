"""What graphs cost to make and to hold, and whether what else the process does can spoil them."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch

from langchain_specdec.runner.cuda.graph_store import MAX_GRAPHS
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.trials import largest_error
from tools.gpu_check.check import Check
from tools.gpu_check.failed_capture import failed_capture
from tools.gpu_check.part_mask import MAX_ERROR
from tools.gpu_check.runners import batch_of, captured, free, new_capture, plain, runner_of

_MODEL = "qwen2.5-0.5b"
_WIDTHS = (1, 2, 3, 5, 8, 16, 33)
_STEPS = 200
_TIMEOUT = 30.0
_WAITS_EVERY = 200


@torch.inference_mode()
def capture(check: Check) -> None:
    """The costs on a quiet machine first; what may spoil the process last, in one of its own."""
    runner = _runner(check)
    _each(check, runner)
    _steady_memory(check, runner)
    _outlives(check, runner)
    _two_engines(check)
    _failed(check)
    for name, disturbance in (("collector", _garbage), ("another thread", _synchronizing)):
        _disturbed(check, name, disturbance)
    # Says itself how far it came.
    _in_a_row(check, runner)


def _runner(check: Check) -> Runner:
    return runner_of(check, _MODEL, slots=8, length=1024, width=33)


def _make(runner: Runner, rows: int, width: int, start: int, temperature: float) -> None:
    """Run a step that has a graph made."""
    runner.begin_turn()
    runner.verify(batch_of(rows, width, start, temperature))


def _each(check: Check, runner: Runner) -> None:
    """The time, nodes and memory of some graphs."""
    shapes = product(check.pick((1, 8), (1,)), check.pick(_WIDTHS, (1, 5)), (0.0, 0.8))
    for rows, width, temperature in shapes:
        before, started = check.memory(), time.perf_counter()
        _make(runner, rows, width, 100, temperature)
        seconds = time.perf_counter() - started
        after = check.memory()
        grown = {name: after[name] - before[name] for name in after}
        check.note(making={"rows": rows, "width": width, "temperature": temperature}, seconds=seconds, grown=grown)
    for width, temperature in ((1, 0.0), (5, 0.0), (5, 0.8)):
        kernels = check.kernels(partial(runner.verify, batch_of(1, width, 100, temperature)))
        check.note(nodes={"width": width, "temperature": temperature}, count=sum(count for _, count, _ in kernels))


def _in_a_row(check: Check, runner: Runner) -> None:
    """As many graphs as a runner may hold, and some more, which drive others out."""
    store, most = captured(runner).store, check.pick(MAX_GRAPHS + 4, 6)
    shapes = product((100, 400, 900), (1, 2, 4, 8), _WIDTHS, (0.0, 0.8))
    for start, rows, width, temperature in shapes:
        if store.num_made + len(store.rejected) >= most:
            break
        _make(runner, rows, width, start, temperature)
    rejected = {str(bucket): why for bucket, why in store.rejected.items()}
    check.note(made=store.num_made, held=len(store.graphs), rejected=rejected, failure=store.failure, **check.memory())
    check.expect(not store.failure, f"captures fail: {store.failure}")
    check.expect("it computes something else" not in rejected.values(), f"graphs compute something else: {rejected}")


def _steady_memory(check: Check, runner: Runner) -> None:
    """Memory after many steps: replays may not add to it."""
    before = check.memory()
    for step in range(check.pick(_STEPS, 5)):
        runner.verify(batch_of(1, 5, 100 + step % 50))
    check.wait()
    after = check.memory()
    check.note(steady_steps=_STEPS, before=before, after=after)
    grown = after.get("allocated_mib", 0.0) - before.get("allocated_mib", 0.0)
    check.expect(grown < 1.0, f"{_STEPS} steps take {grown:.1f} MiB more than one")


def _outlives(check: Check, runner: Runner) -> None:
    """A graph computes the same when other graphs are gone and memory that was free is full of something else."""
    store, batch = captured(runner).store, batch_of(1, 5, 100)
    for kept in (4, 5):
        _make(runner, 1, kept, 100, 0.0)
    expected = plain(runner).verify(batch).logits.tensor.clone()
    kept_bucket = next(bucket for bucket in store.graphs if (bucket.rows, bucket.width) == (1, 5))
    for bucket in [bucket for bucket in store.graphs if bucket != kept_bucket]:
        store._graphs.pop(bucket)
    getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
    free(check)
    junk = [torch.full((check.pick(2**22, 64),), float("nan"), device=check.device) for _ in range(check.pick(64, 2))]
    error = largest_error(runner.verify(batch).logits.tensor, expected)
    check.note(outlived=str(kept_bucket), error=error, junk_tensors=len(junk))
    check.expect(error < MAX_ERROR, f"a graph is off by {error:.3f} once others are gone")


def _disturbed(check: Check, name: str, disturbance: Callable[[Check], Any]) -> None:
    """Make graphs while something else goes on."""
    runner = _runner(check)
    with disturbance(check):
        for width in check.pick(range(1, 17), (1, 2)):
            _make(runner, 1, width, 100, 0.0)
    store = captured(runner).store
    check.note(beside=name, made=store.num_made, failure=store.failure)
    check.expect(not store.failure, f"captures beside {name} fail: {store.failure}")


@contextmanager
def _garbage(check: Check) -> Iterator[None]:
    """The collector runs every few allocations, and finds graphs in circles."""
    graphs = [_in_a_circle(check) for _ in range(check.pick(32, 2))]
    thresholds = gc.get_threshold()
    gc.set_threshold(10, 1, 1)
    graphs.clear()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _in_a_circle(check: Check) -> list[Any]:
    """A graph that only the collector can free."""
    x = torch.ones(8, device=check.device)
    circle: list[Any] = [new_capture(check).record(lambda: None, lambda: (x + 1,))]
    circle.append(circle)
    return circle


@contextmanager
def _synchronizing(check: Check) -> Iterator[None]:
    """Another thread uses the device all the time, and now and then waits for all of it, which breaks captures off."""
    stop = threading.Event()
    refused: list[str] = []

    def disturb() -> None:
        for turn in itertools.count():
            if stop.wait(check.pick(1e-3, 1e-4)):
                return
            try:
                torch.ones(100, device=check.device).sum().item()
                if turn % _WAITS_EVERY == 0:
                    check.wait()
            except RuntimeError as error:
                # It hit a capture: that thread is refused, and the capture is tried again.
                refused.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        check.note(device_waits_refused=len(refused), first=refused[:1])


def _two_engines(check: Check) -> None:
    """Two runners capture at the same time, each in a thread, as two engines of a process do."""
    runners = [_runner(check) for _ in range(2)]

    @torch.inference_mode()
    def make(runner: Runner) -> None:
        for width in check.pick(_WIDTHS, (1, 2)):
            _make(runner, 1, width, 100, 0.0)

    threads = [threading.Thread(target=make, args=(runner,)) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stores = [captured(runner).store for runner in runners]
    check.note(two_engines=[store.num_made for store in stores], failures=[store.failure for store in stores])
    check.expect(not any(store.failure for store in stores), "captures of two engines fail")


def _failed(check: Check) -> None:
    """A capture that fails, in a process that may be lost by it."""
    if check.is_rehearsal:
        failed_capture(check)
        return
    process = multiprocessing.get_context("spawn").Process(target=_failed_alone, args=(check,))
    process.start()
    process.join(_TIMEOUT)
    check.expect(process.exitcode == 0, f"after a failed capture the process ends with {process.exitcode}")
    process.kill()


def _failed_alone(check: Check) -> None:
    failed_capture(check)
    sys.exit(bool(check.unmet))
