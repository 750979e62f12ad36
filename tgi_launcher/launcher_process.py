"""One run of TGI's launcher as a process, with the supervisor that watches over it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from tgi_launcher import supervisor
from tgi_launcher.command import Command
from tgi_launcher.errors import Reason, StartError
from tgi_launcher.logs import read_lines
from tgi_launcher.ports import listeners
from tgi_launcher.server_folder import ServerFolder

_logger = logging.getLogger("tgi_launcher")

_START_SECONDS = 30.0
# The supervisor may need so much longer than the launcher: to kill what is left, and to remove a container.
_MARGIN_SECONDS = 45.0
_ORPHAN_GRACE_SECONDS = 3.0
# The last lines of the log are waited for so long, for they tell why it ended.
_LOG_SECONDS = 5.0
# Python puts a script's folder on its path, where files of this package would hide the standard library.
_SAFE_PATH = ["-P"] if sys.version_info >= (3, 11) else []


@dataclass(frozen=True)
class ProcessExit:
    """How a run ended.

    Attributes:
        returncode: Exit code of the launcher, minus the signal that ended it, or None if it had to be killed.
        was_stopped: Whether it was asked to stop.
        left: Ids of processes that even SIGKILL did not end.
    """

    returncode: int | None
    was_stopped: bool
    left: tuple[int, ...] = ()


class LauncherProcess:
    """TGI's launcher and everything it starts.

    Made, it is not started yet: there is an object to stop, wherever in its start an interrupt comes.

    Args:
        command: What to run.
        folder: Its own, which is removed at the end. Its lock is handed on to the supervisor.
        on_line: Called with each line that it prints, and whether its end is missing, in a thread of its own.
        drain_seconds: How long it may take to end when this process has died.
        keep_open: File descriptors to keep open as long as the supervisor lives.

    Attributes:
        marker: Value of `supervisor.MARKER` in the environment of its processes.
        pid: Process id of the launcher; None until it is known.
    """

    def __init__(
        self,
        command: Command,
        folder: ServerFolder,
        on_line: Callable[[str, bool], None],
        *,
        drain_seconds: float,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.marker = str(folder.path)
        self.pid: int | None = None
        self._command = command
        self._folder = folder
        self._on_line = on_line
        self._drain_seconds = drain_seconds
        self._keep_open = keep_open
        self._exit: ProcessExit | None = None
        self._ended = threading.Event()
        self._ending = threading.Lock()
        self._control_lock = threading.Lock()
        self._control: IO[bytes] | None = None
        self._reports: IO[bytes] | None = None
        self._is_told = False
        self._process: subprocess.Popen[bytes] | None = None
        self._first_report: dict[str, Any] = {}
        self._has_reported = threading.Event()
        # Two threads, so that nothing in the log can hide the end.
        self._reader = threading.Thread(target=self._read_log, name="tgi-launcher-log", daemon=True)
        self._watcher = threading.Thread(target=self._await_end, name="tgi-launcher-end", daemon=True)

    def start(self) -> None:
        """Start it, once. Whatever this raises, `stop` has to be called then, and ends what there is of it.

        Raises:
            StartError: It cannot be run at all.
        """
        with contextlib.ExitStack() as files:
            try:
                self._run_supervisor(files)
            except OSError as error:
                raise StartError(Reason.EXITED, f"Python itself cannot be started: {error}.") from error
            finally:
                self._folder.lock.release()
        self._reader.start()
        self._watcher.start()
        spec = {
            "argv": self._command.argv,
            "stop": self._command.stop,
            "remove": self._command.remove,
            "marker": self.marker,
            "parent": os.getpid(),
            "drain_seconds": self._drain_seconds,
            "orphan_grace_seconds": _ORPHAN_GRACE_SECONDS,
            "folder": self._command.folder,
        }
        self._is_told = True
        self._send(json.dumps(spec))
        self._has_reported.wait(_START_SECONDS)
        if (pid := self._first_report.get("pid")) is None:
            problem = self._first_report.get("error", "its supervisor ended at once")
            raise StartError(Reason.LAUNCHER_NOT_FOUND, f"The launcher cannot be run: {problem}.")
        self.pid = pid

    def _run_supervisor(self, files: contextlib.ExitStack) -> None:
        """Start the supervisor. The pipes to it are this object's before it runs, so none is lost with it."""
        told, self._control = _pipe(files, is_written_here=True)
        tells, self._reports = _pipe(files, is_written_here=False)
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, *_SAFE_PATH, str(Path(supervisor.__file__)), str(tells.fileno())],
            stdin=told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**self._command.env, supervisor.MARKER: self.marker},
            pass_fds=(tells.fileno(), cast("int", self._folder.lock.descriptor), *self._keep_open),
            start_new_session=True,
        )

    @property
    def exit(self) -> ProcessExit | None:
        """How it ended; None while it runs."""
        return self._exit

    def listens(self, hostname: str, port: int) -> bool:
        """Whether one of its processes listens at a port; True where that cannot be seen."""
        pids = listeners(hostname, port)
        if not pids or self._process is None:
            return True
        # A launcher that is a script may start TGI with an environment of its own, without the mark.
        own = supervisor.server_processes(self.marker, adopted_by=self._process.pid)
        return not {process.pid for process in own}.isdisjoint(pids)

    def wait(self, timeout: float | None = None) -> ProcessExit | None:
        """Wait until nothing of it is left; None if that takes longer than `timeout` seconds."""
        self._ended.wait(timeout)
        return self._exit

    def stop(self, seconds: float) -> ProcessExit:
        """End it: gently for `seconds`, then by force. Returns when nothing of it is left, in bounded time."""
        self.begin_stop(seconds)
        if not self._is_told:
            # Interrupted before it began. A supervisor that loses its input then ends at once.
            self._close_control()
        if not self._ended.is_set() and not self._watcher.is_alive():
            threading.Thread(target=self._await_end, name="tgi-launcher-end", daemon=True).start()
        if not self._ended.wait(max(seconds, 0.0) + _MARGIN_SECONDS):
            # The supervisor hangs. `_await_end` then ends the processes itself, which it finds by their marker.
            if self._process is not None:
                self._process.kill()
            self._ended.wait(_MARGIN_SECONDS)
        return self._exit or ProcessExit(None, was_stopped=True)

    def begin_stop(self, seconds: float) -> None:
        """Ask it to end within `seconds`, without waiting. May be repeated with less time."""
        if self._is_told:
            self._send(f"stop {seconds}")

    def forget(self) -> None:
        """Let go of it in a fork of the process that started it, where it must not be stopped."""
        self._close_control()

    def _close_control(self) -> None:
        with contextlib.suppress(OSError):
            if self._control is not None:
                self._control.close()

    def _send(self, line: str) -> None:
        with self._control_lock, contextlib.suppress(OSError, ValueError):
            if self._control is not None:
                self._control.write(line.encode() + b"\n")

    def _read_log(self) -> None:
        # Closed at the end, however that comes about: a pipe that nobody reads would hold TGI up.
        with cast("IO[bytes]", cast("subprocess.Popen[bytes]", self._process).stdout) as output:
            for line, is_cut in read_lines(output):
                self._take_line(line, is_cut)

    def _take_line(self, line: str, is_cut: bool) -> None:
        try:
            self._on_line(line, is_cut)
        except Exception:  # the lines behind it may be read
            _logger.exception("A line of the log could not be read")

    def _await_end(self) -> None:
        with self._ending:
            if self._exit is None:
                self._exit = self._see_end()
                self._ended.set()

    def _see_end(self) -> ProcessExit:
        """Wait for the end, and see to it that nothing is left."""
        report: dict[str, Any] = {}
        if self._reports is not None:
            with self._reports:
                for line in self._reports:
                    with contextlib.suppress(ValueError):  # a supervisor that was killed while it wrote
                        report = json.loads(line)
                    self._take_first_report(report)
        self._take_first_report({})
        if self._process is not None:
            self._process.wait()
        with self._control_lock:
            self._close_control()
        if "left" in report:
            exit_ = ProcessExit(report["returncode"], report["stopped"], tuple(report["left"]))
        else:
            # The supervisor was killed, so its work falls to this process.
            left = supervisor.end_processes(self.marker, grace_seconds=_ORPHAN_GRACE_SECONDS)
            supervisor.remove_leftovers(self._command.remove if self._process else (), self.marker)
            exit_ = ProcessExit(None, was_stopped=False, left=tuple(left))
        if self._reader.ident is not None:
            self._reader.join(_LOG_SECONDS)
        return exit_

    def _take_first_report(self, report: dict[str, Any]) -> None:
        if not self._has_reported.is_set():
            self._first_report = report
            self._has_reported.set()


def _pipe(files: contextlib.ExitStack, *, is_written_here: bool) -> tuple[IO[bytes], IO[bytes]]:
    """A pipe as (other end, own end); the other end is closed by `files`."""
    reading, writing = os.pipe()
    reads, writes = os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0)
    other, own = (reads, writes) if is_written_here else (writes, reads)
    return files.enter_context(other), own
