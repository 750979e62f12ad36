"""What all parts share: the device, records, time, and expectations that may not be met."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tools.gpu_check.records import note


class Check:
    """One run of one part.

    Args:
        part: Its name, which all its records carry.
        out: Where records and other files go.
        is_rehearsal: Whether this is a CPU, where shapes are tiny and recordings stand for graphs.
    """

    def __init__(self, part: str, out: Path, *, is_rehearsal: bool) -> None:
        self.part = part
        self.out = out
        self.is_rehearsal = is_rehearsal
        self.device = torch.device("cpu" if is_rehearsal else "cuda:0")
        self.unmet: list[str] = []
        if is_rehearsal:
            torch.set_num_threads(1)

    def note(self, **values: Any) -> None:
        """Append a record; see `records.note`."""
        note(self.out, part=self.part, **values)

    def expect(self, is_met: bool, what: str) -> None:
        """Note what should hold and does not; the part goes on, and fails in the end."""
        if not is_met:
            self.unmet.append(what)
            self.note(unmet=what)

    def pick(self, on_gpu: Any, in_rehearsal: Any) -> Any:
        """The size of something, here."""
        return in_rehearsal if self.is_rehearsal else on_gpu

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if not self.is_rehearsal:
            torch.cuda.synchronize()

    def timed(self, action: Callable[[], object], count: int = 20, warm: int = 3) -> tuple[float, float]:
        """Median milliseconds of an action: until it returns on the host, and until the device is done.

        Args:
            action: What to time.
            count: How often; once in a rehearsal.
            warm: How often before that, untimed.
        """
        count, warm = self.pick((count, warm), (1, 1))
        for _ in range(warm):
            action()
        host, whole = [], []
        for _ in range(count):
            self.wait()
            started = time.perf_counter()
            action()
            host.append(time.perf_counter() - started)
            self.wait()
            whole.append(time.perf_counter() - started)
        return 1e3 * sorted(host)[count // 2], 1e3 * sorted(whole)[count // 2]

    def kernels(self, action: Callable[[], object], trace: Path | None = None) -> list[tuple[str, int, float]]:
        """What an action runs on the device, by name: how often, and its microseconds, the longest first.

        In a rehearsal these are PyTorch's operators.

        Args:
            action: What to look at; run once.
            trace: Where to write a trace for Chrome.
        """
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if not self.is_rehearsal:
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profile:
            action()
            self.wait()
        if trace is not None:
            profile.export_chrome_trace(str(trace))
        events = [e for e in profile.key_averages() if self.is_rehearsal or e.device_type.name == "CUDA"]
        name = self.pick("self_device_time_total", "self_cpu_time_total")
        return sorted(((e.key, e.count, getattr(e, name)) for e in events), key=lambda event: -event[2])

    def memory(self) -> dict[str, float]:
        """MiB that PyTorch has in use on the device and holds there, and the most that it had in use."""
        if self.is_rehearsal:
            return {}
        counts = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.max_memory_allocated())
        names = ("allocated_mib", "reserved_mib", "most_allocated_mib")
        return {name: round(count / 2**20, 1) for name, count in zip(names, counts, strict=True)}
