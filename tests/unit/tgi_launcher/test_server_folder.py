"""The folder of a server: where it is, whose it is, and how it tells whether its server is in use."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tgi_launcher import Reason, StartError, cleanup, server_folder
from tgi_launcher.cleanup import clean_up
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
