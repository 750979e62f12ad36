"""Weights that are mapped from their file, and how what was read of them leaves memory.

Loaders map a checkpoint instead of copying it. What is read of a mapping then counts as memory of this process, for as
long as any weight of the file is in use: weights that were packed would stay twice.
"""

from __future__ import annotations

import ctypes
from mmap import PAGESIZE

import psutil
from torch import Tensor, nn

_MADV_DONTNEED = 4  # Linux, all processors but Alpha


class MappedWeights:
    """What of this process's memory is mapped from files and unchanged, as of now: reading it again gives the same.

    On systems that do not tell, there is none.
    """

    def __init__(self) -> None:
        try:
            self._madvise = ctypes.CDLL(None).madvise
            self._regions = _unchanged_regions()
        except (AttributeError, OSError, TypeError, ValueError, psutil.Error):
            self._regions = []

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether all of a tensor is mapped from a file."""
        start, end = _span(tensor)
        return any(first <= start and end <= last for first, last in self._regions)

    def drop(self, tensor: Tensor) -> None:
        """Let what was read of a tensor leave memory, if it is mapped; whoever reads it again reads the file."""
        if tensor not in self:
            return
        start, end = _span(tensor)
        # Whole pages of its own.
        start = -(-start // PAGESIZE) * PAGESIZE
        end = end // PAGESIZE * PAGESIZE
        if start < end:
            self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def settle_weights(model: nn.Module, mapped: MappedWeights) -> None:
    """Copy the weights that are read whole in each step, and leave mapped those of which a step reads some rows.

    Args:
        model: A model whose linear layers are packed. Embeddings are what is left of its large weights.
        mapped: What is mapped.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    left = [p for p in model.parameters() if id(p) in tables and p.data in mapped]
    kept = {id(parameter) for parameter in left}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.clone()
    # In the end, since the system reads some way around what is asked for.
    for parameter in left:
        mapped.drop(parameter.data)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of a contiguous tensor's first byte and of the one after its last."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def _unchanged_regions() -> list[tuple[int, int]]:
    """Address ranges that are mapped from files and of which no page was written to."""
    # A page that counts as anonymous, or is swapped out, is this process's own: it was written to.
    maps = psutil.Process().memory_maps(grouped=False)
    unchanged = [m.addr.split("-") for m in maps if m.path.startswith("/") and not m.anonymous and not m.swap]
    return [(int(start, 16), int(end, 16)) for start, end in unchanged]
