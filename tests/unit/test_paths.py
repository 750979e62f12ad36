"""Files in a cache folder: written whole, and trusted only where nobody else can have written them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.paths import check_output, is_own, read_own, write_output, write_own

posix_only = pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/file"
    for content in (b"", b"first", b"second"):
        write_own(path, content)
        assert read_own(path) == content
        assert is_own(path)
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(tmp_path / "file", b"first")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_own(tmp_path / "file", b"second")
    assert read_own(tmp_path / "file") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, *inputs: Path | None) -> str:
        with pytest.raises(InvalidParameterError) as caught:
            check_output("--out", tmp_path / name, (".txt", ".md"), inputs)
        return str(caught.value).replace(str(tmp_path), "T")

    assert refused("a.gif") == "--out writes a file whose name ends in .txt, .md; got 'T/a.gif'."
    assert refused("none/a.txt") == "--out T/none/a.txt: there is no folder 'T/none' to write it into."
    (tmp_path / "folder.txt").mkdir()
    assert refused("folder.txt") == "--out cannot write to 'T/folder.txt': it is a folder."
    (tmp_path / "read.md").write_text("precious")
    (tmp_path / "link.md").symlink_to(tmp_path / "read.md")
    for name in ("read.md", "link.md", "../" + tmp_path.name + "/read.md"):
        assert "would overwrite the file that is read" in refused(name, None, tmp_path / "read.md")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.txt")
        assert refused("pipe.txt") == "--out cannot write to 'T/pipe.txt': it is no regular file."
    check_output("--out", tmp_path / "new.TXT", (".txt",), [tmp_path / "missing", None])
    check_output("--out", tmp_path / "read.md", (".md",))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert refused("new.txt") == "--out cannot write to 'T/new.txt': permission denied."
    assert (tmp_path / "read.md").read_text() == "precious"


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    assert read_own(tmp_path / "missing") is None
    assert read_own(tmp_path) is None
    assert not is_own(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_an_output_has_the_mode_that_its_user_wants(tmp_path: Path) -> None:
    def mode_of(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    path, link = tmp_path / "page.html", tmp_path / "link.html"
    before = os.umask(0o077)
    try:
        write_output(path, b"first")
        assert mode_of(path) == 0o600
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    path.chmod(0o640)
    link.symlink_to(path.name)
    write_output(link, b"second")
    assert link.is_symlink()
    assert (path.read_bytes(), mode_of(path)) == (b"second", 0o640)
    write_output(tmp_path / "talk.json", b"", mode=0o600)
    assert mode_of(tmp_path / "talk.json") == 0o600


@posix_only
def test_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_own(path, b"content")
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        assert read_own(path) is None
        assert not is_own(path)
    path.chmod(0o644)
    assert read_own(path) == b"content"
    (tmp_path / "link").symlink_to(path)
    assert read_own(tmp_path / "link") is None
    assert not is_own(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    assert read_own(tmp_path / "pipe") is None
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert is_own(path) == (owner == 0), "of the administrator, or of another user"
    assert (read_own(path) is not None) == (owner == 0)
