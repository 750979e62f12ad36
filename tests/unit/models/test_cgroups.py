"""Free memory in a container: what the limits of its control groups leave, without the cache of files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from langchain_specdec.models import memory

MB = 2**20
AVAILABLE = 4000 * MB


def group(folder: Path, usage: int, cached: int, *, is_v1: bool = False, **limits: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "total_" if is_v1 else ""
    (folder / ("memory.usage_in_bytes" if is_v1 else "memory.current")).write_text(f"{usage}\n")
    stat = {"anon": usage - cached, "file": cached + 50 * MB, "shmem": 50 * MB, "inactive_file": cached}
    (folder / "memory.stat").write_text("".join(f"{prefix}{name} {value}\n" for name, value in stat.items()))
    for name, limit in limits.items():
        (folder / f"memory.{name}").write_text(f"{limit}\n")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=AVAILABLE))
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def free(root: Path, own: str) -> int:
    (root / "own").write_text(own)
    return memory.free_memory(torch.device("cpu")) // MB


def test_version_2(root: Path) -> None:
    mount = root / "cgroup"
    group(mount / "pod", 700 * MB, 500 * MB, max=1000 * MB, high="max")
    group(mount / "pod/app", 600 * MB, 300 * MB, max="max", high=2000 * MB)
    assert free(root, "0::/pod/app\n") == 800
    # `high` slows a process down before `max` ends it.
    (mount / "pod/app/memory.high").write_text(str(650 * MB))
    assert free(root, "0::/pod/app\n") == 350
    (mount / "pod/app/memory.current").write_text(str(990 * MB))
    assert free(root, "0::/pod/app\n") == 0


def test_version_2_within_a_container(root: Path) -> None:
    """The mount is the container's group, whatever the host calls it."""
    group(root / "cgroup", 700 * MB, 500 * MB, max=1000 * MB)
    for path in ("/", "/kubepods/pod7/abc", "/../abc"):
        assert free(root, f"0::{path}\n") == 800


def test_version_1(root: Path) -> None:
    mount = root / "cgroup/memory"
    group(mount, 3000 * MB, 0, is_v1=True, limit_in_bytes=9223372036854771712)
    group(mount / "docker/abc", 700 * MB, 500 * MB, is_v1=True, limit_in_bytes=1000 * MB)
    lines = "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"
    assert free(root, lines) == 800
    assert free(root, "4:memory:/elsewhere\n") == AVAILABLE // MB


@pytest.mark.parametrize("own", ["", "0::/\n", "4:memory:/gone\n0::/gone\n"])
def test_without_limits(root: Path, own: str) -> None:
    assert free(root, own) == AVAILABLE // MB


def test_what_cannot_be_read(root: Path) -> None:
    assert memory.free_memory(torch.device("cpu")) == AVAILABLE, "there is no such file on other systems"
    group(root / "cgroup", 700 * MB, 500 * MB, max="plenty")
    assert free(root, "0::/\n") == AVAILABLE // MB


def test_the_limit_of_memory_is_the_smallest_of_all_groups(root: Path) -> None:
    group(root / "cgroup/pod", 700 * MB, 0, max=1000 * MB, high="max")
    group(root / "cgroup/pod/app", 600 * MB, 0, max=2000 * MB, high="max")
    (root / "own").write_text("0::/pod/app\n")
    assert memory.memory_limit() == 1000 * MB
    (root / "own").write_text("0::/elsewhere\n")
    assert memory.memory_limit() is None


@pytest.mark.parametrize(("text", "cores"), [("250000 100000", 2.5), ("max 100000", None), ("soon", None)])
def test_the_quota_of_cores_of_version_2(root: Path, text: str, cores: float | None) -> None:
    (root / "cgroup/pod").mkdir(parents=True)
    (root / "cgroup/pod/cpu.max").write_text(f"{text}\n")
    (root / "own").write_text("0::/pod/app\n")
    assert memory.cpu_quota() == cores


@pytest.mark.parametrize(("quota", "cores"), [("150000", 1.5), ("-1", None)])
def test_the_quota_of_cores_of_version_1(root: Path, quota: str, cores: float | None) -> None:
    (root / "cgroup/cpu/pod").mkdir(parents=True)
    (root / "cgroup/cpu/pod/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (root / "cgroup/cpu/pod/cpu.cfs_period_us").write_text("100000\n")
    (root / "own").write_text("3:cpu:/pod\n2:memory:/\n")
    assert memory.cpu_quota() == cores


def threads(root: Path, monkeypatch: pytest.MonkeyPatch, *, processors: set[int], quota: str = "max") -> int:
    """Of a machine with four cores of two threads each."""
    for processor in range(8):
        folder = root / f"cpu/cpu{processor}/topology"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "thread_siblings_list").write_text(f"{processor % 4},{processor % 4 + 4}\n")
    (root / "cgroup").mkdir(exist_ok=True)
    (root / "cgroup/cpu.max").write_text(f"{quota} 100000\n")
    (root / "own").write_text("0::/\n")
    monkeypatch.setattr(memory, "_PROCESSORS", root / "cpu")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda _: processors, raising=False)
    return memory.default_threads()


def test_threads_are_the_cores_that_may_be_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads(root, monkeypatch, processors=set(range(8))) == 4
    assert threads(root, monkeypatch, processors={0, 4, 5}) == 2
    assert threads(root, monkeypatch, processors={3}) == 1
    assert threads(root, monkeypatch, processors=set(range(8)), quota="250000") == 3
    assert threads(root, monkeypatch, processors=set(range(8)), quota="10000") == 1


def test_threads_are_never_more_than_a_decoder_takes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESSORS", root / "nothing")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 192)
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda _: set(range(192)), raising=False)
    (root / "own").write_text("")
    assert memory.default_threads() == 64
