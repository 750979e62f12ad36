"""What this process may take of memory and of cores, and giving back what was freed."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil
import torch

from langchain_specdec.runner.cpu.native_decoder import MAX_THREADS

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_PROCESSORS = Path("/sys/devices/system/cpu")
_V1_CPU = ("quota", "period")


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device; what the system holds of files it gives up on demand.

    On Linux that is no more than what the control groups of this process, such as a container's, leave it.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([psutil.virtual_memory().available, *_cgroup_rooms()])


def memory_limit() -> int | None:
    """Bytes that the control groups of this process allow it in all; None where none of them sets a limit."""
    return min((limit for _, limit, _ in _limited_groups()), default=None)


def cpu_quota() -> float | None:
    """Cores' worth of time that the control groups of this process allow it; None where none sets a limit."""
    return min((quota for group in own_groups("cpu") if (quota := _quota(*group)) is not None), default=None)


def default_threads() -> int:
    """Threads that share a forward where nobody says how many: one for each core that this process may use.

    Two threads of one core share its arithmetic, and a quota is a share of time: more threads would wait for each other
    in the rest of it.
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, _cores_of(os.sched_getaffinity(0)))
    quota = cpu_quota()
    return max(1, min(cores if quota is None else min(cores, math.ceil(quota)), MAX_THREADS))


def _cores_of(processors: Collection[int]) -> int:
    """Physical cores among logical processors; as many as those where the system does not tell."""
    paths = [_PROCESSORS / f"cpu{processor}" / "topology" / "thread_siblings_list" for processor in processors]
    try:
        return len({path.read_text(encoding="utf-8") for path in paths})
    except OSError:
        return len(processors)


def _quota(folder: Path, is_v1: bool) -> float | None:
    try:
        if is_v1:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in _V1_CPU)
        else:
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None  # it is not ours to read, or of a form that is not known


def own_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of the control groups of this process that may limit something, and whether they are of version 1.

    Args:
        controller: What is limited, such as "memory" or "cpu".
    """
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            # Version 2 is mounted at the top, or below it where most controllers are version 1's.
            mounts = [_CGROUPS, _CGROUPS / "unified"]
        elif controller in controllers.split(","):
            mounts = [_CGROUPS / controller]
        else:
            continue
        for mount in mounts:
            # In a container the path may be the host's name of its group, which is not there: the group is the mount.
            group = mount / path.lstrip("/")
            for folder in (group, *group.parents):
                yield folder, bool(controllers)
                if folder == mount:
                    break


def _limited_groups() -> Iterator[tuple[Path, int, bool]]:
    """Each control group with a limit above this process, its limit in bytes, and whether it is of version 1."""
    for folder, is_v1 in own_groups("memory"):
        names = ("memory.limit_in_bytes",) if is_v1 else ("memory.max", "memory.high")
        try:
            known = [_number(folder / name) for name in names if (folder / name).is_file()]
        except (OSError, ValueError):
            continue  # it is not ours to read, or of a form that is not known
        if known and (limit := min(known)) < 1 << 60:
            yield folder, limit, is_v1


def _cgroup_rooms() -> Iterator[int]:
    """Bytes that each control group with a limit above this process has left; none where none is found."""
    for folder, limit, is_v1 in _limited_groups():
        usage, prefix = ("memory.usage_in_bytes", "total_") if is_v1 else ("memory.current", "")
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
            # What is cached of files is given up on demand; what lies in /dev/shm and other tmpfs is not. A prefix of
            # version 1 counts groups below too.
            cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            yield max(limit - _number(folder / usage) + cached, 0)
        except (OSError, ValueError):
            pass


def _number(path: Path) -> int:
    text = path.read_text(encoding="utf-8").strip()
    return 1 << 60 if text == "max" else int(text)


def give_back_freed() -> None:
    """Hand memory that was freed back to the system, where the C library keeps it otherwise.

    glibc keeps freed blocks of up to 32 MiB for the next allocation of their kind: after a model of 540 MB, some
    400 MB. Elsewhere this does nothing.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
