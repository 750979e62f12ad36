"""`tgi-launch start`: a server in the foreground, with a status line, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from typing import Annotated

import typer

from tgi_launcher.cli.brief_log import BriefLog
from tgi_launcher.cli.reporting import FAILED, INTERRUPTED, with_flags
from tgi_launcher.cli.status import make_status
from tgi_launcher.config import TGIConfig
from tgi_launcher.endpoints import ServerInfo
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.choice import engine_of
from tgi_launcher.errors import NotRunningError, SpeculationInactiveWarning, StartError, StopError, TGIError
from tgi_launcher.field_options import Group
from tgi_launcher.logs import Stage
from tgi_launcher.metrics import Metrics
from tgi_launcher.restart import Backoff
from tgi_launcher.server import Server
from tgi_launcher.server_run import Progress
from tgi_launcher.state import ServerExit, State
from tgi_launcher.systems import require_posix

_TICK_SECONDS = 0.1
_METRICS_SECONDS = 2.0


def start(
    config: TGIConfig | EngineConfig,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start it again when it fails.", rich_help_panel=Group.RUNTIME.value)
    ] = False,
    max_restarts: Annotated[
        int, typer.Option(help="Restarts in a row before giving up.", min=0, rich_help_panel=Group.RUNTIME.value)
    ] = 5,
    logs: Annotated[
        bool,
        typer.Option(
            "--logs",
            help="Show the whole log, not only warnings and errors.",
            rich_help_panel=Group.RUNTIME.value,
        ),
    ] = False,
) -> None:
    """Start a server in the foreground. Ctrl-C ends it gently, a second Ctrl-C at once.

    It ends with the shell that started it too; with `nohup` it outlives it.
    """
    _Foreground(config, "on-failure" if restart else "never", Backoff(max_restarts=max_restarts), logs=logs).run()


class _Foreground:
    """A server, the signals that end it, and what is shown of it."""

    def __init__(self, config: TGIConfig | EngineConfig, restart: str, backoff: Backoff, *, logs: bool) -> None:
        self._hangups = _hangups()
        self._status = make_status()
        self._brief = None if logs else BriefLog(self._status.log)
        self._server = Server(
            config,
            restart=restart,  # type: ignore[arg-type]
            backoff=backoff,
            on_exit=self._on_exit,
            on_progress=self._on_progress,
            on_log=self._on_log,
        )
        self._num_signals = 0
        self._parent = os.getppid()
        self._stage = "starting"
        self._warned = False
        self._failure: TGIError | None = None
        self._last: Metrics | None = None
        self._line = ""

    def run(self) -> None:
        """Until the server has ended, however that comes about."""
        # `_figures` says it, in one line.
        warnings.simplefilter("ignore", SpeculationInactiveWarning)
        for number in (signal.SIGINT, signal.SIGTERM, *self._hangups):
            signal.signal(number, self._on_signal)
        # The start has a thread of its own, so that the main thread stays free for signals.
        starting = threading.Thread(target=self._start, daemon=True)
        starting.start()
        try:
            self._loop(starting)
        finally:
            self._stop()
            starting.join()
            if self._brief is not None:
                self._brief.flush(is_over=True)
            self._status.close()
        if self._num_signals:
            # One signal is the normal way to end a server, two are an interruption.
            raise typer.Exit(INTERRUPTED if self._num_signals > 1 else 0)
        if self._failure is not None:
            raise self._failure
        if self._server.last_exit is not None:
            raise typer.Exit(FAILED)

    def _start(self) -> None:
        try:
            self._server.start()
        except StartError as error:
            summary, log_tail = self._told(error.summary, error.log_tail)
            error = StartError(error.reason, summary, log_tail=log_tail, returncode=error.returncode)
            # A failure of ours comes before what it has made of the start.
            self._failure = self._failure or error
        except TGIError as error:
            self._failure = self._failure or error

    def _loop(self, starting: threading.Thread) -> None:
        began = time.monotonic()
        read_at = 0.0
        is_ready = False
        while not self._num_signals and self._failure is None:
            if starting.is_alive() or self._server.state is State.RESTARTING:
                is_ready = False
                self._status.show(f"{self._stage} · {_clock(time.monotonic() - began)}")
            elif self._server.state is State.READY:
                if not is_ready:
                    is_ready, began, self._last = True, time.monotonic(), None
                    self._welcome()
                if time.monotonic() - read_at >= _METRICS_SECONDS:
                    read_at = time.monotonic()
                    self._line = self._figures()
                self._status.show(f"ready · {self._line}up {_clock(time.monotonic() - began)}")
            elif self._server.wait(0) is not None:
                return
            if os.getppid() != self._parent and self._hangups:
                # A shell that is killed sends no SIGHUP, and nobody is left to press Ctrl-C.
                self._num_signals += 1
            if self._status.problem:
                self._failure = TGIError(
                    f"{self._status.problem}, so the server was stopped. To run without it, add: > /dev/null"
                )
            if self._brief is not None:
                self._brief.flush()
            time.sleep(_TICK_SECONDS)

    def _stop(self) -> None:
        if self._server.state in (State.STOPPED, State.FAILED):
            return
        stopping = threading.Thread(target=self._stop_quietly, daemon=True)
        stopping.start()
        began = time.monotonic()
        while stopping.is_alive():
            if self._num_signals > 1:
                self._server.begin_stop(0.0)
            hint = "Ctrl-C again kills" if self._num_signals <= 1 else "killing"
            self._status.show(f"stopping · {_clock(time.monotonic() - began)} · {hint}")
            stopping.join(_TICK_SECONDS)

    def _stop_quietly(self) -> None:
        try:
            self._server.stop()
        except StopError as error:
            self._status.say(f"error: {error}")

    def _on_signal(self, number: int, frame: object) -> None:
        self._num_signals += 1

    def _on_progress(self, progress: Progress) -> None:
        if progress.stage is Stage.READY:
            return
        if progress.stage.value != self._stage:
            self._status.step(progress.stage.value)
        self._stage = progress.stage.value

    def _on_log(self, line: str) -> None:
        if self._brief is None:
            self._status.log(line)
        else:
            self._brief.add(line)

    def _on_exit(self, end: ServerExit) -> None:
        after = "" if end.restart_in is None else f" Starting again in {end.restart_in:g} s."
        summary, log_tail = self._told(end.summary, end.log_tail)
        for line in log_tail:
            self._status.log(line)
        self._status.say(f"error: {with_flags(summary)}{after}")
        self._stage = "waiting to start again"

    def _told(self, summary: str, log_tail: tuple[str, ...]) -> tuple[str, list[str]]:
        """Why the server ended, and what of the end of its log was not shown before."""
        if self._brief is None:
            return summary, []
        self._brief.flush(is_over=True)
        return summary.replace("the log says more", "--logs shows more of the log"), self._brief.untold(log_tail)

    def _welcome(self) -> None:
        self._status.say(f"Ready: {self._server.base_url}")
        try:
            info = self._server.info()
        except NotRunningError:
            return
        if not isinstance(info, ServerInfo):
            longest = "" if info.max_total_tokens is None else f", in all {info.max_total_tokens} tokens"
            self._status.say(f"  {info.model_id}{longest}")
            return
        self._status.say(
            f"  {info.model_id}, prompts up to {info.max_input_tokens} and in all {info.max_total_tokens} tokens, "
            f"{info.max_concurrent_requests} requests at a time"
        )

    def _figures(self) -> str:
        """What happened since the last look."""
        try:
            now = self._server.metrics()
        except NotRunningError:
            return "/metrics does not answer · "
        before, self._last = self._last, now
        engine = engine_of(self._server.config)
        report = engine.report(now, before or now)
        total = engine.report(now, Metrics(time=now.time))
        if total.warning and not self._warned:
            self._warned = True
            self._status.say(f"warning: {total.warning}")
        parts = [f"{report.tokens_per_second:.1f} tokens/s" if before else ""]
        if report.num_decode_passes:
            parts.append(f"{report.tokens_per_step:.2f} tokens/step")
        elif total.num_decode_passes:
            parts.append(f"{total.tokens_per_step:.2f} tokens/step so far")
        if (rate := total.acceptance_rate) is not None:
            parts.append(f"{rate:.0%} of drafts accepted")
        parts.append(f"{now.batch_size:.0f} running, {now.queue_size:.0f} waiting")
        return "".join(f"{part} · " for part in parts if part)


def _hangups() -> list[signal.Signals]:
    """What comes when the shell ends; nothing under `nohup`, which has it ignored so that the command outlives it."""
    require_posix()
    return [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
