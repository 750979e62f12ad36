"""What a process holds: files, memory, children that nobody waited for."""

from __future__ import annotations

import os
from pathlib import Path


def num_files() -> int:
    """File descriptors that are open in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_mb() -> int:
    """Memory that this process holds, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6
