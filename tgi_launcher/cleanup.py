"""Ends and removes what is left of servers whose supervisor and whose owner were both killed.

A server is in use as long as its supervisor lives, which holds a lock on the server's folder. That is asked, and no
process id that another process may have by now.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil

from tgi_launcher import supervisor
from tgi_launcher.docker import LABEL, find_docker
from tgi_launcher.own_folder import FileLock
from tgi_launcher.server_folder import is_server_folder, lock_server_folder, server_folders

_GRACE_SECONDS = 10.0
_DOCKER_SECONDS = 30.0


@dataclass(frozen=True)
class Remains:
    """What was found of a server.

    Attributes:
        folder: Its folder.
        is_in_use: Whether its supervisor lives; it was left alone then.
        processes: Its processes, as id and name.
        containers: Names of its containers.
        left: Ids of processes that even SIGKILL did not end.
    """

    folder: Path
    is_in_use: bool
    processes: tuple[tuple[int, str], ...] = ()
    containers: tuple[str, ...] = ()
    left: tuple[int, ...] = ()


def clean_up() -> list[Remains]:
    """End the processes and remove the folders and containers of this user's servers that are not in use.

    Returns:
        What was found of each server, those in use included.

    Raises:
        StartError: The folder of this user's servers is not this user's alone.
    """
    known = server_folders()
    processes = _marked_processes()
    containers = _containers()
    folders = {*known, *processes, *(folder for folder in containers if folder.is_dir())}
    return [_clean(folder, processes[folder], containers[folder]) for folder in sorted(folders)]


def _clean(folder: Path, processes: list[psutil.Process], containers: list[str]) -> Remains:
    lock: FileLock | None = None
    # Somebody may have removed the folder of a server that runs.
    with contextlib.suppress(FileNotFoundError):
        if (lock := lock_server_folder(folder)) is None:
            return Remains(folder, is_in_use=True)
    try:
        if any(map(_is_supervisor, processes)):
            return Remains(folder, is_in_use=True)
        found = tuple((process.pid, _name(process)) for process in processes)
        left = supervisor.end_processes(str(folder), grace_seconds=_GRACE_SECONDS)
        docker = find_docker()
        remove = (docker, "rm", "-f", *containers) if docker and containers else ()
        supervisor.remove_leftovers(remove, str(folder))
        return Remains(folder, False, found, tuple(containers), tuple(left))
    finally:
        if lock is not None:
            lock.release()


def _marked_processes() -> defaultdict[Path, list[psutil.Process]]:
    found: defaultdict[Path, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marker = process.environ().get(supervisor.MARKER, "")
            if is_server_folder(Path(marker)) and supervisor.is_own(process) and supervisor.is_alive(process):
                found[Path(marker)].append(process)
    return found


def _is_supervisor(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        parts = {Path(argument).parts[-2:] for argument in process.cmdline()}
        return Path(supervisor.__file__).parts[-2:] in parts
    return False


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return "ended"


def _containers() -> defaultdict[Path, list[str]]:
    """Containers by the folder of their server. A daemon may have those of other machines and users, too."""
    found: defaultdict[Path, list[str]] = defaultdict(list)
    docker = find_docker()
    if docker is None:
        return found
    listing = f'{{{{.Names}}}}\t{{{{.Label "{LABEL}"}}}}'
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(  # noqa: S603
            [docker, "ps", "--all", "--filter", f"label={LABEL}", "--format", listing],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DOCKER_SECONDS, check=False,
        )  # fmt: skip
        for line in done.stdout.splitlines():
            name, _, label = line.partition("\t")
            folder = Path(label)
            if name and is_server_folder(folder):
                found[folder].append(name)
    return found
