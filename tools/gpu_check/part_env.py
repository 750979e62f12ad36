"""The machine: versions, memory, and what launches, graphs, copies and Python cost on it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import version

import torch

from langchain_specdec.bench.machine import describe_machine, read_bandwidth
from tools.gpu_check.check import Check
from tools.gpu_check.runners import new_capture

_SMI = "name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"


def env(check: Check) -> None:
    """Everything that figures of other parts are compared with."""
    _versions(check)
    _python(check)
    bandwidth = read_bandwidth(check.device)
    check.note(read_bytes_per_second=bandwidth)
    _launches(check)
    _graphs(check)
    _copies(check)


def _versions(check: Check) -> None:
    packages = {name: version(name) for name in ("torch", "transformers", "numpy", "llguidance")}
    check.note(packages=packages, python=sys.version.split()[0], cores=os.cpu_count())
    check.note(machine=describe_machine(check.device))
    if check.is_rehearsal:
        return
    query = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
    smi = subprocess.run(query, capture_output=True, text=True, check=False)
    check.note(cudnn=torch.backends.cudnn.version(), triton=version("triton"), smi=smi.stdout.strip())


def _python(check: Check) -> None:
    started = time.perf_counter()
    sum(i * i for i in range(check.pick(3_000_000, 3_000)))
    check.note(python_loop_seconds=round(time.perf_counter() - started, 4))


def _launches(check: Check) -> None:
    x, count = torch.ones(8, device=check.device), check.pick(2000, 20)
    started = time.perf_counter()
    for _ in range(count):
        x.add_(1)
    check.note(eager_launch_us=round(1e6 * (time.perf_counter() - started) / count, 2))


def _graphs(check: Check) -> None:
    """What launching a graph costs the host, and a node of it the device."""
    x, capture = torch.ones(8, device=check.device), new_capture(check)
    for nodes in check.pick((100, 1000, 1500), (10,)):

        def add(count: int = nodes) -> tuple[torch.Tensor, ...]:
            y = x
            for _ in range(count):
                y = y + 1
            return (y,)

        _, replay = capture.record(lambda: None, add)
        host, whole = check.timed(replay)
        check.note(graph_nodes=nodes, launch_us=round(1e3 * host, 1), node_us=round(1e3 * whole / nodes, 3))


def _copies(check: Check) -> None:
    picks = torch.zeros(2, 1, 32, dtype=torch.int64, device=check.device)
    check.note(tolist_us=round(1e3 * check.timed(picks.tolist, 200)[1], 1))
    host, place = torch.zeros(4096, dtype=torch.uint8), torch.zeros(4096, dtype=torch.uint8, device=check.device)

    def copy() -> None:
        place.copy_(host if check.is_rehearsal else host.pin_memory(), non_blocking=True)

    check.note(pinned_copy_us=round(1e3 * check.timed(copy, 200)[1], 1))
