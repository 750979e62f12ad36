"""What this machine is: processor, memory, device; and the wall that memory bandwidth sets."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from langchain_specdec._version import __version__

_PACKAGES = ("torch", "transformers", "flashspec", "economize", "xllamacpp")
_BUFFER_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}
_ROUNDS = 8


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The machine as plain values: processor, memory, load, device."""
    described: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": str(device),
    }
    if hasattr(os, "getloadavg"):
        # Processes that wanted to run in the last minute, on average: how busy the machine was with other work.
        described["load"] = round(os.getloadavg()[0], 2)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = properties.name
        described["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        described["cuda"] = torch.version.cuda
    return described


def processor_name() -> str:
    """The processor's name as its maker writes it, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def num_cores() -> int | None:
    """Cores that this process may use; None where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide."""
    known = {"python": platform.python_version(), "langchain-specdec": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[name] = metadata.version(name)
    return known


def machine_lines(machine: Mapping[str, Any], packages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The machine and the versions in words.

    Args:
        machine: As `describe_machine` gives it.
        packages: As `versions` gives it.
    """
    gpu = f", {machine['gpu']} ({machine['gpu_memory_gib']} GiB)" if "gpu" in machine else ""
    load = f", load {machine['load']}" if "load" in machine else ""
    yield "machine", f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads{gpu}{load}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in packages.items())


def read_bandwidth(device: torch.device) -> float | None:
    """Bytes per second that the device reads from its memory: the best of a few sums of a buffer beyond all caches.

    None where the device is neither a CPU nor CUDA, or has no room for the buffer.
    """
    size = _BUFFER_BYTES.get(device.type)
    if size is None:
        return None
    try:
        buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    except RuntimeError:  # out of memory
        return None
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        float(buffer.sum())  # waits for the device
        best = min(best, time.perf_counter() - started)
    return size / best
