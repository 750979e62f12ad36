"""Server: starts a server, watches it, starts it again if so wished, and ends it with all its processes.

A `Server` has a `ServerRun` for each start. That carries out a `LaunchPlan`, whose `Command` is run as a
`LauncherProcess`: the engine's program, with a supervisor process as its parent.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

from pydantic import SecretStr, ValidationError
from typing_extensions import Self

from tgi_launcher import at_exit
from tgi_launcher.config import TGIConfig
from tgi_launcher.endpoints import ServedModel
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.choice import engine_of
from tgi_launcher.errors import NotRunningError, Reason, SpeculationInactiveWarning, StartError, StopError, TGIError
from tgi_launcher.metrics import Metrics, SpeculationReport
from tgi_launcher.ports import PortLocks
from tgi_launcher.restart import Backoff, RestartPolicy
from tgi_launcher.server_run import Progress, ServerRun
from tgi_launcher.state import ServerExit, State
from tgi_launcher.systems import require_posix

_logger = logging.getLogger("tgi_launcher")
_T = TypeVar("_T")

_REQUEST_SECONDS = 10.0
# How often to look whether speculation does anything.
_WATCH_SECONDS = 30.0


class Server:
    """A server on this machine, of any engine.

    Start it with `start()` and end it with `stop()`, or use it in `with` or `async with`. Nothing of it outlives this
    process, however that ends: a supervisor process ends all that the engine has started.

    Args:
        config: What it is to be.
        restart: `"never"`, or `"on-failure"` to start it again when it ends without having been asked to.
        backoff: Waits between restarts, and how many there may be.
        on_exit: Called with each end that nobody asked for. Callbacks run in threads of their own.
        on_progress: Called with each step of a start.
        on_log: Called with each line of its log, secrets replaced.
    """

    def __init__(
        self,
        config: TGIConfig | EngineConfig,
        *,
        restart: Literal["never", "on-failure"] = "never",
        backoff: Backoff | None = None,
        on_exit: Callable[[ServerExit], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self._engine = engine_of(config)
        self._restart = restart
        self._backoff = backoff or Backoff()
        self._policy = RestartPolicy(restart, self._backoff)
        self._on_exit = on_exit
        self._on_progress = on_progress
        self._on_log = on_log
        # Held while processes start or end, but not while the watching thread calls a callback.
        self._lifecycle = threading.RLock()
        self._cancelled = threading.Event()
        self._finished = threading.Event()
        self._finished.set()
        self._state = State.STOPPED
        self._locks = PortLocks()
        self._run: ServerRun | None = None
        self._is_ours = True  # not in a fork of this process
        self._watcher: threading.Thread | None = None
        self._has_warned = self._has_logged = False
        self._last_exit: ServerExit | None = None

    # What it is

    @property
    def state(self) -> State:
        """What it is doing."""
        return self._state

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests, as far as is known."""
        return self._state is State.READY

    @property
    def base_url(self) -> str:
        """Address of its HTTP API, without a slash at the end.

        Raises:
            NotRunningError: It was not started, so it has no port yet.
        """
        return self._any_run().base_url

    @property
    def api_key(self) -> SecretStr | None:
        """Key that requests have to carry, None if none."""
        return self.config.api_key

    @property
    def pid(self) -> int | None:
        """Process id of the engine's program, or of Docker's client; None while there is none."""
        run = self._run
        return run.process.pid if run is not None and run.process.exit is None else None

    @property
    def last_exit(self) -> ServerExit | None:
        """The latest end that nobody asked for."""
        return self._last_exit

    def log_tail(self, num_lines: int = 20) -> tuple[str, ...]:
        """The last lines of its log, secrets replaced."""
        return self._run.log_tail(num_lines) if self._run is not None else ()

    def __repr__(self) -> str:
        where = f", {self._run.base_url}" if self._run is not None else ""
        return f"<{type(self).__name__} {self.config.model_id}: {self._state.value}{where}>"

    # Start and stop

    def start(self) -> Self:
        """Start it and wait until `/health` answers 200.

        Raises:
            StartError: It did not become ready within `startup_timeout`, or at all. Nothing of it is left running.
            TGIError: It is running already.
        """
        return self._start(threading.Event())

    def _start(self, cancelled: threading.Event) -> Self:
        with self._lifecycle:
            if self._state not in (State.STOPPED, State.FAILED):
                msg = f"The server is {self._state.value} already."
                raise TGIError(msg)
            self._cancelled = cancelled
            self._finished.clear()
            self._policy = RestartPolicy(self._restart, self._backoff)
            self._run = self._last_exit = None
            self._has_warned = self._has_logged = False
            self._state = State.STARTING
            try:
                self._run_once()
            except BaseException:
                self._finish(State.FAILED)
                raise
            self._watcher = threading.Thread(target=self._watch, args=(cancelled,), name="tgi-launcher", daemon=True)
            self._watcher.start()
            return self

    def stop(self, timeout: float | None = None) -> None:
        """End it, gently: requests that run are finished first. Does nothing if it is not running, nor in a fork.

        Args:
            timeout: Seconds until everything is killed; None takes the config's, 0 kills at once.

        Raises:
            StopError: Processes are left that even SIGKILL did not end.
        """
        if not self._is_ours:
            return
        self.begin_stop(timeout)  # a running start holds the lock until it is cancelled by this
        with self._lifecycle:
            left: tuple[int, ...] = ()
            if self._run is not None and self._run.process.exit is None:
                self._state = State.STOPPING
                left = self._run.process.stop(self._drain_seconds(timeout)).left
            self._finish(State.STOPPED)
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join(_REQUEST_SECONDS)
        if left:
            msg = f"These processes of the server did not end even by SIGKILL: {', '.join(map(str, left))}."
            raise StopError(msg)

    def wait(self, timeout: float | None = None) -> ServerExit | None:
        """Wait until it has ended for good.

        Returns:
            The end that nobody asked for; None if it was stopped, or still runs after `timeout` seconds.
        """
        return self._last_exit if self._finished.wait(timeout) and self._state is State.FAILED else None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def begin_stop(self, timeout: float | None = None) -> None:
        """As `stop`, without waiting for the end. Asked again with less time, it has less."""
        if not self._is_ours:
            return
        self._cancelled.set()
        if (run := self._run) is not None:
            run.process.begin_stop(self._drain_seconds(timeout))

    def forget(self) -> None:
        """In a fork of the process that started it: it is not the fork's to stop, nor to keep alive."""
        self._is_ours = False
        # Nobody watches it here, so nothing may wait for its end.
        self._finished = threading.Event()
        self._finished.set()
        if self._run is not None:
            self._run.process.forget()

    # What it says of itself

    def info(self) -> ServedModel:
        """What it says of its model and of its limits, as they really are.

        Raises:
            NotRunningError: It does not answer.
        """
        return self._engine.read_model(self.base_url, timeout=_REQUEST_SECONDS)

    def metrics(self) -> Metrics:
        """What `/metrics` says.

        Raises:
            NotRunningError: It does not answer.
        """
        return self._engine.read_metrics(self.base_url, timeout=_REQUEST_SECONDS)

    def speculation(self, since: Metrics | None = None) -> SpeculationReport:
        """What speculation really does, measured.

        Warns with `SpeculationInactiveWarning`, once, where it was asked for and does nothing.

        Args:
            since: Begin of the window, from `metrics()`; None is when the server became ready.

        Raises:
            NotRunningError: It does not answer.
        """
        report = self._report(since)
        if report.warning and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"{self.config.model_id}: {report.warning}", SpeculationInactiveWarning, stacklevel=2)
        return report

    # The same for event loops

    async def astart(self) -> Self:
        """As `start`, without blocking the event loop. Cancelled, it ends what it has started."""
        cancelled = threading.Event()
        starting = asyncio.ensure_future(_in_thread(lambda: self._start(cancelled)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                await _in_thread(self.stop)
            raise

    async def astop(self, timeout: float | None = None) -> None:
        """As `stop`, without blocking the event loop. Cancelled, it stops the server all the same."""
        await asyncio.shield(asyncio.ensure_future(_in_thread(lambda: self.stop(timeout))))

    async def __aenter__(self) -> Self:
        return await self.astart()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.astop()

    async def ainfo(self) -> ServedModel:
        """As `info`, without blocking the event loop."""
        return await _in_thread(self.info)

    async def ametrics(self) -> Metrics:
        """As `metrics`, without blocking the event loop."""
        return await _in_thread(self.metrics)

    async def aspeculation(self, since: Metrics | None = None) -> SpeculationReport:
        """As `speculation`, without blocking the event loop."""
        return await _in_thread(lambda: self.speculation(since))

    # Internals

    def _drain_seconds(self, timeout: float | None) -> float:
        return self.config.drain_seconds if timeout is None else max(0.0, timeout)

    def _any_run(self) -> ServerRun:
        if self._run is None:
            msg = "The server was not started, so it has no address."
            raise NotRunningError(msg)
        return self._run

    def _run_once(self) -> None:
        """Start the processes and wait until they are ready. If that fails, nothing of them is left."""
        require_posix()
        earlier = self._run.plan.addresses if self._run is not None else None
        try:
            plan = self._engine.make_plan(self._locks, earlier=earlier)
        except ValidationError as error:
            raise StartError(Reason.INVALID_ARGUMENTS, str(error)) from error
        # Known before anything runs, so that an interrupt at any moment leaves nothing that cannot be stopped.
        self._run = ServerRun(self.config, plan, self._locks, on_progress=self._on_progress, on_log=self._on_log)
        at_exit.register(self)
        self._run.wait_until_ready(self._cancelled)
        self._state = State.READY

    def _watch(self, cancelled: threading.Event) -> None:
        """Wait for ends that nobody asked for, tell of them, and start again if so wished."""
        while not cancelled.is_set():
            run = self._any_run()
            exit_ = run.process.wait(_WATCH_SECONDS)
            if cancelled.is_set():
                return
            if exit_ is None:
                self._check_speculation()
                continue
            ready_seconds = time.monotonic() - (run.ready_at or 0.0)
            error: StartError | None = run.why_ended(exit_)
            while error is not None:
                wait = self._policy.next_wait(error.reason, ready_seconds)
                if not self._tell(error, wait, cancelled) or cancelled.wait(wait):
                    return
                error, ready_seconds = self._start_again(cancelled), 0.0

    def _tell(self, error: StartError, wait: float | None, cancelled: threading.Event) -> bool:
        """Tell of an end; whether there will be a restart."""
        with self._lifecycle:
            if cancelled.is_set():
                return False
            self._last_exit = ServerExit(error.reason, error.summary, error.returncode, error.log_tail, wait)
            if wait is None:
                self._finish(State.FAILED)
            else:
                self._state = State.RESTARTING
        what = "not restarted" if wait is None else f"restarted in {wait:g} s"
        _logger.error("%s ended: %s (%s)", self.config.model_id, error.summary, what)
        if self._on_exit is not None:
            try:
                self._on_exit(self._last_exit)
            except BaseException:  # a caller's error, or its sys.exit(), must not end the watching
                _logger.exception("on_exit failed")
        return wait is not None

    def _start_again(self, cancelled: threading.Event) -> StartError | None:
        with self._lifecycle:
            if cancelled.is_set():
                return None
            try:
                self._run_once()
            except StartError as error:
                return error
            except Exception as error:  # an error that left this thread would be lost
                _logger.exception("The restart failed")
                return StartError(Reason.EXITED, f"The restart failed: {error}.")
            return None

    def _finish(self, state: State) -> None:
        self._locks.release()
        self._state = state
        at_exit.unregister(self)
        self._finished.set()

    def _report(self, since: Metrics | None) -> SpeculationReport:
        begin = since or Metrics(time=self._any_run().ready_at or time.monotonic())
        return self._engine.report(self.metrics(), begin)

    def _check_speculation(self) -> None:
        if self._has_warned or not self.config.num_speculative_tokens:
            return
        try:
            # It warns, and Python shows that on standard error whatever the thread.
            self.speculation()
        except NotRunningError:
            return
        except SpeculationInactiveWarning as warning:
            # The user has made an error of it, which belongs into a call of theirs.
            self._has_warned = False
            if not self._has_logged:
                self._has_logged = True
                _logger.warning("%s", warning)
        except Exception:  # an error that left this thread would end the watching
            _logger.exception("What speculation does could not be read")


async def _in_thread(function: Callable[[], _T]) -> _T:
    # The event loop's own threads may all be busy with calls that wait for this server.
    executor = ThreadPoolExecutor(1, thread_name_prefix="tgi-launcher-async")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, function)
    finally:
        executor.shutdown(wait=False)
