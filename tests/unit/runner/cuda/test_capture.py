"""In what order a CUDA graph is captured, and what is done where that breaks off; torch's part is played."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_specdec.runner.cuda import broken_captures, capture
from langchain_specdec.runner.cuda.capture import CudaCapture
from langchain_specdec.runner.cuda.waiting import WaitingError
from langchain_specdec.runner.device_time import device_lock, seconds_of

CPU = torch.device("cpu")


def is_locked() -> bool:
    """Whether another thread would have to wait for the device."""

    def take() -> bool:
        if is_free := device_lock.acquire(blocking=False):
            device_lock.release()
        return is_free

    with ThreadPoolExecutor(1) as pool:
        return not pool.submit(take).result()


class PlayedGpu:
    """What of `torch.cuda` a capture calls, written down.

    Attributes:
        log: What was called.
        breaks: For each capture what its end fails with, or None.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.breaks: list[Exception | None] = []
        self.current = self.stream("main")
        self.num_streams = self.num_pools = 0
        replaced: dict[str, Any] = {
            "Stream": lambda device: self.new_stream(),
            "CUDAGraph": partial(PlayedGraph, self),
            "graph": self.graph,
            "stream": self.running,
            "device": lambda device: contextlib.nullcontext(),
            "current_device": lambda: 0,
            "current_stream": lambda device=None: self.current,
            "set_stream": partial(setattr, self, "current"),
            "graph_pool_handle": self.new_pool,
            "empty_cache": lambda: self.note("empty cache"),
        }
        for name, value in replaced.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: self.note(f"end {pool}"), raising=False)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.note("clear workspaces"), raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: self.note(f"release {pool}"), raising=False)

    def note(self, what: str) -> None:
        assert is_locked(), what
        self.log.append(what)

    def stream(self, name: str) -> Any:
        return PlayedStream(self, name)

    def new_stream(self) -> Any:
        self.num_streams += 1
        return self.stream(f"side {self.num_streams}")

    def new_pool(self) -> str:
        self.num_pools += 1
        return f"pool {self.num_pools}"

    @contextlib.contextmanager
    def running(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, graph: Any, *, stream: Any, capture_error_mode: str, pool: str = "own pool") -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.note(f"begin in {pool} on {stream.name}")
        with self.running(stream):
            # Leaves its stream in force where it breaks off, as torch does.
            yield
            self.finish()
        self.note("end")

    def finish(self) -> None:
        if self.breaks and (error := self.breaks.pop(0)) is not None:
            raise error


class PlayedStream:
    def __init__(self, gpu: PlayedGpu, name: str) -> None:
        self._gpu = gpu
        self.name = name

    def wait_stream(self, other: PlayedStream) -> None:
        self._gpu.note(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self._gpu.note(f"finish {self.name}")


class PlayedGraph:
    def __init__(self, gpu: PlayedGpu) -> None:
        self._gpu = gpu

    def replay(self) -> None:
        pass

    def reset(self) -> None:
        self._gpu.note("reset")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedGpu]:
    capture._side_stream.cache_clear()
    monkeypatch.setattr(broken_captures, "_broken", [])
    yield PlayedGpu(monkeypatch)
    capture._side_stream.cache_clear()


@pytest.fixture
def work(gpu: PlayedGpu) -> Callable[[], tuple[Tensor, ...]]:
    def run() -> tuple[Tensor, ...]:
        gpu.note(f"run on {gpu.current.name}, {'with' if gc.isenabled() else 'without'} collection")
        return (torch.zeros(1),)

    return run


BEFORE = [
    "side 1 waits for main",
    *["load", "run on side 1, with collection"] * 2,
    "load",
    "finish side 1",
]
RUN = "run on side 1, without collection"
# What cuBLAS works in is the graph's own: nobody else can give it up.
RECORDED = ["clear workspaces", RUN, "clear workspaces"]
AFTER = "main waits for side 1"


def invalid() -> RuntimeError:
    """What torch raises for a capture that something has broken off."""
    return RuntimeError("operation failed due to a previous error during capture")


def record(gpu: PlayedGpu, capture: CudaCapture, function: Any) -> Any:
    gpu.log.clear()
    try:
        return capture.record(lambda: gpu.note("load"), function)
    finally:
        assert gpu.current.name == "main"
        assert gc.isenabled()
        assert not is_locked()


def test_a_capture_runs_twice_beside_and_then_once_recorded(gpu: PlayedGpu, work: Any) -> None:
    first, second = CudaCapture(CPU), CudaCapture(CPU)
    kept = record(gpu, first, work)
    assert gpu.log == [*BEFORE, "begin in pool 1 on side 1", *RECORDED, "end", AFTER]
    # Graphs of one runner share memory, those of others do not; there is one side stream for all.
    also = record(gpu, first, work)
    assert gpu.log == [*BEFORE, "begin in pool 1 on side 1", *RECORDED, "end", AFTER]
    other = record(gpu, second, work)
    assert "begin in pool 2 on side 1" in gpu.log
    # A pool is gone with its last graph.
    del kept, also, other
    record(gpu, first, work)
    assert "begin in pool 3 on side 1" in gpu.log


def test_what_waits_is_not_even_begun(gpu: PlayedGpu, work: Any) -> None:
    with pytest.raises(WaitingError, match=r"^it waits for the device: aten.nonzero.default at test_capture.py:\d+$"):
        record(gpu, CudaCapture(CPU), lambda: (*work(), torch.ones(2).nonzero()))
    assert gpu.log == [*BEFORE[:-2], AFTER]


CLEANED = ["reset", "end pool 1", "release pool 1"]


def test_a_capture_that_breaks_off_is_cleaned_up_and_tried_again(
    gpu: PlayedGpu, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken_captures, "_launch_something", lambda: gpu.note("launch"))
    gpu.breaks = [invalid()]
    outputs, _ = record(gpu, CudaCapture(CPU), work)
    small = ["begin in own pool on side 1", "launch", "end"]
    again = ["begin in pool 2 on side 1", *RECORDED, "end"]
    assert gpu.log == [*BEFORE, "begin in pool 1 on side 1", *RECORDED, *CLEANED, *small, *again, AFTER]
    assert outputs[0].tolist() == [0.0]
    assert len(broken_captures._broken) == 1, "torch's allocator may still ask it"


def test_a_capture_that_breaks_off_twice_has_failed(gpu: PlayedGpu, work: Any) -> None:
    # The small capture of the clean-up fails too, as it cannot launch here.
    recorder = CudaCapture(CPU)
    gpu.breaks = [invalid(), invalid()]
    with pytest.raises(RuntimeError, match="operation failed"):
        record(gpu, recorder, work)
    assert gpu.log.count(RUN) == 2
    assert "release pool 1" in gpu.log
    assert "release pool 2" in gpu.log
    record(gpu, recorder, work)
    assert "begin in pool 3 on side 1" in gpu.log


@pytest.mark.parametrize("missing", ["_cuda_endAllocateToPool", "_cuda_releasePool"])
def test_a_torch_without_these_names_is_cleaned_up_as_far_as_can_be(
    gpu: PlayedGpu, work: Any, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, missing)
    monkeypatch.setattr(broken_captures, "_launch_something", lambda: gpu.note("launch"))
    gpu.breaks = [invalid()]
    record(gpu, CudaCapture(CPU), work)
    small = ["begin in own pool on side 1", "launch", "end"]
    assert gpu.log[-9:-1] == [*small, "begin in pool 2 on side 1", *RECORDED, "end"]


def test_the_name_of_older_versions_is_used(gpu: PlayedGpu, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    older = torch._C._cuda_endAllocateToPool
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    monkeypatch.setattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", older, raising=False)
    gpu.breaks = [invalid()]
    record(gpu, CudaCapture(CPU), work)
    assert [entry for entry in gpu.log if "pool 1" in entry] == ["begin in pool 1 on side 1", *CLEANED[1:]]


@pytest.mark.parametrize("is_broken", [False, True], ids=["the end holds", "the end breaks too"])
def test_memory_that_is_missing_is_told_and_not_tried_again(gpu: PlayedGpu, work: Any, is_broken: bool) -> None:
    calls = iter(range(3))

    def function() -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = work()
        if next(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        return outputs

    @contextlib.contextmanager
    def graph(*args: object, **kwargs: object) -> Iterator[None]:
        try:
            yield
        finally:
            if is_broken:
                raise invalid()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(torch.cuda, "graph", graph)
        record(gpu, CudaCapture(CPU), function)
    assert gpu.log.count(RUN) == 1
    assert "reset" in gpu.log


def test_an_interruption_is_cleaned_up_after_and_not_tried_again(gpu: PlayedGpu, work: Any) -> None:
    gpu.breaks = [KeyboardInterrupt()]  # type: ignore[list-item]
    with pytest.raises(KeyboardInterrupt):
        record(gpu, CudaCapture(CPU), work)
    assert gpu.log.count(RUN) == 1
    assert "release pool 1" in gpu.log


def test_the_collector_stays_off_where_it_was(gpu: PlayedGpu, work: Any) -> None:
    gc.disable()
    try:
        CudaCapture(CPU).record(lambda: None, work)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_memory_is_given_back_while_nobody_captures(gpu: PlayedGpu) -> None:
    CudaCapture(CPU).give_back_memory()
    assert gpu.log == ["empty cache"]


def test_captures_of_two_threads_come_one_after_the_other(gpu: PlayedGpu, work: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> tuple[Tensor, ...]:
        begun.set()
        assert go_on.wait(10)
        return (torch.zeros(1),)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(CudaCapture(CPU).record, lambda: None, slow)
        assert begun.wait(10)
        second = pool.submit(CudaCapture(CPU).record, lambda: None, work)
        assert gpu.log == ["side 1 waits for main"]
        go_on.set()
        first.result(10)
        second.result(10)
    assert gpu.log.index("end") < gpu.log.index("run on side 1, with collection")


def test_time_is_taken_by_waiting_for_this_thread_s_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Stream:
        def synchronize(self) -> None:
            log.append("finish")

    clock = iter((1.0, 3.5))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waits for the whole device"))
    monkeypatch.setattr("langchain_specdec.runner.device_time.time.perf_counter", lambda: next(clock))
    assert seconds_of(lambda: log.append("work"), torch.device("cuda", 0)) == 2.5
    assert log == ["finish", "work", "finish"]


def test_the_least_of_several_trials_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((3.0, 1.0, 2.0))
    monkeypatch.setattr(capture, "seconds_of", lambda action, device: (action(), next(seconds))[1])
    calls: list[None] = []
    assert CudaCapture(CPU).seconds(lambda: calls.append(None)) == 1.0
    assert len(calls) == 3


# --- On a GPU ---------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@needs_gpu
@pytest.mark.parametrize("num_breaks", [1, 2])
def test_a_cuda_capture_that_breaks_off_leaves_everything_as_it_was(num_breaks: int) -> None:
    capture, held = CudaCapture(torch.device("cuda", 0)), torch.ones(3, device="cuda")
    before = torch.cuda.current_stream()
    calls = itertools.count()

    def waits_in_the_capture() -> tuple[Tensor, ...]:
        # After the two warm-ups, unseen by whoever looks on in the second one.
        if 2 <= next(calls) < 2 + num_breaks:
            held.sum().item()
        return (held + 1,)

    def check(outputs: tuple[Tensor, ...], replay: Callable[[], None]) -> None:
        replay()
        assert outputs[0].tolist() == [2.0] * 3

    kept = capture.record(lambda: None, lambda: (held + 1,))
    if num_breaks == 1:
        check(*capture.record(lambda: None, waits_in_the_capture))
    else:
        with pytest.raises(RuntimeError):
            capture.record(lambda: None, waits_in_the_capture)
    assert torch.cuda.current_stream() == before
    assert (held * 2).tolist() == [2.0] * 3
    assert torch.rand(3, device="cuda").tolist() != [0.0] * 3, "torch may still think that it captures"
    torch.cuda.empty_cache()
    check(*kept)
    check(*capture.record(lambda: None, lambda: (held + 1,)))


@needs_gpu
def test_cuda_captures_of_several_threads_hold() -> None:
    held = torch.ones(1000, device="cuda")

    def record() -> list[float]:
        capture = CudaCapture(torch.device("cuda", 0))
        found = []
        for number in range(10):
            outputs, replay = capture.record(lambda: None, lambda number=number: (held + number,))  # type: ignore[misc]
            replay()
            found.append(float(outputs[0].mean()))
        return found

    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(record) for _ in range(3)]
    assert [result.result() for result in results] == [[1.0 + number for number in range(10)]] * 3
