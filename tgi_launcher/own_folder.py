"""The folder that the servers of this user share among the temporary files, and locks on what is in it.

Everybody may make things where that folder is, so nothing of another user is followed, opened or trusted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from tgi_launcher.errors import Reason, StartError

# A fork waits while a lock is taken or let go of, so that it knows of every file that it has to close.
_changing = threading.RLock()
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """A lock on an open file or folder. It ends with the processes that have it: this one, and those it is handed to.

    A fork of this process does not have it.

    Attributes:
        descriptor: The open file; a process that inherits it has the lock too.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        _held.add(self)

    def release(self) -> None:
        """Let go of it, in this process. Closing is all it takes: unlocking would take it from the others too."""
        with _changing:
            descriptor, self.descriptor = self.descriptor, None
            if descriptor is not None:
                os.close(descriptor)


def take_lock(open_file: Callable[[], int], path: Path) -> FileLock | None:
    """Lock what `open_file` opens; None if another process has it.

    Args:
        open_file: Gives the descriptor.
        path: The folder to name if it cannot be locked.

    Raises:
        StartError: It cannot be locked.
    """
    import fcntl  # Windows has none, and can do all but start servers

    with _changing:
        descriptor = open_file()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise unusable(f"holds files that cannot be locked ({error.strerror})", path) from error
        return FileLock(descriptor)


def _release_in_fork() -> None:
    for lock in list(_held):
        lock.release()
    _changing.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_release_in_fork)


def own_folder() -> Path:
    """Where that folder is. It need not exist."""
    # A user in a container may have a number only, and no name.
    return Path(tempfile.gettempdir()) / f"tgi-launcher-{os.geteuid()}"


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
        path: The folder to name if it is not.
        is_file: Whether it has to be a plain file.

    Raises:
        StartError: It is not.
    """
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise unusable("belongs to another user", path)
    if is_file and (not stat.S_ISREG(found.st_mode) or found.st_nlink != 1):
        raise unusable("holds what is no plain file of this package", path)


def why_unusable(error: OSError, path: Path) -> StartError:
    """What to tell of a folder that cannot be opened, or of a file in it."""
    # Which of these it is for a link depends on the system.
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
        return unusable("is a link, or holds one, or is no folder: somebody may have put it there", path)
    return unusable(f"cannot be used ({error.strerror})", path)


def unusable(why: str, path: Path) -> StartError:
    """What to tell of a folder that is not as it should be."""
    msg = f"The folder for locks on ports, {path}, {why}. Remove it, or set TMPDIR to a folder of your own."
    return StartError(Reason.LOCKS_UNUSABLE, msg)
