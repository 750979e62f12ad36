"""Zeros that take memory only where something is written, and give it back."""

from __future__ import annotations

import contextlib
import mmap
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Not in Python's own module before 3.13; the number is Linux's on x86, ARM, POWER and RISC-V.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_STRICT = "2"


def is_memory_lazy() -> bool:
    """Whether the system hands out memory as it is written: not where it counts what is asked for, as Windows does."""
    if sys.platform != "linux":
        return sys.platform == "darwin"
    try:
        return _OVERCOMMIT.read_text(encoding="ascii").strip() != _STRICT
    except OSError:
        return True  # the kernel's default


class LazyZeros:
    """Zeros of which a page exists from the first byte that is written to it until it is cleared.

    Args:
        num_bytes: How many, at least 1.

    Attributes:
        array: The bytes; whoever holds it, or a view of it, holds the memory.

    Raises:
        OSError: The system has no room for so many addresses.
    """

    def __init__(self, num_bytes: int) -> None:
        self._map: mmap.mmap | None = None
        self.array: NDArray[np.uint8]
        if sys.platform == "linux":
            self._map = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
            # A slot of many positions would else take 2 MiB for its first token in each head of each layer.
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
            self.array = np.frombuffer(self._map, dtype=np.uint8)
        else:
            # Zeros that come from the system at once where it can, and cannot be given back for sure.
            self.array = np.zeros(num_bytes, dtype=np.uint8)

    def clear(self, begin: int, end: int) -> None:
        """Have zeros again from byte `begin` to before byte `end`; the pages that lie in it are given back."""
        page = mmap.PAGESIZE
        first, last = -(-begin // page) * page, end // page * page
        if sys.platform == "linux" and self._map is not None and first < last:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
            self.array[begin:first] = 0
            self.array[last:end] = 0
        else:
            self.array[begin:end] = 0
