"""Locks on ports lie in a shared folder: nothing that another user puts there is followed, opened or trusted."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
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


def refused(words: str, reason: Reason = Reason.LOCKS_UNUSABLE) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StartError, match=words) as caught:
        take()
    assert caught.value.reason is reason
    assert "set TMPDIR" in str(caught.value)
    # That would take sockets and locks from servers that run.
    assert ("Remove it" in str(caught.value)) == (reason is Reason.LOCKS_UNUSABLE)
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
    refused("/port-20080, meant for the servers of this user, is (a link, or )?no plain file")
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
    refused("Operation not supported", Reason.FOLDER_UNUSABLE)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOLCK])
def test_what_may_pass_is_no_reason_to_remove_anything_or_to_give_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*args: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    for function in ("open", "mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(StartError, match=os.strerror(number)) as caught:
                take()
        assert caught.value.reason is Reason.FOLDER_UNUSABLE
        assert "Remove" not in str(caught.value)
    assert RestartPolicy("on-failure", Backoff()).next_wait(Reason.FOLDER_UNUSABLE, 0.0) is not None


def test_no_temporary_folder_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    refused("No usable temporary directory found", Reason.FOLDER_UNUSABLE)


def test_a_temporary_folder_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    refused("No such file", Reason.FOLDER_UNUSABLE)


def test_a_restart_would_not_help() -> None:
    assert RestartPolicy("on-failure", Backoff()).next_wait(Reason.LOCKS_UNUSABLE, 0.0) is None


# Forks


def fork(child: Callable[[], object], *, again: bool = False) -> int:
    """Run a function in a fork, or in a fork of a fork, which waits until it is killed; its id once it has run."""
    told, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        if again and os.fork():
            os._exit(0)
        try:
            child()
            os.write(tells, str(os.getpid()).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(tells)
    if again:
        os.waitpid(pid, 0)
    text = os.read(told, 100)
    os.close(told)
    return int(text)


@pytest.mark.parametrize("again", [False, True])
def test_a_fork_does_not_keep_a_port_locked(folder: Path, again: bool) -> None:
    locks = PortLocks()
    port = locks.take("127.0.0.1", None, first=20080, what="Port")
    pid = fork(lambda: None, again=again)
    try:
        with pytest.raises(StartError):
            take(port)
        locks.release()
        assert take(port) == port
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_fork_can_neither_release_nor_lose_what_is_not_its_own(folder: Path) -> None:
    locks = PortLocks()
    port = locks.take("127.0.0.1", None, first=20080, what="Port")
    other = PortLocks()

    def child() -> None:
        locks.release()
        other.take("127.0.0.1", None, first=20080, what="Port")

    pid = fork(child)
    try:
        with pytest.raises(StartError):
            take(port)
        assert other.file_descriptors == ()
        # The fork's own one, the next, is held by the fork alone.
        with pytest.raises(StartError):
            take(port + 1)
    finally:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert take(port + 1) == port + 1
    locks.release()


def test_forks_while_ports_are_locked_and_released(folder: Path) -> None:
    """Wherever the other thread is when it forks, the fork can lock, and has nothing of this process."""
    done = threading.Event()

    def lock_and_release() -> None:
        while not done.is_set():
            take()

    thread = threading.Thread(target=lock_and_release)
    thread.start()

    def look() -> None:
        links = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        assert not [link for link in links if "/port-" in link]
        take(20090)

    try:
        for _ in range(20):
            pid = fork(look)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    finally:
        done.set()
        thread.join()


@pytest.mark.process
def test_a_process_that_the_lock_is_handed_to_keeps_it(folder: Path) -> None:
    locks = PortLocks()
    port = locks.take("127.0.0.1", None, first=20080, what="Port")
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE,
                          pass_fds=locks.file_descriptors) as supervisor:  # fmt: skip
        locks.release()
        with pytest.raises(StartError):
            take(port)
        supervisor.communicate(b"\n")
    assert take(port) == port
