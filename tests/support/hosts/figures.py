"""What a process holds: files, memory, slots of its model, children that nobody waited for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from langchain_specdec import SpeculativeLLM
from tests.support.tiny_models import wait_until


def num_files() -> int:
    """File descriptors that are open in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_mb() -> int:
    """Memory that this process holds, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6


def taken_slots(llm: SpeculativeLLM) -> int:
    """Requests that hold a slot or wait for one and do not let go of it.

    A text reaches its reader a moment before its slot is free.
    """
    backend: Any = llm.backend
    engine = backend.engine
    wait_until(lambda: engine.num_running == engine.num_waiting == 0)
    return int(engine.num_running + engine.num_waiting)
