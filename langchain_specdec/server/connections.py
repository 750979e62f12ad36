"""Connections that are of no use to anybody do not stay open: those without a request, and those nobody reads."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# A client that is there asks, or reads what it was answered, in so many seconds.
_SECONDS = 30.0


class Connection(H11Protocol):
    """A connection over HTTP/1.1, looked after once in a while.

    uvicorn limits the time between two requests, but not how long the first may take to come, nor the headers of any;
    and it waits without end for a client that does not read the rest of its answer.
    """

    _timer: asyncio.TimerHandle
    _seen: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(_SECONDS, self._look)

    def _look(self) -> None:
        is_same, self._seen = self.cycle is self._seen, self.cycle
        if self.transport.is_closing():
            self.transport.abort()
        elif is_same and (self.cycle is None or self.cycle.response_complete):
            self.timeout_keep_alive_handler()
        self._look_again()
