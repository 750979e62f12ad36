"""A server of this process's own: how it fares, and what an error of it says of its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from langchain_specdec.backends.remote.failures import Failure
from langchain_specdec.errors import BackendUnavailableError, GenerationError
from tgi_launcher.config import TGIConfig
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.state import ServerExit, State

# A router goes on for about ten seconds after the death of its model's process.
_NOTICE_SECONDS = 15.0
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 0.5


class OwnedServer(Protocol):
    """A server that ends with its backend, such as `tgi_launcher.Server`."""

    @property
    def config(self) -> TGIConfig | EngineConfig:
        """What it was to be."""

    @property
    def state(self) -> State:
        """What it is doing."""

    @property
    def last_exit(self) -> ServerExit | None:
        """The latest end that nobody asked for."""

    def stop(self) -> object:
        """End it."""


class OwnedServerWatch:
    """Looks after what becomes of an own server when a request to it fails. For the connection's loop.

    Args:
        server: The server.
        is_healthy: Whether it and its model answer now.
        read_timeout: Most seconds that it may take until the end of a server is known.
    """

    def __init__(self, server: OwnedServer, is_healthy: Callable[[], Awaitable[bool]], read_timeout: float) -> None:
        self._server = server
        self._is_healthy = is_healthy
        self._notice_seconds = min(_NOTICE_SECONDS, read_timeout)
        self._looking = asyncio.Lock()
        self._looked_at = 0.0
        self._is_well = True
        self._unwell_since = 0.0

    @property
    def last_exit(self) -> ServerExit | None:
        """The latest end that nobody asked for."""
        return self._server.last_exit

    async def explain(self, failure: Failure, earlier: ServerExit | None) -> tuple[Failure, ServerExit | None]:
        """A failure with the reason of the server's end, if it has ended; that may take a while to be known.

        Args:
            failure: What came of a request.
            earlier: The server's last end before the request, or the one that explained an earlier attempt.

        Returns:
            The failure, and the last end that explains nothing more.
        """
        if not isinstance(failure.error, (BackendUnavailableError, GenerationError)):
            return failure, earlier
        end = await self._end_since(earlier)
        if end is None:
            return failure, earlier
        then = "" if end.restart_in is None else " It is started again."
        msg = f"{failure.error} The server, which was started from here, has ended: {end.summary}{then}"
        error = BackendUnavailableError(msg)
        if end.restart_in is None:
            return Failure(error.for_good()), end
        return Failure(error, is_transient=True), end

    async def wait_for_restart(self, deadline: float) -> None:
        """Wait until a restart has come to its end, however that is, or until a time of `time.monotonic`."""
        while self._server.state is State.RESTARTING and time.monotonic() < deadline:  # noqa: ASYNC110  # tells nobody
            await asyncio.sleep(_POLL_SECONDS)

    async def _end_since(self, earlier: ServerExit | None) -> ServerExit | None:
        failed_at = time.monotonic()
        while True:
            end = self._server.last_exit
            state = self._server.state
            if end is not None and (end is not earlier or state in (State.FAILED, State.RESTARTING)):
                return end
            if state is not State.READY or await self._was_well_after(failed_at):
                return None
            # One that has been unwell for so long, and has not ended, is of no news to those who fail after.
            if time.monotonic() - min(failed_at, self._unwell_since) > self._notice_seconds:
                return None
            await asyncio.sleep(_POLL_SECONDS)

    async def _was_well_after(self, failed_at: float) -> bool:
        """Whether the server was seen to be well after that time. All requests that failed share each look."""
        async with self._looking:
            now = time.monotonic()
            if self._looked_at < max(failed_at, now - _LOOK_SECONDS):
                is_first = self._is_well or now - self._looked_at > self._notice_seconds
                self._is_well = await self._is_healthy()
                self._looked_at = now
                if is_first:
                    self._unwell_since = now
            return self._is_well
