"""Memory of this process: how much there is to take, and giving back what was freed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device; what the system holds of files it gives up on demand.

    On Linux that is no more than what the control groups of this process, such as a container's, leave it.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([psutil.virtual_memory().available, *_cgroup_rooms()])


def _cgroup_rooms() -> Iterator[int]:
    """Bytes that each control group with a limit above this process has left; none where none is found."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            # Version 2 is mounted at the top, or below it where most controllers are version 1's.
            for mount in (_CGROUPS, _CGROUPS / "unified"):
                yield from _rooms(mount, path, ("memory.max", "memory.high"), "memory.current", "")
        elif "memory" in controllers.split(","):
            mount = _CGROUPS / "memory"
            yield from _rooms(mount, path, ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")


def _rooms(mount: Path, path: str, limits: tuple[str, ...], usage: str, prefix: str) -> Iterator[int]:
    """The same for one hierarchy.

    Args:
        mount: Where it is mounted.
        path: Of this process's group in it. In a container that may be the host's name of it, which is not there: the
            group is the mount itself then.
        limits: Files with limits.
        usage: File with what is used.
        prefix: Of names in memory.stat that count groups below too.
    """
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        try:
            known = [_number(folder / limit) for limit in limits if (folder / limit).is_file()]
            if known and (limit := min(known)) < 1 << 60:
                stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
                # What is cached of files is given up on demand; what lies in /dev/shm and other tmpfs is not.
                cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield max(limit - _number(folder / usage) + cached, 0)
        except (OSError, ValueError):
            pass  # it is not ours to read, or of a form that is not known
        if folder == mount:
            break


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
