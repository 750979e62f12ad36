"""Weights that are mapped from their file: how what was read leaves memory, and how they get memory of their own.

Loaders map a checkpoint instead of copying it. What is read of a mapping then counts as memory of this process, for as
long as any weight of the file is in use: weights that were packed would stay twice. And it is the file's: it changes
with the file.
"""

from __future__ import annotations

import ctypes
import sys
from mmap import PAGESIZE

import psutil
from torch import Tensor, nn

_MADV_DONTNEED = 4  # Linux, all processors but Alpha


class MappedWeights:
    """What of this process's memory is mapped from files, as of now.

    What of it is unchanged can leave memory, and be read again. On systems that do not tell, that is none of it.
    """

    def __init__(self) -> None:
        self._files: list[tuple[int, int]] | None = None
        self._regions: list[tuple[int, int]] = []
        try:
            self._madvise = ctypes.CDLL(None).madvise
            self._files, self._regions = _regions_of_files()
        except (AttributeError, OSError, TypeError, ValueError, psutil.Error):
            return

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether all of a tensor is mapped from a file and unchanged."""
        start, end = _span(tensor)
        return any(first <= start and end <= last for first, last in self._regions)

    def may_touch(self, tensor: Tensor) -> bool:
        """Whether part of a tensor may be mapped from a file; False only where the system tells that none is."""
        start, end = _span(tensor)
        return self._files is None or any(first < end and start < last for first, last in self._files)

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


def copy_mapped(model: nn.Module, mapped: MappedWeights) -> None:
    """Give weights that are mapped from files memory of their own.

    A file that is overwritten or cut short while the model runs would change its text or end the process, and a
    private mapping is no protection: pages that were only read are still the file's.

    Args:
        model: Whose weights, and buffers, may be mapped. What was packed is not among them any more.
        mapped: What is mapped.
    """
    for holder in (*model.parameters(), *model.buffers()):
        tensor = holder.data
        if tensor.device.type == "cpu" and mapped.may_touch(tensor):
            holder.data = tensor.clone()
            mapped.drop(tensor)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and of the one after its last."""
    if not tensor.numel():
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _regions_of_files() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Address ranges that are mapped from files, and those of them of which no page was written to."""
    found: list[tuple[int, int]] = []
    unchanged: list[tuple[int, int]] = []
    if sys.platform != "linux":  # psutil tells it of Linux only
        raise OSError
    for region in psutil.Process().memory_maps(grouped=False):
        if region.path.startswith("/"):
            first, last = (int(end, 16) for end in region.addr.split("-"))
            found.append((first, last))
            # A page that counts as anonymous, or is swapped out, is this process's own: it was written to.
            if not region.anonymous and not region.swap:
                unchanged.append((first, last))
    return found, unchanged
