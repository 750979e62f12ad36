"""Runs a server until it is told to end, and lets running requests end first."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import Callable

import uvicorn
from typing_extensions import Self

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.server.app import make_app
from langchain_specdec.server.settings import ServerSettings


class Server:
    """Serves a model. Its port is bound when it is made, so that a port that is taken is told before anything else.

    Args:
        settings: Where, and how much it takes.

    Raises:
        InvalidParameterError: The address is none of this machine's, or its port is taken.

    Attributes:
        url: The root address.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._socket = _bound(settings.host, settings.port)
        self.url = _url(self._socket)
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def run(
        self,
        backend: LocalBackend,
        on_ready: Callable[[], object] = lambda: None,
        on_wait: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Serve until SIGTERM or SIGINT, or `stop`. Running requests have `drain_timeout` seconds to end then.

        Args:
            backend: Runs the model; it is not closed.
            on_ready: Called when requests are answered.
            on_wait: Told how many requests the end waits for, if any.

        Raises:
            InvalidParameterError: Another program has begun to listen on the port.
        """
        config = uvicorn.Config(
            make_app(backend, self._settings),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=self._settings.drain_timeout,
            timeout_keep_alive=30,
        )
        self._uvicorn = _Announced(config, on_ready, on_wait)
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        with self._socket:
            try:
                self._uvicorn.run(sockets=[self._socket])
            except OSError as error:
                # Two servers that start at a time are both bound, and only the first of them listens.
                if error.errno != errno.EADDRINUSE:
                    raise
                raise _taken(self._settings.port) from error

    def start(self, backend: LocalBackend) -> Self:
        """Serve in a thread of this process, until `stop`; returns when requests are answered."""
        is_ready = threading.Event()
        self._thread = threading.Thread(
            target=self.run, args=(backend, is_ready.set), name="specdec-serve", daemon=True
        )
        self._thread.start()
        while not is_ready.wait(0.1):
            if not self._thread.is_alive():
                msg = "The server ended before it was ready."
                raise RuntimeError(msg)
        return self

    def stop(self) -> None:
        """Take no more requests, and wait for those that run. Called in another thread than `run`."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class _Announced(uvicorn.Server):
    """A server that says when it is ready, and what it waits for at its end."""

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], object], on_wait: Callable[[int], object]
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_wait = on_wait

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.tasks:
            self._on_wait(len(self.server_state.tasks))
        await super().shutdown(sockets)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Whether a message is no traceback of a request that the server's end cut off, which is no fault."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - an address to connect to
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _taken(port: int) -> InvalidParameterError:
    return InvalidParameterError(
        f"port {port} is taken: another program listens there. Give another one, or 0 for any free one."
    )


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, or asyncio takes it for none that sends small pieces at once.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _taken(port) from error
        msg = f"host {host!r} with port {port} cannot be listened on: {error.strerror or error}."
        raise InvalidParameterError(msg) from error
    return listener
