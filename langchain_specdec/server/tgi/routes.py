"""TGI's routes: what its router answers, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from langchain_specdec.server.bodies import BodyError
from langchain_specdec.server.endpoint import Endpoint, Work
from langchain_specdec.server.exchange import Compact
from langchain_specdec.server.held import Held
from langchain_specdec.server.served_model import ServedModel
from langchain_specdec.server.tgi.dialect import Dialect
from langchain_specdec.server.tgi.errors import answer_to
from langchain_specdec.server.tgi.generate import generate, generate_stream
from langchain_specdec.server.tgi.parameters import CANNOT_DESERIALIZE
from langchain_specdec.server.tgi.tokens import tokenize


class TGIRoutes:
    """TGI's routes to one model. Those of chats are elsewhere: they take LangChain.

    Args:
        served: The model.
        dialect: The server's limits and rules.
    """

    def __init__(self, served: ServedModel, dialect: Dialect) -> None:
        self._served = served
        self._dialect = dialect
        self._generate = partial(generate, dialect=dialect)
        self._generate_stream = partial(generate_stream, dialect=dialect)

    def routes(self) -> list[Route]:
        """All of them."""
        gets = {"/health": self._health, "/ping": self._health, "/info": self._info, "/metrics": self._metrics}
        posts = {
            "/generate": self._post(self._generate),
            "/generate_stream": self._post(self._generate_stream),
            "/tokenize": self._post(tokenize, is_completion=False),
        }
        root = self._post(self._of_root)

        async def answer_root(request: Request) -> Response:
            return await (root(request) if request.method == "POST" else self._health(request))

        return [
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()),
            Route("/", answer_root, methods=["GET", "POST"]),
        ]

    def _post(self, work: Work, *, is_completion: bool = True) -> Callable[[Request], Awaitable[Response]]:
        return Endpoint(self._served, work, answer_to, is_completion=is_completion).answer

    async def _health(self, request: Request) -> Response:
        if self._served.is_broken:
            return Compact({"error": "unhealthy", "error_type": "healthcheck"}, 503)
        return Response()

    async def _info(self, request: Request) -> Response:
        return Compact(self._dialect.info(self._served.backend.model_name))

    async def _metrics(self, request: Request) -> Response:
        return Response(self._served.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _of_root(self, served: ServedModel, body: Any, held: Held) -> Response:
        """The path of TGI's first clients: `stream` in the body chooses, and the whole text stands in a list."""
        is_stream = body.get("stream", False) if isinstance(body, dict) else False
        if not isinstance(is_stream, bool):
            raise BodyError(422, f"{CANNOT_DESERIALIZE}: stream: invalid type")
        if is_stream:
            return await self._generate_stream(served, body, held, is_full_text=True)
        return await self._generate(served, body, held, is_full_text=True, is_list=True)
