"""One run of TGI's launcher as a process, with the supervisor that watches over it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
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

    Args:
        command: What to run.
        folder: Its own, which is removed at the end. Its lock is handed on to the supervisor.
        on_line: Called with each line that it prints, and whether its end is missing, in a thread of its own.
        drain_seconds: How long it may take to end when this process has died.
        keep_open: File descriptors to keep open as long as the supervisor lives.

    Raises:
        StartError: It cannot be run at all.
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
        self._command = command
        self._on_line = on_line
        self._exit: ProcessExit | None = None
        self._ended = threading.Event()
        self._control_lock = threading.Lock()
        reports, report_to = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, *_SAFE_PATH, str(Path(supervisor.__file__)), str(report_to)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**command.env, supervisor.MARKER: self.marker},
                pass_fds=(report_to, cast("int", folder.lock.descriptor), *keep_open),
                start_new_session=True,
            )
        except OSError as error:
            os.close(reports)
            supervisor.remove_leftovers((), self.marker)
            raise StartError(Reason.EXITED, f"Python itself cannot be started: {error}.") from error
        finally:
            os.close(report_to)
            folder.lock.release()
        self._reports = os.fdopen(reports, encoding="utf-8")
        spec = {
            "argv": command.argv,
            "stop": command.stop,
            "remove": command.remove,
            "marker": self.marker,
            "parent": os.getpid(),
            "drain_seconds": drain_seconds,
            "orphan_grace_seconds": _ORPHAN_GRACE_SECONDS,
            "folder": command.folder,
        }
        self._send(json.dumps(spec))
        first = self._first_report()
        # Two threads, so that nothing in the log can hide the end.
        self._reader = threading.Thread(target=self._read_log, name="tgi-launcher-log", daemon=True)
        self._reader.start()
        threading.Thread(target=self._await_end, name="tgi-launcher-end", daemon=True).start()
        if "pid" not in first:
            self._ended.wait(_START_SECONDS)
            problem = first.get("error", "its supervisor ended at once")
            raise StartError(Reason.LAUNCHER_NOT_FOUND, f"The launcher cannot be run: {problem}.")
        self.pid: int = first["pid"]

    @property
    def exit(self) -> ProcessExit | None:
        """How it ended; None while it runs."""
        return self._exit

    def listens(self, port: int) -> bool:
        """Whether one of its processes listens at a port; True where this user may not look."""
        pids = listeners(port)
        return pids is None or not {process.pid for process in supervisor.server_processes(self.marker)}.isdisjoint(
            pids
        )

    def wait(self, timeout: float | None = None) -> ProcessExit | None:
        """Wait until nothing of it is left; None if that takes longer than `timeout` seconds."""
        self._ended.wait(timeout)
        return self._exit

    def stop(self, seconds: float) -> ProcessExit:
        """End it: gently for `seconds`, then by force. Returns when nothing of it is left, in bounded time."""
        self.begin_stop(seconds)
        if not self._ended.wait(max(seconds, 0.0) + _MARGIN_SECONDS):
            # The supervisor hangs. `_await_end` then ends the processes itself, which it finds by their marker.
            self._process.kill()
            self._ended.wait(_MARGIN_SECONDS)
        return self._exit or ProcessExit(None, was_stopped=True)

    def begin_stop(self, seconds: float) -> None:
        """Ask it to end within `seconds`, without waiting. May be repeated with less time."""
        self._send(f"stop {seconds}")

    def forget(self) -> None:
        """Let go of it in a fork of the process that started it, where it must not be stopped."""
        with contextlib.suppress(OSError):
            cast("IO[bytes]", self._process.stdin).close()

    def _send(self, line: str) -> None:
        with self._control_lock, contextlib.suppress(OSError, ValueError):
            control = cast("IO[bytes]", self._process.stdin)
            control.write(line.encode() + b"\n")
            control.flush()

    def _first_report(self) -> dict[str, Any]:
        deadline = time.monotonic() + _START_SECONDS
        if select.select([self._reports], [], [], deadline - time.monotonic())[0] and (
            line := self._reports.readline()
        ):
            return cast("dict[str, Any]", json.loads(line))
        self._process.kill()
        return {}

    def _read_log(self) -> None:
        # Closed at the end, however that comes about: a pipe that nobody reads would hold TGI up.
        with cast("IO[bytes]", self._process.stdout) as output:
            for line, is_cut in read_lines(output):
                self._take_line(line, is_cut)

    def _take_line(self, line: str, is_cut: bool) -> None:
        try:
            self._on_line(line, is_cut)
        except Exception:  # the lines behind it may be read
            _logger.exception("A line of the log could not be read")

    def _await_end(self) -> None:
        with self._reports:
            lines = list(self._reports)
        self._process.wait()
        with self._control_lock, contextlib.suppress(OSError):
            cast("IO[bytes]", self._process.stdin).close()
        report: dict[str, Any] = {}
        with contextlib.suppress(ValueError):  # a supervisor that was killed while it wrote
            report = json.loads(lines[-1]) if lines else {}
        if "left" in report:
            exit_ = ProcessExit(report["returncode"], report["stopped"], tuple(report["left"]))
        else:
            # The supervisor was killed, so its work falls to this process.
            left = supervisor.end_processes(self.marker, grace_seconds=_ORPHAN_GRACE_SECONDS)
            supervisor.remove_leftovers(self._command.remove, self.marker)
            exit_ = ProcessExit(None, was_stopped=False, left=tuple(left))
        self._reader.join(_LOG_SECONDS)
        self._exit = exit_
        self._ended.set()
