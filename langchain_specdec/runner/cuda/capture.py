"""How a function on the device is recorded once and replayed as a whole: CUDA graphs, behind a small interface."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Runs before a recording: libraries set themselves up on first use, which cannot be recorded.
_NUM_WARM_UPS = 2
_NUM_TRIALS = 3


class Capture(Protocol):
    """Records functions. What a function reads lies in tensors that stay where they are."""

    def record(
        self, load: Callable[[], None], function: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """Record a function.

        Args:
            load: Puts the inputs in their place. Called before each run, as the function may change them.
            function: What to record. It launches work on the device and waits for nothing.

        Returns:
            The tensors that each replay writes what the function returns to, and what replays it. What they hold is
            good until anything that was recorded here is replayed.
        """

    def seconds(self, action: Callable[[], object]) -> float:
        """What an action takes at least, its work on the device included; it is run several times."""


class CudaCapture:
    """CUDA graphs that share their memory, since no two of them run at a time.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(
        self, load: Callable[[], None], function: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """See `Capture`."""
        with torch.cuda.device(self._device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    for _ in range(_NUM_WARM_UPS):
                        load()
                        function()
                    load()
                side.synchronize()
                # Other threads may go on using the GPU meanwhile; this one may not do what cannot be recorded.
                with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                    outputs = function()
            finally:
                # Where a recording breaks off, torch leaves its stream in force.
                torch.cuda.set_stream(current)
                current.wait_stream(side)
        return outputs, graph.replay

    def seconds(self, action: Callable[[], object]) -> float:
        """See `Capture`."""
        taken = []
        for _ in range(_NUM_TRIALS):
            torch.cuda.synchronize(self._device)
            started = time.perf_counter()
            action()
            torch.cuda.synchronize(self._device)
            taken.append(time.perf_counter() - started)
        return min(taken)


def can_capture(model: nn.Module) -> str | None:
    """Why forwards of a model cannot be captured here; None where they can."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if any(device.type != "cuda" for device in devices):
        return "graphs are captured on CUDA only"
    if len(devices) > 1:
        return "it is spread over several GPUs"
    return None
