"""A server of raw bytes: what no web framework would send, on a free port of this machine, until `close`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from typing_extensions import Self

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Gets the request, head and body, and writes what it likes. The connection is closed after it."""

INFO = {"model_id": "m", "max_concurrent_requests": 8, "max_stop_sequences": 4, "max_total_tokens": 4096}


def answer(body: bytes | str | Any, status: str = "200 OK", **headers: str) -> Handler:
    """A whole answer; what is not text or bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    given = {"Content-Type": "application/json", "Content-Length": str(len(data)), "Connection": "close"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return raw(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + data)


def raw(data: bytes) -> Handler:
    """Just these bytes."""

    async def handle(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return handle


def trickle(data: bytes, start: bytes = b"") -> Handler:
    """`start` at once, then a byte of `data` every 20 ms, again and again."""

    async def handle(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)

    return handle


def endless(piece: bytes, start: bytes = b"") -> Handler:
    """`start`, then `piece` as fast as they are read, for ever."""

    async def handle(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(piece)
            await writer.drain()

    return handle


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def frame(token: object = 5, text: object = "a", end: object = None, **fields: object) -> bytes:
    """A frame of a stream of tokens."""
    value = {
        "index": 1,
        "token": {"id": token, "text": text, "logprob": -0.5, "special": False},
        "generated_text": None if end is None else "a",
        "details": None if end is None else {"finish_reason": end, "generated_tokens": 1, "seed": None},
        **fields,
    }
    return f"data: {json.dumps(value)}\n\n".encode()


class RawServer:
    """The server. Paths without a handler get a 404.

    Args:
        handlers: By path.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = {"/info": answer(INFO), "/tokenize": answer([{"id": 1}, {"id": 2}]), **handlers}
        self.requests: list[bytes] = []
        self.num_open = 0
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, name="raw-server", daemon=True)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_open += 1
        self._tasks.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            request = head + await reader.readexactly(length)
            self.requests.append(request)
            path = head.split(b" ")[1].decode()
            await self._handlers.get(path, answer("", "404 Not Found"))(request, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.num_open -= 1
            self._tasks.discard(asyncio.current_task())
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def close(self) -> None:
        """Break what is open and end the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for task in self._tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
