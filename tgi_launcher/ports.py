"""Ports that nobody uses, kept for one server while it loads its model.

TGI binds its port only after the model is loaded, minutes after the port was chosen. In between, nothing of the
operating system keeps another server from choosing the same one, so every port is backed by a lock on a file that all
servers of this user look at. The lock goes away with the processes that hold it, however they end.
"""

from __future__ import annotations

import contextlib
import os
import socket
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
            StartError: It is taken, or none is free.
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

        descriptor = os.open(_lock_folder() / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._locks[port] = descriptor
        return True


def _lock_folder() -> Path:
    # A user in a container may have a number only, and no name.
    folder = Path(tempfile.gettempdir()) / f"tgi-launcher-{os.getuid()}" / "ports"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _can_bind(hostname: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
    with socket.socket(family) as probe:
        # TGI sets the same: a port counts as free while its last connections are still closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((hostname, port))
            probe.listen(1)
        except OSError:
            return False
    return True


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
