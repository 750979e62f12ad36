"""Ports that nobody uses, kept for one server while it loads its model.

TGI binds its port only after the model is loaded, minutes after the port was chosen. In between, nothing of the
operating system keeps another server from choosing the same one, so every port is backed by a lock on a file that all
servers of this user look at. The lock goes away with the processes that hold it, however they end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from typing_extensions import Self

from tgi_launcher.errors import Reason, StartError

# The search ends below the ports that operating systems give to outgoing connections.
_SEARCH_LENGTH = 1000


class PortLocks:
    """Ports chosen for one server, and the locks that keep other servers from choosing them."""

    def __init__(self) -> None:
        self._locks: dict[int, int] = {}

    @property
    def file_descriptors(self) -> tuple[int, ...]:
        """The open locks; a child that inherits them keeps the ports locked as long as it lives."""
        return tuple(self._locks.values())

    def take(self, hostname: str, wanted: int | None, *, first: int, what: str) -> int:
        """Choose and lock a port.

        Args:
            hostname: IP address it will be bound at.
            wanted: The port itself, or None for a free one.
            first: Where the search for a free one begins.
            what: What it is for, for the error message.

        Returns:
            The port.

        Raises:
            StartError: It is taken, none is free, hostname is no address of this machine, or the folder of the locks is
                not this user's alone.
        """
        for port in (wanted,) if wanted else range(first, min(first + _SEARCH_LENGTH, 65536)):
            if port not in self._locks and _can_bind(hostname, port) and self._lock(port):
                return port
        if wanted:
            raise StartError(Reason.PORT_TAKEN, f"{what} {wanted} on {hostname} is taken{_by_whom(wanted)}.")
        raise StartError(Reason.PORT_TAKEN, f"No free port found from {first} on for the {what.lower()}.")

    def release(self) -> None:
        """Let go of all locks."""
        while self._locks:
            os.close(self._locks.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _lock(self, port: int) -> bool:
        import fcntl  # Windows has none, and can do all but start servers

        descriptor = _open_lock(port)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise _unusable(f"holds files that cannot be locked ({error.strerror})") from error
        self._locks[port] = descriptor
        return True


def _lock_folder() -> Path:
    # A user in a container may have a number only, and no name.
    return Path(tempfile.gettempdir()) / f"tgi-launcher-{os.geteuid()}"


def _open_lock(port: int) -> int:
    """Open the file of a port, in a folder of this user's own. Everybody may make things where that folder is."""
    path = _lock_folder()
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_owner(folder)
            # Older releases left it readable for others.
            os.fchmod(folder, 0o700)
            # The file is looked up in the folder that was checked, whatever is at its path by now.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(f"port-{port}", flags, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        # Which of the two it is for a link depends on the system.
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
            raise _unusable("is a link, or holds one, or is no folder: somebody may have put it there") from error
        raise _unusable(f"cannot be used ({error.strerror})") from error
    try:
        _check_owner(descriptor, is_file=True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_owner(descriptor: int, *, is_file: bool = False) -> None:
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise _unusable("belongs to another user")
    if is_file and (not stat.S_ISREG(found.st_mode) or found.st_nlink != 1):
        raise _unusable("holds what is no plain file of this package")


def _unusable(why: str) -> StartError:
    msg = f"The folder for locks on ports, {_lock_folder()}, {why}. Remove it, or set TMPDIR to a folder of your own."
    return StartError(Reason.LOCKS_UNUSABLE, msg)


def _can_bind(hostname: str, port: int) -> bool:
    """Whether nobody else has the port.

    Raises:
        StartError: Nobody could bind it: it is no port of this machine, or not for this user.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in hostname else socket.AF_INET) as probe:
            # TGI sets the same: a port counts as free while its last connections are still closing.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((hostname, port))
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise StartError(Reason.INVALID_ARGUMENTS, _why_unbindable(hostname, port, error)) from error
    return True


def _why_unbindable(hostname: str, port: int, error: OSError) -> str:
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL):
        return (
            f"hostname={hostname} is no address of this machine: give one of its own, 127.0.0.1 for this machine "
            "alone, or 0.0.0.0 for all of its addresses."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"This user may not bind port {port}: choose one of 1024 or more."
    return f"Port {port} on {hostname} cannot be bound: {error.strerror}."


def _by_whom(port: int) -> str:
    for process in _listeners(port):
        with contextlib.suppress(psutil.Error):
            return f" by process {process.pid} ({process.name()})"
    return ""


def _listeners(port: int) -> Iterator[psutil.Process]:
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):  # not every user may see the sockets of others
        return
    for connection in connections:
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
            and connection.pid
        ):
            yield psutil.Process(connection.pid)
