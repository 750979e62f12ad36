"""How a function on the device is recorded once and replayed as a whole: CUDA graphs, behind a small interface."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

from langchain_specdec.runner.cuda.broken_captures import clean_up
from langchain_specdec.runner.cuda.waiting import RefuseWaiting
from langchain_specdec.runner.device_time import device_lock, seconds_of
from langchain_specdec.runner.stateful_layers import stateful_layers

_NUM_TRIALS = 3

Outputs = tuple[Tensor, ...]


class Capture(Protocol):
    """Records functions. What a function reads lies in tensors that stay where they are."""

    def record(self, load: Callable[[], None], function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        """Record a function.

        Args:
            load: Puts the inputs in their place. Called before each run, as the function may change them.
            function: What to record. It launches work on the device and waits for nothing.

        Returns:
            The tensors that each replay writes what the function returns to, and what replays it. What they hold is
            good until anything that was recorded here is replayed.

        Raises:
            WaitingError: The function waits for the device.
            torch.OutOfMemoryError: There is no memory for it.
        """

    def seconds(self, action: Callable[[], object]) -> float:
        """What an action takes at least, its work on the device included; it is run several times."""

    def give_back_memory(self) -> None:
        """Return to the device what nobody uses."""


class CudaCapture:
    """CUDA graphs that share their memory, since no two of them run at a time.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._graphs: WeakSet[Any] = WeakSet()

    def record(self, load: Callable[[], None], function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        """See `Capture`. What breaks off is tried once more, as others in this process may have broken it."""
        with device_lock, _beside(self._device) as side:
            # Libraries set themselves up on first use, which cannot be recorded.
            load()
            function()
            load()
            with RefuseWaiting(self._device):
                function()
            load()
            side.synchronize()
            try:
                return self._capture(function, side)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                return self._capture(function, side)

    def seconds(self, action: Callable[[], object]) -> float:
        """See `Capture`."""
        return min(seconds_of(action, self._device) for _ in range(_NUM_TRIALS))

    def give_back_memory(self) -> None:
        """See `Capture`."""
        with device_lock, torch.cuda.device(self._device):
            torch.cuda.empty_cache()

    def _capture(self, function: Callable[[], Outputs], side: torch.cuda.Stream) -> tuple[Outputs, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        if not self._graphs:
            # A pool ends with its last graph, though tensors of it may live on.
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # Other threads may go on using the GPU meanwhile; this one may not do what cannot be recorded.
            recording = torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local")
            with _no_collection(), recording, _own_workspaces():
                outputs = function()
        except BaseException as error:
            clean_up(graph, self._pool, side)
            self._graphs = WeakSet()
            if isinstance(error.__context__, torch.OutOfMemoryError):
                # Ending a capture without it failed too, and says less.
                raise error.__context__ from None
            raise
        self._graphs.add(graph)
        return outputs, graph.replay


@contextlib.contextmanager
def _beside(device: torch.device) -> Iterator[torch.cuda.Stream]:
    """Run on the device's side stream what comes after all that this thread has launched, and before what it will."""
    with torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                yield side
        finally:
            # Where a recording breaks off, torch leaves its stream in force.
            torch.cuda.set_stream(current)
            current.wait_stream(side)


@cache
def _side_stream(device_index: int) -> torch.cuda.Stream:
    """The one of the process: cuBLAS keeps a workspace, and torch a cache, for each stream."""
    return torch.cuda.Stream(device_index)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the garbage collector, which might destroy other graphs, and so break off a capture."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Have cuBLAS take its memory from the graph's pool while it is recorded.

    A graph goes on using the address that it was recorded with. Memory that all of the process share is given up by
    others: torch.compile's graphs do so, and some versions of torch whenever a graph ends (pytorch/pytorch#193402).
    """
    clear: Callable[[], None] = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    clear()
    try:
        yield
    finally:
        clear()


def can_capture(model: nn.Module) -> str | None:
    """Why forwards of a model cannot be captured as CUDA graphs; None where they can."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if any(device.type != "cuda" for device in devices):
        return "not all of it is on a CUDA device"
    if len(devices) > 1:
        return "it is spread over several GPUs"
    if stateful_layers(model):
        return "it keeps recurrent states, and what becomes of them depends on what was accepted"
    return None
