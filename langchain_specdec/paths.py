"""Where files are kept on this machine, and which of those found there can be trusted."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_cache_path

from langchain_specdec.errors import InvalidParameterError, SpecDecError


def cache_folder() -> Path:
    """Return where prepared models and compiled kernels are kept: below `$XDG_CACHE_HOME` or the platform's cache.

    Raises:
        SpecDecError: The home folder is unknown.
    """
    try:
        return user_cache_path("langchain-specdec", appauthor=False)
    except RuntimeError as error:
        raise SpecDecError("The home folder is unknown. Set XDG_CACHE_HOME to a writable folder.") from error


def is_own(path: Path) -> bool:
    """Whether a regular file was put there by this user or the system's administrator, and nobody else may change it.

    A cache folder may be shared, or lie where others can write. On Windows, where folders of users are theirs, any
    regular file is taken.
    """
    try:
        return _is_own(path.lstat())
    except OSError:
        return False


def read_own(path: Path) -> bytes | None:
    """What a file holds, if it `is_own`; None where it is not, or is not there."""
    # What is looked at is what is read, whatever others do to the folder meanwhile.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 - a descriptor
            return file.read() if _is_own(os.fstat(file.fileno())) else None
    except OSError:
        return None


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, each with its number, from 1 on.

    Args:
        path: The file.
        what: What it is to hold, for errors: `"a file of prompts"`.

    Raises:
        InvalidParameterError: It cannot be read, is no UTF-8 text, or has no line.
    """
    try:
        # Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 text (byte {error.start}). Convert it first."
        raise InvalidParameterError(msg) from error
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}. Give {what}."
        raise InvalidParameterError(msg) from error
    # splitlines() would also split at characters that may stand inside a JSON string, such as U+2028.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InvalidParameterError(f"{path} is empty. Give {what}.")
    return lines


def write_own(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file of this user's own, whole or not at all, also where the disk is full or the power is cut.

    Args:
        path: Where to write it; missing folders are made.
        content: What it is to hold.
        mode: Who may read it. By default everybody: what an administrator prepares is for all users.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A name that nobody can have put a link under.
    descriptor, staged = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(file.fileno())
        Path(staged).replace(path)
    except BaseException:
        Path(staged).unlink(missing_ok=True)
        raise


def write_output(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Write a file that somebody asks for, whole or not at all. An older one keeps its mode, and a link stays one.

    Args:
        path: Where to write it.
        content: What it is to hold.
        mode: Who may read a new one. None leaves that to the umask, as for other files of the user's.

    Raises:
        OSError: It cannot be written; an older file is as it was.
    """
    target = path.resolve()
    if target.exists():
        mode = stat.S_IMODE(target.stat().st_mode)
    elif mode is None:
        mode = _usual_mode()
    write_own(target, content, mode=mode)


def give_usual_modes(folder: Path) -> None:
    """Give the files right in a folder, which are this user's, the mode that the umask leaves to new files.

    Libraries that write a file under another name first leave it to its owner alone.
    """
    mode = _usual_mode()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


def _usual_mode() -> int:
    umask = os.umask(0o077)  # it cannot be asked for otherwise
    os.umask(umask)
    return 0o666 & ~umask


def check_output(flag: str, path: Path, suffixes: Sequence[str], inputs: Sequence[Path | None] = ()) -> None:
    """Raise unless `write_output` can write a file. To be called before the work for it begins.

    Args:
        flag: The option that names the file.
        path: The file.
        suffixes: Endings that its name may have, in lower case.
        inputs: Files that are read and so must not be overwritten; None is none.

    Raises:
        InvalidParameterError: The name has another ending, the folder does not exist, or it cannot be written there.
    """
    if path.suffix.lower() not in suffixes:
        msg = f"{flag} writes a file whose name ends in {', '.join(suffixes)}; got {str(path)!r}."
        raise InvalidParameterError(msg)
    if not path.parent.is_dir():
        msg = f"{flag} {path}: there is no folder {str(path.parent)!r} to write it into."
        raise InvalidParameterError(msg)
    if path.exists() and any(other.exists() and path.samefile(other) for other in inputs if other is not None):
        msg = f"{flag} {path} would overwrite the file that is read. Give another name."
        raise InvalidParameterError(msg)
    reason = ""
    if path.exists() and not path.is_file():
        reason = "it is a folder" if path.is_dir() else "it is no regular file"
    # It is put in the place of an older one when it is whole, so that its folder has to be writable too.
    elif not all(os.access(where, os.W_OK) for where in (path, path.resolve().parent) if where.exists()):
        reason = "permission denied"
    if reason:
        msg = f"{flag} cannot write to {str(path)!r}: {reason}."
        raise InvalidParameterError(msg)


def _is_own(found: os.stat_result) -> bool:
    if not stat.S_ISREG(found.st_mode):
        return False
    if not hasattr(os, "geteuid"):
        return True
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
