"""Ports that nobody uses, kept for one server while it loads its model.

TGI binds its port only after the model is loaded, minutes after the port was chosen. In between, nothing of the
operating system keeps another server from choosing the same one, so every port is backed by a lock on a file that all
servers of this user look at. The lock goes away with the processes that hold it, however they end: the one that took
it and the supervisor of the server, and no fork of either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import psutil
from typing_extensions import Self

from tgi_launcher.errors import Reason, StartError
from tgi_launcher.locks import FileLock, take_lock
from tgi_launcher.own_folder import check_owner, open_own_folder, own_folder, why_unusable
from tgi_launcher.systems import require_posix

# The search ends below the ports that operating systems give to outgoing connections.
_SEARCH_LENGTH = 1000


class PortLocks:
    """Ports chosen for one server, and the locks that keep other servers from choosing them."""

    def __init__(self) -> None:
        self._locks: dict[int, FileLock] = {}

    @property
    def file_descriptors(self) -> tuple[int, ...]:
        """The open locks; a child that inherits them keeps the ports locked as long as it lives."""
        return tuple(lock.descriptor for lock in self._locks.values() if lock.descriptor is not None)

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
            StartError: It is taken, none is free, hostname is no address of this machine, or the folder of the locks
                cannot be used.
        """
        for port in (wanted,) if wanted else range(first, min(first + _SEARCH_LENGTH, 65536)):
            if port not in self._locks and _can_bind(hostname, port) and self._lock(port):
                return port
        if wanted:
            raise taken(what, hostname, wanted)
        raise StartError(Reason.PORT_TAKEN, f"No free port found from {first} on for the {what.lower()}.")

    def release(self) -> None:
        """Let go of all locks."""
        while self._locks:
            self._locks.popitem()[1].release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _lock(self, port: int) -> bool:
        path = own_folder() / f"port-{port}"
        try:
            lock = take_lock(lambda: _open_lock(path))
        except OSError as error:
            raise why_unusable(error, path, is_file=True) from error
        if lock is not None:
            self._locks[port] = lock
        return lock is not None


def _open_lock(path: Path) -> int:
    """Open the file of a port, in the folder that all servers of this user share."""
    require_posix()
    try:
        folder = open_own_folder(path.parent)
    except OSError as error:
        raise why_unusable(error, path.parent) from error
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path.name, flags, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        check_owner(descriptor, path, is_file=True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


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


def taken(what: str, hostname: str, port: int) -> StartError:
    """The error of a port that somebody else has.

    Args:
        what: What it is for.
        hostname: IP address it was to be bound at.
        port: The port.
    """
    by_whom = ""
    for pid in filter(None, listeners(hostname, port) or ()):
        with contextlib.suppress(psutil.Error):
            by_whom = f" by process {pid} ({psutil.Process(pid).name()})"
    return StartError(Reason.PORT_TAKEN, f"{what} {port} on {hostname} is taken{by_whom}.")


def listeners(hostname: str, port: int) -> list[int | None] | None:
    """Who listens at a port: a process id, or None for a process of another user. None where nothing can be seen."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    everywhere = {"0.0.0.0", "::"}  # noqa: S104
    return [
        connection.pid
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port == port
        and (hostname in everywhere or connection.laddr.ip in {hostname, *everywhere})
    ]
