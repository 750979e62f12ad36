"""What torch leaves undone where a capture breaks off, done by hand, so that the process can go on.

Its allocator still takes the capture to be under way, and keeps the pool for it; some versions also refuse random
numbers until another capture has ended well. Names with an underscore are torch's own and change, so a step that
fails does not keep the others from trying.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch

# The allocator goes on asking these what belongs to their captures, so they may never be freed.
_broken: list[Any] = []


def clean_up(graph: Any, pool: Any, stream: torch.cuda.Stream) -> None:
    """Undo a capture that broke off; call it with the lock on the device held. Its pool is not to be used again.

    Args:
        graph: The `torch.cuda.CUDAGraph`.
        pool: The handle of its pool; other graphs in it stay good.
        stream: The stream of the capture.
    """
    _broken.append(graph)
    for step in (graph.reset, partial(_end_allocation, pool), partial(_capture_anything, stream)):
        with contextlib.suppress(Exception):
            step()


def _end_allocation(pool: Any) -> None:
    # The allocator of pinned memory has no name in Python; it stays as it is, and grows slower.
    # Until torch 2.7 it had another name.
    end = getattr(torch._C, "_cuda_endAllocateToPool", None) or torch._C._cuda_endAllocateCurrentStreamToPool  # type: ignore[attr-defined]
    device = torch.cuda.current_device()
    # Raises if the capture had come so far by itself; then the graph has let go of its pool too.
    end(device, pool)
    torch._C._cuda_releasePool(device, pool)


def _capture_anything(stream: torch.cuda.Stream) -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        _launch_something()


def _launch_something() -> None:
    torch.zeros(1, device=torch.device("cuda", torch.cuda.current_device()))
