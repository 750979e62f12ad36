"""Ends and removes what is left of servers whose supervisor and whose owner were both killed.

A server is in use as long as its supervisor lives, which holds a lock on the server's folder. That is asked, and no
process id that another process may have by now.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tgi_launcher import supervisor
from tgi_launcher.docker import LABEL, find_docker
from tgi_launcher.errors import StartError
from tgi_launcher.locks import FileLock
from tgi_launcher.server_folder import container_names, is_server_folder, lock_server_folder, server_folders

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
        problem: Why something of it is left, in a sentence; empty if nothing is.
        is_lost: Whether there is but a container, which may be another machine's.
    """

    folder: Path
    is_in_use: bool = False
    processes: tuple[tuple[int, str], ...] = ()
    containers: tuple[str, ...] = ()
    problem: str = ""
    is_lost: bool = False


def clean_up() -> list[Remains]:
    """End the processes and remove the folders and containers of this user's servers that are not in use.

    Containers whose folder is gone are told as a problem and left: Docker may run on another machine, with servers of
    others on it.

    Returns:
        What was found of each server, those in use included.

    Raises:
        StartError: The folder of this user's servers is not this user's alone.
    """
    known = server_folders()
    processes = _marked_processes()
    containers = _containers()
    lost = [folder for folder in containers if not folder.is_dir() and not any(map(_is_supervisor, processes[folder]))]
    folders = {*known, *(folder for folder, found in processes.items() if found)} | containers.keys() - {*lost}
    return [
        *(_clean(folder, processes[folder], containers.get(folder, ())) for folder in sorted(folders)),
        *(Remains(folder, problem=_lost(containers[folder]), is_lost=True) for folder in sorted(lost)),
    ]


def _clean(folder: Path, processes: list[psutil.Process], containers: Sequence[str]) -> Remains:
    lock: FileLock | None = None
    try:
        # Somebody may have removed the folder of a server that runs.
        with contextlib.suppress(FileNotFoundError):
            if (lock := lock_server_folder(folder)) is None:
                return Remains(folder, is_in_use=True)
    except StartError as error:
        return Remains(folder, problem=error.summary)
    except OSError as error:
        # One odd entry is no reason to leave the others.
        return Remains(folder, problem=f"{folder} is not as servers leave it ({error.strerror}): look at it yourself.")
    try:
        if any(map(_is_supervisor, processes)):
            return Remains(folder, is_in_use=True)
        return _remove(folder, processes, container_names(folder, containers))
    finally:
        if lock is not None:
            lock.release()


def _remove(folder: Path, processes: list[psutil.Process], containers: Sequence[str]) -> Remains:
    found = tuple((process.pid, _name(process)) for process in processes)
    left = supervisor.end_processes(str(folder), grace_seconds=_GRACE_SECONDS)
    ended = tuple((pid, name) for pid, name in found if pid not in left)
    problem = f"Processes that did not end even by SIGKILL: {', '.join(map(str, left))}." if left else ""
    if containers:
        docker = find_docker()
        remove = (docker, "rm", "-f", *containers) if docker else ()
        why = supervisor.remove_container(remove) if remove else "there is no docker on PATH"
        if why:
            names = ", ".join(containers)
            problem += f"Container {names} could not be removed ({why}), so {folder} is kept: try again."
            return Remains(folder, processes=ended, problem=problem)
    supervisor.remove_leftovers((), str(folder))
    return Remains(folder, processes=ended, containers=tuple(containers), problem=problem)


def _lost(containers: Sequence[str]) -> str:
    names = " ".join(containers)
    return (
        f"No folder is left of the server of container {names}. If it is none of another machine's, which Docker may "
        f"serve too, remove it: docker rm -f {names}"
    )


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
