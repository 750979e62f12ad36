"""Between the server and its clients: notes what was asked, and has go wrong what a stand-in was asked for."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from langchain_specdec.server.exchange import Compact, compact
from tests.standin.app_server import AppServer
from tests.standin.faults import Fault, Faults
from tests.standin.launcher_log import Log

_UNHEALTHY = Compact({"error": "unhealthy", "error_type": "healthcheck"}, 503)
# Faults of a route each, and what it answers.
_OF_ROUTES = {
    "unhealthy": ("/health", _UNHEALTHY),
    "dead-shard": ("/health", _UNHEALTHY),
    "no-info": ("/info", Response(status_code=404)),
    "no-metrics": ("/metrics", Response(status_code=500)),
    "no-tokenize": ("/tokenize", Compact({"error": "tokenizer error", "error_type": "validation"}, 500)),
}
# What a web framework or a proxy answers, which knows nothing of TGI's errors.
_PAGE = "<html><body><h1>{}</h1></body></html>"
_INSTEAD = {
    "bad-gateway": HTMLResponse(_PAGE.format("502 Bad Gateway"), 502),
    "unavailable": HTMLResponse(_PAGE.format("503 Service Unavailable"), 503),
    "plain-text": PlainTextResponse("Failed to deserialize the JSON body into the target type: inputs", 422),
}
_ERROR = b'data:{"error"'


class FaultyApp:
    """An ASGI middleware.

    Args:
        app: What serves.
        faults: What goes wrong.
        num_running: Tells how many requests run.
        on_crash: Called by the fault `crash`.

    Attributes:
        counts: How often the server was asked for health, `/info` and figures.
        requests: Paths, headers and bodies of what was posted, for tests to look at.
        max_running: Most requests that ran at a time.
    """

    def __init__(
        self,
        app: ASGIApp,
        faults: Faults,
        num_running: Callable[[], int],
        on_crash: Callable[[AppServer], None] = AppServer.abort_answers,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.max_running = 0
        self._app = app
        self._faults = faults
        self._num_running = num_running
        self._on_crash = on_crash

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        request = Request(scope, receive)
        if path == "/standin/faults":
            self._faults.replace(await request.json())
            await Response()(scope, receive, send)
            return
        if method == "GET":
            self.counts[path.strip("/") or "health"] += 1
            if path == "/info" and (slow := self._faults.of_start("slow-info")):
                await asyncio.sleep(slow.seconds or 1.0)
        else:
            self.requests.append({"path": path, "headers": request.headers})
        instead = [answer for name, (of, answer) in _OF_ROUTES.items() if of == path and self._faults.has(name)]
        if instead or method == "GET" or path == "/tokenize":
            await (instead[0] if instead else self._app)(scope, receive, send)
            return
        noted = self.requests[-1]
        body = await request.body()
        with suppress(ValueError):
            noted["body"] = json.loads(body)
        await self._generate(scope, _Again(body, receive), send, noted.get("body"))

    async def _generate(self, scope: Scope, receive: Receive, send: Send, body: Any) -> None:
        faults = self._faults.take()
        if "quoted" in faults:
            Log(is_json=True, target="text_generation_router", is_router=True)(f"Traceback …\n{body}", "ERROR")
        instead = [answer for name, answer in _INSTEAD.items() if name in faults]
        if instead:
            await instead[0](scope, receive, send)
            return
        answer = _Answer(faults, send)
        server: AppServer = scope["state"]["server"]

        async def send_part(message: Message) -> None:
            self.max_running = max(self.max_running, self._num_running())
            await answer.send(message)

        try:
            await self._app(scope, receive, send_part)
        except _Crash:
            self._on_crash(server)
        except _Drop:
            server.abort(scope["client"])
        except _End:
            pass


class _End(Exception):  # noqa: N818
    """The answer has ended early."""


class _Drop(Exception):  # noqa: N818
    """The connection breaks."""


class _Crash(Exception):  # noqa: N818
    """The server ends."""


class _Again:
    """What an app receives: a body that was read already, then what comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Answer:
    """One answer on its way, frame by frame."""

    def __init__(self, faults: Mapping[str, Fault], send: Send) -> None:
        self._faults = faults
        self._send = send
        self._num_sent = 0
        self._is_stream = False
        self._packet = b""
        self._posting: asyncio.Future[None] | None = None

    async def send(self, message: Message) -> None:
        """Send a part of the answer, or what stands for it."""
        if message["type"] == "http.response.start":
            self._is_stream = (b"content-type", b"text/event-stream") in message["headers"]
            if not self._is_stream:
                await self._happen(len(message["headers"]))
            await self._send(message)
            return
        frame = message["body"]
        if not self._is_stream or not message.get("more_body") or frame.startswith(_ERROR):
            if self._posting is not None:
                await self._posting
            await self._send(message)
            return
        await self._happen(self._num_sent)
        self._num_sent += 1
        if "empty-end" in self._faults:
            told = json.loads(frame.removeprefix(b"data:"))
            told["generated_text"] = None if told["generated_text"] is None else ""
            frame = f"data:{compact(told)}\n\n".encode()
        if "one-packet" in self._faults:
            # What comes before anything else is done comes of one forward pass.
            self._packet += frame
            self._posting = self._posting or asyncio.ensure_future(self._post())
            return
        for piece in [frame[i : i + 1] for i in range(len(frame))] if "split-bytes" in self._faults else [frame]:
            await self._send_body(piece)

    async def _post(self) -> None:
        await asyncio.sleep(0)
        packet, self._packet, self._posting = self._packet, b"", None
        await self._send_body(packet)

    async def _send_body(self, body: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def _happen(self, num_sent: int) -> None:
        """Let the faults happen that are due after that many tokens."""
        if slow := self._faults.get("slow"):
            await asyncio.sleep(slow.seconds or 0.05)
        due = {name for name, fault in self._faults.items() if num_sent >= fault.after}
        if "crash" in due:
            raise _Crash
        if "drop" in due or (not self._is_stream and due & {"cut", "garbage"}):
            raise _Drop
        if "cut" in due or "garbage" in due:
            await self._send_body(b"data:{oh no\n\n" if "garbage" in due else b"", is_last=True)
            raise _End
        if "silence" in due:
            await asyncio.sleep(3600)
