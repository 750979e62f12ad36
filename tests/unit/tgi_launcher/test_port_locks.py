"""Locks on ports lie in a shared folder: nothing that another user puts there is followed, opened or trusted."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from pathlib import Path

import pytest

from tgi_launcher import Reason, StartError
from tgi_launcher.ports import PortLocks
from tgi_launcher.restart import Backoff, RestartPolicy

pytestmark = pytest.mark.server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the locks are going to be."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"tgi-launcher-{os.geteuid()}"


def take(port: int | None = None) -> int:
    with PortLocks() as locks:
        return locks.take("127.0.0.1", port, first=20080, what="Port")


def refused(words: str) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StartError, match=words) as caught:
        take()
    assert caught.value.reason is Reason.LOCKS_UNUSABLE
    assert "set TMPDIR" in str(caught.value)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors, "a file is left open"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_the_folder_is_for_this_user_only(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        port = take()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / f"port-{port}").stat().st_mode) == 0o600


def test_a_folder_that_others_may_read_is_closed_to_them(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    take()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_in_place_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o755)
    folder.symlink_to(tmp_path / "theirs")
    refused("is a link")
    assert not list((tmp_path / "theirs").iterdir())
    assert stat.S_IMODE((tmp_path / "theirs").stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["dangling", "file", "fifo"])
def test_what_is_no_folder_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    if kind == "dangling":
        folder.symlink_to(tmp_path / "nowhere")
    elif kind == "file":
        folder.touch()
    else:
        os.mkfifo(folder)
    refused("no folder")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "fifo", "folder"])
def test_what_is_no_lock_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    folder.mkdir()
    lock = folder / "port-20080"
    if kind == "dangling link":
        lock.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        target.write_text("mine")
        (lock.symlink_to if kind == "link" else lock.hardlink_to)(target)
    refused("locks on ports")
    assert not target.exists() or target.read_text() == "mine"


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    refused("another user")


def test_a_file_system_without_locks_is_not_a_thousand_taken_ports(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    refused("Operation not supported")


def test_a_temporary_folder_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    refused("No such file")


def test_a_restart_would_not_help() -> None:
    assert RestartPolicy("on-failure", Backoff()).next_wait(Reason.LOCKS_UNUSABLE, 0.0) is None
