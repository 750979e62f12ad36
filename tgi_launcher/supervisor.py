"""The process between ours and TGI's launcher, which sees to it that nothing of TGI outlives us.

TGI's launcher puts its shards and its router into process groups of their own and sets no parent-death signal: when it
is killed, they stay, and the GPU's memory with them. So each launcher gets a supervisor as its parent. It adopts what
the launcher leaves behind (as a child subreaper, on Linux), and it holds one end of a pipe to our process: when that
closes, whatever the cause, it stops the launcher, waits, and kills what is left.

If it is the supervisor that is killed, our process does that. If both are, the launcher gets SIGTERM (on Linux), and
ends its shards and its router itself.

This file is run as a script, so that it starts fast and depends on psutil only. It reads a JSON object from standard
input and then commands, one a line: `stop SECONDS`. What TGI prints goes to standard output. On the file descriptor
given as argument it reports, as JSON lines, the launcher's process id and, at its end, how that ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

# Every process of a server has this variable in its environment. Its value is the server's folder.
MARKER = "TGI_LAUNCHER_SERVER"

# What starts servers refuses before it comes to that; type checkers learn what follows not to run on Windows.
_NOT_HERE = "servers cannot run on Windows"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# How often to check that the parent process still runs, if nothing else wakes the loop.
_POLL_SECONDS = 0.5
_KILL_SECONDS = 10.0
_COMMAND_SECONDS = 30.0
_STEP_SECONDS = 0.05
# What the launcher may print when nobody is left to read it. More, it waits for ever.
_PIPE_BYTES = 2**20


def server_processes(marker: str, *, adopted_by: int | None = None) -> list[psutil.Process]:
    """The live processes of a server.

    Args:
        marker: Value of `MARKER` in their environment.
        adopted_by: Process whose descendants belong to the server too, whatever their environment says.
    """
    processes: dict[int, psutil.Process] = {}
    if adopted_by is not None:
        with contextlib.suppress(psutil.Error):
            processes = {process.pid: process for process in psutil.Process(adopted_by).children(recursive=True)}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in processes and process.environ().get(MARKER) == marker and is_own(process):
                processes[process.pid] = process
    skipped = {os.getpid(), adopted_by}
    return [process for process in processes.values() if process.pid not in skipped and is_alive(process)]


def is_own(process: psutil.Process) -> bool:
    """Whether it is this user's. The administrator sees the environment of all."""
    if sys.platform == "win32":
        raise OSError(_NOT_HERE)
    return process.uids().real == os.getuid()


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs, and does not only wait to be collected by its parent."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def end_processes(marker: str, *, grace_seconds: float, adopted_by: int | None = None) -> list[int]:
    """End all processes of a server: SIGTERM, then SIGKILL.

    Args:
        marker: Value of `MARKER` in their environment.
        grace_seconds: Time between the two signals; 0 leaves the first out.
        adopted_by: As in `server_processes`.

    Returns:
        Ids of those that are still there, which even SIGKILL does not end.
    """
    grace_ends = time.monotonic() + grace_seconds
    ends = grace_ends + _KILL_SECONDS
    told: set[int] = set()
    while left := server_processes(marker, adopted_by=adopted_by):
        now = time.monotonic()
        if now >= ends:
            return [process.pid for process in left]
        for process in left:
            with contextlib.suppress(psutil.Error):
                if now >= grace_ends:
                    process.kill()
                elif process.pid not in told:
                    told.add(process.pid)
                    process.terminate()
        time.sleep(_STEP_SECONDS)
        if adopted_by == os.getpid():
            _reap()
    return []


def remove_leftovers(remove: Sequence[str], folder: str) -> None:
    """Remove what is left of a server when its processes are gone.

    Args:
        remove: Command that removes its container; empty if it has none.
        folder: Its own. It is kept where the container is, so that a clean-up finds that.
    """
    if not (remove and remove_container(remove)):
        # A link in its place is not followed.
        shutil.rmtree(folder, ignore_errors=True)


def remove_container(remove: Sequence[str]) -> str:
    """Run a command that removes containers; why it failed, or an empty text."""
    try:
        done = subprocess.run(  # noqa: S603
            remove,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except OSError as error:
        return f"{error.strerror}: {remove[0]}"
    except subprocess.TimeoutExpired:
        return f"Docker did not answer within {_COMMAND_SECONDS:g} seconds"
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    problems = [line for line in said if "no such container" not in line.lower()]
    return problems[0] if done.returncode and problems else ""


def _reap() -> Iterator[tuple[int, int]]:
    """Collect children that have ended, as (process id, exit code or minus signal)."""
    if sys.platform == "win32":
        raise OSError(_NOT_HERE)
    ended = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return iter(ended)


class _Supervisor:
    def __init__(self, spec: dict[str, Any], commands: bytes, report_to: int) -> None:
        self._spec = spec
        self._commands = commands
        self._report_to = report_to
        self._parent = spec["parent"]
        self._returncode: int | None = None
        self._deadline: float | None = None
        self._is_signalled = False
        self._control_is_open = True
        self._pid = 0

    def run(self) -> None:
        if sys.platform == "win32":
            raise OSError(_NOT_HERE)
        libc = _libc()
        if libc is not None:
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        logged, logs = _pipe()
        try:
            # `preexec_fn` is safe here: there is no other thread yet.
            process = subprocess.Popen(  # noqa: S603
                self._spec["argv"],
                stdin=subprocess.DEVNULL,
                stdout=logs,
                stderr=logs,
                cwd=self._spec["folder"],
                # With an end to read from among its own files, its log outlives this process: the launcher fails when
                # it cannot print, and then leaves its shards and its router behind.
                pass_fds=[logged],
                start_new_session=True,
                preexec_fn=(lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)) if libc else None,
            )
        except OSError as error:
            remove_leftovers([], self._spec["marker"])
            # Where it is the folder to run in that is at fault, the error names that.
            self._report(error=f"{error.strerror}: {error.filename or self._spec['argv'][0]}")
            return
        self._pid = process.pid
        os.close(logs)
        relay = threading.Thread(target=_relay, args=(logged,), daemon=True)
        relay.start()
        self._report(pid=self._pid)
        self._watch(woken)
        # `_reap` has collected the exit code. Popen does not know and would wait for it.
        process.returncode = self._returncode if self._returncode is not None else -signal.SIGKILL
        left = self._clean_up()
        relay.join(2.0)
        self._report(returncode=self._returncode, stopped=self._deadline is not None, left=left)

    def _watch(self, woken: int) -> None:
        """Wait until the launcher has ended, or the time for that is over."""
        self._take_commands(b"")  # those that came together with the first line
        while True:
            for pid, returncode in _reap():
                if pid == self._pid:
                    self._returncode = returncode
            if self._returncode is not None:
                return
            if self._is_signalled or os.getppid() != self._parent:
                self._stop(self._spec["drain_seconds"])
            timeout = _POLL_SECONDS
            if self._deadline is not None:
                timeout = min(timeout, self._deadline - time.monotonic())
                if timeout <= 0:
                    return
            ready, _, _ = select.select([woken, *([0] if self._control_is_open else [])], [], [], timeout)
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
            if 0 in ready:
                self._read_commands()

    def _read_commands(self) -> None:
        data = os.read(0, 4096)
        if not data:
            self._control_is_open = False
            self._stop(self._spec["drain_seconds"])
        self._take_commands(data)

    def _take_commands(self, data: bytes) -> None:
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            verb, _, seconds = line.partition(b" ")
            if verb == b"stop":
                self._stop(float(seconds))

    def _stop(self, seconds: float) -> None:
        """Ask the launcher to end. Asked again, the time it has can only become shorter."""
        deadline = time.monotonic() + seconds
        if self._deadline is not None:
            self._deadline = min(self._deadline, deadline)
            return
        self._deadline = deadline
        if seconds <= 0:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
        if self._spec["stop"]:
            with contextlib.suppress(OSError):
                subprocess.Popen(  # noqa: S603
                    self._spec["stop"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )

    def _clean_up(self) -> list[int]:
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        left = end_processes(
            self._spec["marker"],
            grace_seconds=0.0 if is_late else self._spec["orphan_grace_seconds"],
            adopted_by=os.getpid(),
        )
        remove_leftovers(self._spec["remove"], self._spec["marker"])
        return left

    def _on_signal(self, number: int, frame: object) -> None:
        self._is_signalled = True

    def _report(self, **values: object) -> None:
        with contextlib.suppress(OSError):
            os.write(self._report_to, json.dumps(values).encode() + b"\n")


def _relay(source: int) -> None:
    """Pass on what TGI prints. A reader that is gone must not end TGI, which fails when it cannot print."""
    while data := os.read(source, 65536):
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(1, data) :]


def _pipe() -> tuple[int, int]:
    if sys.platform == "win32":
        raise OSError(_NOT_HERE)
    import fcntl  # Windows has none, and can do all but start servers

    ends = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return ends


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _main() -> None:
    data = b""
    while b"\n" not in data:
        more = os.read(0, 65536)
        if not more:
            return
        data += more
    spec, _, commands = data.partition(b"\n")
    _Supervisor(json.loads(spec), commands, int(sys.argv[1])).run()


if __name__ == "__main__":
    _main()
