"""Serves ASGI applications for tests: at once, on uvicorn's protocol of HTTP, and ended as soon as it is told to."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from typing_extensions import Self
from uvicorn.server import ServerState

from langchain_specdec.server.connections import Connection


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine."""
    # The protocol is named, or asyncio sends no small pieces at once.
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


class AppServer:
    """An application at a socket, in the running event loop. It finds this in the state of each request, as `server`.

    `uvicorn.Server` is no use here: it looks ten times a second whether it is to end, and waits a while then.

    Args:
        app: What serves.
        listener: A bound socket.
    """

    def __init__(self, app: Any, listener: socket.socket) -> None:
        self._config = uvicorn.Config(
            app, http=Connection, ws="none", lifespan="off", proxy_headers=False, access_log=False, log_config=None,
            log_level="critical", timeout_keep_alive=60,
        )  # fmt: skip
        self._config.load()
        self._listener = listener
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen."""

        def connection() -> Connection:
            return Connection(config=self._config, server_state=self._state, app_state={"server": self})

        self._server = await asyncio.get_running_loop().create_server(connection, sock=self._listener, backlog=512)

    def abort(self, client: Any) -> None:
        """Break the connection of the client at an address."""
        self._abort(lambda connection: connection.client == client)

    def abort_answers(self) -> None:
        """Break every connection that an answer is on its way over."""
        self._abort(lambda connection: connection.cycle is not None and not connection.cycle.response_complete)

    def _abort(self, is_meant: Callable[[Any], bool]) -> None:
        for connection in [*self._state.connections]:
            if is_meant(connection):
                connection.transport.abort()

    async def close(self, seconds: float = 0.0) -> None:
        """Stop listening, give what runs that long, and break what is open."""
        if self._server is not None:
            self._server.close()
        for connection in [*self._state.connections]:
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=seconds)
        self._abort(lambda connection: True)
        tasks = [*self._state.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class AppThread:
    """An application in a thread of this process, on a free port, until `close`.

    Args:
        app: What serves.
        port: Port to listen on, 0 for a free one.

    Attributes:
        url: The root address.
    """

    def __init__(self, app: Any, *, port: int = 0) -> None:
        listener = bound("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._server = AppServer(app, listener)
        self._loop.run_until_complete(self._server.start())
        self._thread = threading.Thread(target=self._loop.run_forever, name="standin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Break what is open, end the thread. Closing twice does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
