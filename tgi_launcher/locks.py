"""Locks on open files and folders, which end with the processes that have them and which no fork has."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

from tgi_launcher.systems import require_posix

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


def take_lock(open_file: Callable[[], int]) -> FileLock | None:
    """Lock what `open_file` opens, by its descriptor; None if another process has it.

    Raises:
        OSError: It cannot be locked.
    """
    require_posix()
    import fcntl  # Windows has none, and can do all but start servers

    with _changing:
        descriptor = open_file()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return FileLock(descriptor)


def _release_in_fork() -> None:
    for lock in list(_held):
        lock.release()
    _changing.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_release_in_fork)
