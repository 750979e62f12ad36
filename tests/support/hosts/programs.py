"""Programs that tests start: with a model of their own, in a session of their own, ended in any case."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
STARTS_WITHIN = 120.0


def exits_within() -> float:
    """Seconds that a program may take to end: three, of which an interpreter with PyTorch needs more than one.

    More where the machine has other work to do.
    """
    return 3.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def environment(model: Path, **more: str) -> dict[str, str]:
    """The environment of a program: it finds this project, its tests and its examples, and shares its cores."""
    paths = [str(ROOT), str(ROOT / "docs/examples")]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    own = {
        "MODEL_ID": str(model),
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **own, **more}


class Program:
    """A program that runs.

    Args:
        arguments: What to run by this Python, such as `["-m", "uvicorn", ...]`.
        log: Where its output goes.
        env: Its environment.
    """

    def __init__(self, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.url = ""
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, *arguments], stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], bool], seconds: float = STARTS_WITHIN) -> None:
        """Wait until something holds that the program brings about."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the program ended by itself:\n{self.output}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s:\n{self.output}"
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        """The program and all its children."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def zombies(self) -> list[int]:
        """Children that ended and that it did not wait for."""
        return [each.pid for each in self.family()[1:] if each.status() == psutil.STATUS_ZOMBIE]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, as whoever runs it does; its exit status. It may take three seconds, and leave nothing."""
        family = self.family()
        within = exits_within()
        begun = time.monotonic()
        self.process.send_signal(number)
        try:
            status = self.process.wait(within * 3)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.output}") from None
        seconds = time.monotonic() - begun
        _, left = psutil.wait_procs(family, timeout=1.0)
        # What outlived its parent for a moment is left to the first process of the machine, which may not look.
        left = [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        assert not left, f"left behind: {left}\n{self.output}"
        assert seconds < within, f"it took {seconds:.1f} s to end:\n{self.output}"
        return status

    def kill(self) -> None:
        """End it and all its children, whatever they do."""
        for each in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait(10.0)


@contextlib.contextmanager
def running(arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> Iterator[Program]:
    """A program while a test runs."""
    program = Program(arguments, log, env)
    try:
        yield program
    finally:
        program.kill()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
