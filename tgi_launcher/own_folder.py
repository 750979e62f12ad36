"""The folder that the servers of this user share among the temporary files, and a look at whose it is.

Everybody may make things where that folder is, so nothing of another user is followed, opened or trusted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from tgi_launcher.errors import Reason, StartError
from tgi_launcher.systems import require_posix


def own_folder() -> Path:
    """Where that folder is. It need not exist.

    Raises:
        StartError: There is no folder for temporary files.
    """
    try:
        return Path(tempfile.gettempdir()) / own_folder_name()
    except OSError as error:
        msg = f"No folder for temporary files can be written to ({error.strerror}): set TMPDIR to one."
        raise StartError(Reason.FOLDER_UNUSABLE, msg) from error


def own_folder_name() -> str:
    """What it is called."""
    require_posix()
    # A user in a container may have a number only, and no name.
    return f"tgi-launcher-{os.geteuid()}"


def open_own_folder(path: Path, *, make: bool = True) -> int:
    """Open such a folder, after a look at whose it is.

    Args:
        path: Where it is.
        make: Whether to make it where there is none.

    Returns:
        Its file descriptor. What is looked up by that is in the folder that was checked, whatever is at its path then.

    Raises:
        StartError: It is not this user's alone.
        OSError: It cannot be opened.
    """
    require_posix()
    if make:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        check_owner(folder, path)
        # Older releases left it readable for others.
        os.fchmod(folder, 0o700)
    except BaseException:
        os.close(folder)
        raise
    return folder


def check_owner(descriptor: int, path: Path, *, is_file: bool = False) -> None:
    """See to it that an open file or folder is this user's.

    Args:
        descriptor: What is open.
        path: Where it is.
        is_file: Whether it has to be a plain file.

    Raises:
        StartError: It is not.
    """
    require_posix()
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise _foreign("belongs to another user", path)
    if is_file and (not stat.S_ISREG(found.st_mode) or found.st_nlink != 1):
        raise _foreign("is no plain file of this package", path)


def why_unusable(error: OSError, path: Path, *, is_file: bool = False) -> StartError:
    """What to tell of a folder or file of this user's servers that cannot be opened, made or locked.

    Args:
        error: Why.
        path: Which.
        is_file: Whether it should be a plain file.
    """
    # Which of these it is for a link depends on the system.
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK) or (is_file and error.errno == errno.EISDIR):
        kind = "plain file" if is_file else "folder"
        return _foreign(f"is a link, or no {kind}: somebody may have put it there", path)
    # Servers may run out of it, so nobody is told to remove it.
    msg = (
        f"{path}, which the servers of this user share, cannot be used: {error.strerror}. Mend that, or set TMPDIR to "
        "another folder."
    )
    return StartError(Reason.FOLDER_UNUSABLE, msg)


def _foreign(why: str, path: Path) -> StartError:
    msg = f"{path}, meant for the servers of this user, {why}. Remove it, or set TMPDIR to a folder of your own."
    return StartError(Reason.LOCKS_UNUSABLE, msg)
