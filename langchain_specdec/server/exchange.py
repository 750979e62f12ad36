"""One exchange with a client: work that ends when the client is gone, and answers sent piece by piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# A stream that is out of time says so itself. A reader who does not even take that is left alone then.
_GRACE = 5.0


# Characters at which clients cut a stream into lines that go by `str.splitlines`, as httpx does.
_LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}


def compact(value: Any) -> str:
    """JSON without spaces, as Rust's serde writes it, in one line whatever ends a line for a client."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_LINE_ENDS)


class Compact(Response):
    """An answer in compact JSON."""

    media_type = "application/json"

    def __init__(self, value: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(value, status_code, headers)

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return compact(content).encode("utf-8", "replace")


async def while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The answer that some work makes. It is cancelled when the client is gone.

    Args:
        request: What is answered. Its body has been read to its end.
        work: Makes the answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        # Nobody reads it, but the web framework wants an answer: nginx's status of a client that has closed.
        return task.result() if task.done() else Response(status_code=499)
    finally:
        await _ended(task, gone)


class EventStream(Response):
    """An answer of server-sent events, which ends when the client is gone, or does not read for too long.

    Args:
        frames: The events as text, the blank line behind each included.
        held: What is let go of at the end, come what may.
        timeout: Seconds that all of it may take.
    """

    def __init__(self, frames: AsyncGenerator[str, None], held: ExitStack, timeout: float) -> None:
        self._frames = frames
        self._held = held
        self._seconds = timeout + _GRACE
        super().__init__(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        # It is not known before the end.
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            writing = asyncio.ensure_future(self._write(send))
            gone = asyncio.ensure_future(_gone(receive))
            try:
                await asyncio.wait({writing, gone}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    writing.result()
            finally:
                await _ended(writing, gone)
                await self._frames.aclose()
        finally:
            self._held.close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for frame in self._frames:
            await send({"type": "http.response.body", "body": frame.encode("utf-8", "replace"), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    """Wait until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
