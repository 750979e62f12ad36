"""One run of a server: from its command to its end, with its log."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from tgi_launcher.config import TGIConfig
from tgi_launcher.diagnosis import Diagnosis, Evidence
from tgi_launcher.endpoints import is_healthy
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.choice import engine_of
from tgi_launcher.errors import Reason, StartError
from tgi_launcher.launcher_process import LauncherProcess, ProcessExit
from tgi_launcher.logs import LogRecord, Stage, printable, shortened
from tgi_launcher.plan import LaunchPlan
from tgi_launcher.ports import PortLocks, taken
from tgi_launcher.redaction import Redactor

_logger = logging.getLogger("tgi_launcher")
_T = TypeVar("_T")

_POLL_SECONDS = 0.1
_HEALTH_SECONDS = 2.0
# A start that failed has no requests to finish.
_ABANDON_SECONDS = 10.0
_KEPT_RECORDS = 2000
_TAIL_LINES = 20


@dataclass(frozen=True)
class Progress:
    """A step of a start.

    Attributes:
        stage: How far it has come.
        message: Line of the log that says so.
        seconds: Since the start.
    """

    stage: Stage
    message: str
    seconds: float


class ServerRun:
    """The processes of a server, from their start to their end.

    Args:
        config: The server.
        plan: How and where it is run.
        locks: Its ports, to be kept as long as anything of it lives.
        on_progress: Called with each step.
        on_log: Called with each line of the log, secrets replaced.

    Nothing runs before `wait_until_ready`.
    """

    def __init__(
        self,
        config: TGIConfig | EngineConfig,
        plan: LaunchPlan,
        locks: PortLocks,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self.plan = plan
        self.ready_at: float | None = None
        self._config = config
        self._engine = engine_of(config)
        self._on_progress = on_progress
        self._on_log = on_log
        self._redact = Redactor(plan.command.secrets)
        self._before = ""
        # From here on a client's text may be in the log.
        self._is_serving = False
        # As they are shown, and as they are: what a short key masks may be why it ended.
        self._shown: deque[LogRecord] = deque(maxlen=_KEPT_RECORDS)
        self._records: deque[LogRecord] = deque(maxlen=_KEPT_RECORDS)
        self._stage: Stage | None = None
        self._started_at = time.monotonic()
        self.process = LauncherProcess(
            plan.command,
            plan.folder,
            self._read_line,
            drain_seconds=config.drain_seconds,
            keep_open=locks.file_descriptors,
        )

    @property
    def base_url(self) -> str:
        """Address of its HTTP API, as seen from this machine."""
        host = self._config.hostname
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.plan.addresses.port}"

    def log_tail(self, num_lines: int = _TAIL_LINES) -> tuple[str, ...]:
        """The last lines of the log, secrets replaced."""
        lines: deque[str] = deque(maxlen=num_lines)
        for record in list(self._shown)[-num_lines:]:
            lines.extend(self._redact(line) for line in record.lines())
        return tuple(lines)

    def wait_until_ready(self, cancelled: threading.Event) -> None:
        """Start the processes and wait until `/health` answers 200; if it never does, end them.

        Args:
            cancelled: Set from elsewhere to give up.

        Raises:
            StartError: It did not become ready. Nothing of it is left running.
        """
        _logger.info("Starting %s: %s", self._config.model_id, self.plan.command)
        self._started_at = time.monotonic()
        try:
            self.process.start()
            self._poll(cancelled)
        except BaseException:
            try:
                self.process.stop(min(_ABANDON_SECONDS, self._config.drain_seconds))
            except BaseException:
                self.process.stop(0.0)  # interrupted a second time, so kill at once
                raise
            raise
        self.ready_at = time.monotonic()
        self._is_serving = True
        self._advance(Stage.READY, f"Ready at {self.base_url}")

    def why_ended(self, exit_: ProcessExit) -> StartError:
        """Why it ended, from its log and its exit code."""
        evidence = Evidence(
            records=list(self._records),
            returncode=exit_.returncode,
            model_id=self._config.model_id,
            port=self.plan.addresses.port,
            is_docker=self.plan.is_docker,
            was_ready=self.ready_at is not None,
        )
        return self._start_error(self._engine.diagnose(evidence), exit_.returncode)

    def _poll(self, cancelled: threading.Event) -> None:
        deadline = self._started_at + self._config.startup_timeout
        while (left := deadline - time.monotonic()) > 0:
            if cancelled.is_set():
                raise self._start_error(Diagnosis(Reason.CANCELLED, "The start was cancelled."), None)
            if (exit_ := self.process.wait(min(_POLL_SECONDS, left))) is not None:
                if cancelled.is_set():
                    continue
                raise self.why_ended(exit_)
            if is_healthy(self.base_url, timeout=min(_HEALTH_SECONDS, max(_POLL_SECONDS, left))):
                port = self.plan.addresses.port
                # Docker binds the port before it starts anything.
                if self.plan.is_docker or self.process.listens(self._config.hostname, port):
                    return
                error = taken("Port", self._config.hostname, port)
                raise self._start_error(Diagnosis(error.reason, error.summary), None)
        stage = self._stage.value if self._stage is not None else "waiting for the first line of its log"
        msg = (
            f"The server was not ready within {self._config.startup_timeout:g} seconds (it was {stage}): "
            "give it more by startup_timeout."
        )
        raise self._start_error(Diagnosis(Reason.TIMEOUT, msg), None)

    def _start_error(self, diagnosis: Diagnosis, returncode: int | None) -> StartError:
        summary = self._redact(printable(diagnosis.summary))
        return StartError(diagnosis.reason, summary, log_tail=self.log_tail(), returncode=returncode)

    def _read_line(self, line: str, is_cut: bool) -> None:
        record = self._engine.parse_line(line)
        # Shortened before it is searched for secrets, which takes its time: clients decide how long a line is.
        raw = replace(record, message=shortened(record.message), while_serving=self._is_serving)
        # A record is whole, but what is none, such as a traceback, comes line by line.
        before = "" if record.level else self._before
        message = self._redact(raw.message, is_cut=is_cut, before=before)
        if not record.level:
            self._before = self._redact.tail(raw.message, before)
        record = replace(raw, message=message)
        if not record.message.strip():
            return
        self._records.append(raw)
        self._shown.append(record)
        for text in record.lines():
            shown = self._redact(text)
            _logger.debug("%s", shown)
            if self._on_log is not None:
                self._call(self._on_log, shown)
        stage = self._engine.stage_of(record)
        if stage is not None and not self._is_serving:
            self._advance(stage, self._redact(record.lines()[0]))
        self._is_serving = self._is_serving or self._engine.begins_serving(record)

    def _advance(self, stage: Stage, message: str) -> None:
        if self._stage is not None and stage.position < self._stage.position:
            return
        if stage is not self._stage:
            _logger.info("%s: %s", self._config.model_id, stage.value)
        self._stage = stage
        if self._on_progress is not None:
            self._call(self._on_progress, Progress(stage, message, time.monotonic() - self._started_at))

    def _call(self, callback: Callable[[_T], None], value: _T) -> None:
        try:
            callback(value)
        except BaseException:  # a caller's error, or its sys.exit(), must not stop the reading of the log
            _logger.exception("A callback failed")
