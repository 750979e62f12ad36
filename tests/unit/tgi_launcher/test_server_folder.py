"""The folder of a server: where it is, whose it is, and how it tells whether its server is in use."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tgi_launcher import Reason, StartError, cleanup, server_folder, supervisor
from tgi_launcher.cleanup import clean_up
from tgi_launcher.cli.cleanup import cleanup as cleanup_command
from tgi_launcher.own_folder import own_folder
from tgi_launcher.server_folder import (
    is_server_folder,
    lock_server_folder,
    make_server_folder,
    server_folders,
)


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of the test's own, near enough to the root for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        # Nothing else of this machine is cleaned up.
        monkeypatch.setattr(cleanup, "find_docker", lambda: None)
        monkeypatch.setattr(cleanup, "_marked_processes", lambda: defaultdict(list))
        yield Path(folder)


def test_it_is_for_this_user_only_and_in_use_while_it_is_locked(temporary: Path) -> None:
    folder = make_server_folder()
    assert folder.path.parent.parent == temporary
    for path in (folder.path.parent, folder.path, Path(folder.work), Path(folder.temporary)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert is_server_folder(folder.path)
    assert server_folders() == [folder.path]
    assert lock_server_folder(folder.path) is None
    folder.lock.release()
    lock = lock_server_folder(folder.path)
    assert lock is not None
    lock.release()


def test_paths_are_short_enough_for_sockets(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = temporary / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = make_server_folder()
    try:
        assert folder.path.parent.parent == Path("/tmp")  # noqa: S108
        assert folder.path in server_folders()
        # A listener of multiprocessing, the longest name that is known, and macOS's limit.
        assert len(f"{folder.temporary}/pymp-12345678/listener-12345678") < 104
    finally:
        folder.lock.release()
        shutil.rmtree(folder.path)


@pytest.mark.parametrize("kind", ["link", "file", "another's"])
def test_a_shared_folder_that_is_not_this_users_is_refused(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = own_folder()
    if kind == "link":
        path.symlink_to(temporary)
    elif kind == "file":
        path.touch()
    else:
        path.mkdir()
    theirs = os.stat_result([stat.S_IFDIR | 0o700, 0, 0, 2, os.geteuid() + 1, *[0] * 5])
    with monkeypatch.context() as patch:
        if kind == "another's":
            patch.setattr(os, "fstat", lambda descriptor: theirs)
        for use in (make_server_folder, clean_up):
            with pytest.raises(StartError, match=str(path)) as caught:
                use()
            assert caught.value.reason is Reason.LOCKS_UNUSABLE


def test_a_clean_up_that_comes_between_making_and_locking_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Path] = []

    def lock(path: Path) -> object:
        if len(removed) < 2:
            removed.append(path)
            if len(removed) == 1:
                shutil.rmtree(path)  # it is gone
            else:
                held.append(lock_server_folder(path))  # it is about to go
        return lock_server_folder(path)

    held: list[object] = []
    monkeypatch.setattr(server_folder, "lock_server_folder", lock)
    folder = make_server_folder()
    assert folder.path not in removed
    assert Path(folder.work).is_dir()


def test_what_is_no_folder_of_a_server_is_left_alone(temporary: Path) -> None:
    made = make_server_folder()
    made.lock.release()
    shared = own_folder()
    (shared / "port-8080").touch()
    (shared / "other").mkdir()
    (temporary / "theirs").mkdir()
    (shared / "server-link").symlink_to(temporary / "theirs")
    found = clean_up()
    assert [remains.folder for remains in found if remains.folder.is_relative_to(temporary)] == [made.path]
    assert sorted(path.name for path in shared.iterdir()) == ["other", "port-8080", "server-link"]
    assert (temporary / "theirs").is_dir()
    for path in (shared / "other", Path("server-x"), temporary / "server-x", Path()):
        assert not is_server_folder(path)


def test_a_full_disk_leaves_neither_folder_nor_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    make_server_folder().lock.release()
    (kept,) = server_folders()
    mkdir = Path.mkdir

    def fail(path: Path, **options: Any) -> None:
        if path.name == "tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, **options)

    monkeypatch.setattr(Path, "mkdir", fail)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StartError, match="No space left") as caught:
        make_server_folder()
    assert caught.value.reason is Reason.FOLDER_UNUSABLE
    assert server_folders() == [kept]
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_an_odd_entry_is_told_and_the_others_are_cleaned(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_server_folder()
    made.lock.release()
    (own_folder() / "server-file").touch()
    with pytest.raises(typer.Exit):
        cleanup_command()
    said = capsys.readouterr()
    assert not made.path.exists()
    assert f"removed {made.path}" in said.out
    assert f"error: {own_folder()}/server-file is not as servers leave it" in said.err


@pytest.mark.parametrize("why", ["the daemon is down", "no docker", "no answer"])
def test_a_container_that_cannot_be_removed_keeps_its_folder(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    made = make_server_folder()
    made.note_container("tgi-8080-abcd")
    made.lock.release()
    asked: list[Any] = []

    def run(command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        if why == "no answer":
            raise subprocess.TimeoutExpired(command, 30)
        return subprocess.CompletedProcess(command, 1, "", f"Cannot connect: {why}\n")

    monkeypatch.setattr(cleanup, "find_docker", lambda: None if why == "no docker" else "docker")
    monkeypatch.setattr(subprocess, "run", run)
    (found,) = clean_up()
    assert "tgi-8080-abcd could not be removed" in found.problem
    assert (found.containers, made.path.exists()) == ((), True)

    def gone(command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Error: No such container: tgi-8080-abcd\n")

    monkeypatch.setattr(cleanup, "find_docker", lambda: "docker")
    monkeypatch.setattr(subprocess, "run", gone)
    (found,) = clean_up()
    assert (found.problem, made.path.exists()) == ("", False)


@pytest.mark.process
def test_a_server_that_ends_keeps_its_folder_where_its_container_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_server_folder()
    supervisor.remove_leftovers(["false"], str(made.path))
    assert made.path.exists()
    supervisor.remove_leftovers(["true"], str(made.path))
    assert not made.path.exists()
    made.lock.release()


def test_a_container_whose_folder_is_gone_is_told_and_left(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_folder() / "server-gone"
    monkeypatch.setattr(cleanup, "_containers", lambda: defaultdict(list, {folder: ["tgi-8080-abcd"]}))
    cleanup_command()
    assert "docker rm -f tgi-8080-abcd" in capsys.readouterr().out
