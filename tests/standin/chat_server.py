"""A stand-in for the `/v1/chat/completions` of any kind of server: it sends the pieces that a test has written down."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

USAGE = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}


def delta(reason: str | None = None, **said: Any) -> dict[str, Any]:
    """A piece that says so much."""
    return {"choices": [{"index": 0, "delta": said, "finish_reason": reason}]}


def call(index: int | None, arguments: Any, name: str | None = None, call_id: str | None = None) -> dict[str, Any]:
    """A piece of a call."""
    given = {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}
    return delta(tool_calls=[{key: value for key, value in given.items() if value is not None}])


@dataclass
class ChatStandIn:
    """What a server answers, and what it was asked.

    Attributes:
        owner: What its list of models says of its kind.
        pieces: Those of every answer.
        refusal: Status and words of an error in place of an answer.
        asked: The bodies.
        key: What the last request was authorized by.
    """

    owner: str = "somebody"
    pieces: Sequence[dict[str, Any]] = ()
    refusal: tuple[int, str] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    key: str | None = None

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/props", self._props),
                Route("/server_info", self._props),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "canned", "owned_by": self.owner}]})

    async def _props(self, request: Request) -> Response:
        return JSONResponse({"default_generation_settings": {"n_ctx": 2048}, "total_slots": 1})

    async def _chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        self.key = request.headers.get("authorization")
        if self.refusal is not None:
            return JSONResponse({"error": {"message": self.refusal[1]}}, self.refusal[0])
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        for piece in self.pieces:
            yield f"data: {json.dumps(piece)}\n\n"
        yield "data: [DONE]\n\n"
