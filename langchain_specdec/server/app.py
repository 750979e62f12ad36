"""The server's routes, and what happens to every request: its body is read, it is answered, its errors are worded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from langchain_specdec._version import __version__
from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.server.bodies import read_json
from langchain_specdec.server.exchange import Compact, while_connected
from langchain_specdec.server.guard import Guard
from langchain_specdec.server.openai import errors as openai_errors
from langchain_specdec.server.openai.chat import chat
from langchain_specdec.server.openai.completions import completions
from langchain_specdec.server.served_model import ServedModel
from langchain_specdec.server.settings import ServerSettings
from langchain_specdec.server.tgi import errors as tgi_errors
from langchain_specdec.server.tgi.generate import generate, generate_stream, limits_of
from langchain_specdec.server.tgi.tokens import chat_tokenize, tokenize

Work = Callable[[Any, ExitStack], Awaitable[Response]]
"""Answers the JSON of a request. What it holds is let go of at its end, unless a stream takes it over."""


def make_app(backend: LocalBackend, settings: ServerSettings) -> Starlette:
    """The application that serves a model.

    Args:
        backend: Runs the model; it is not closed.
        settings: Who may reach it, and how much it takes.
    """
    routes = Routes(ServedModel(backend, settings))
    names = [settings.host, *(settings.allowed_host or ())]
    guard = Middleware(Guard, names=names, api_key=settings.api_key, refuse=_refused)
    return Starlette(routes=routes.routes(), middleware=[guard], exception_handlers={HTTPException: _not_here})


class Routes:
    """The routes to one model.

    Args:
        served: The model.
    """

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def routes(self) -> list[Route]:
        """All of them."""
        served = self._served
        openai, tgi = openai_errors.refusal, tgi_errors.answer_to

        def tokens(work: Callable[[ServedModel, Any], Awaitable[Response]]) -> Work:
            return lambda body, held: work(served, body)

        def admitted(work: Callable[[ServedModel, Any, ExitStack], Awaitable[Response]]) -> Work:
            async def run(body: Any, held: ExitStack) -> Response:
                held.enter_context(served.admission.take())
                return await work(served, body, held)

            return run

        posts: dict[str, tuple[Work, Callable[[Exception], Response]]] = {
            "/v1/chat/completions": (admitted(chat), openai),
            "/v1/completions": (admitted(completions), openai),
            "/generate": (lambda body, held: generate(served, body, held), tgi),
            "/generate_stream": (lambda body, held: generate_stream(served, body, held), tgi),
            "/": (self._compat, tgi),
            "/tokenize": (tokens(tokenize), tgi),
            "/chat_tokenize": (tokens(chat_tokenize), tgi),
        }
        gets = {
            "/": self._health,
            "/health": self._health,
            "/ping": self._health,
            "/info": self._info,
            "/metrics": self._metrics,
            "/v1/models": self._models,
            "/v1/models/{model:path}": self._model,
        }
        return [
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items() if path != "/"),
            *(Route(path, self._post(*how), methods=["POST"]) for path, how in posts.items() if path != "/"),
            # One route, so that other methods are told of both.
            Route("/", self._root(self._post(*posts["/"])), methods=["GET", "POST"]),
        ]

    def _root(self, post: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await (post(request) if request.method == "POST" else self._health(request))

        return answer

    def _post(self, work: Work, refusal: Callable[[Exception], Response]) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint that does some work for a JSON body."""
        served = self._served

        async def answered(body: Any) -> Response:
            try:
                with ExitStack() as held:
                    return await work(body, held)
            except Exception as error:
                return self._failed(error, refusal)

        async def endpoint(request: Request) -> Response:
            served.metrics.asked()
            try:
                body = await read_json(request, served.settings.body_limit)
            except Exception as error:
                return self._failed(error, refusal)
            return await while_connected(request, answered(body))

        return endpoint

    def _failed(self, error: Exception, refusal: Callable[[Exception], Response]) -> Response:
        answer = refusal(error)
        if answer.status_code < 500:
            kind = {429: "overloaded", 424: "generation"}.get(answer.status_code, "validation")
            if kind != "generation":
                self._served.metrics.failed(kind)
        return answer

    async def _compat(self, body: Any, held: ExitStack) -> Response:
        if isinstance(body, dict) and body.get("stream"):
            return await generate_stream(self._served, body, held, is_full_text=True)
        return await generate(self._served, body, held, is_full_text=True, is_list=True)

    async def _health(self, request: Request) -> Response:
        if self._served.is_broken:
            return Compact({"error": "unhealthy", "error_type": "healthcheck"}, 503)
        return Response()

    async def _info(self, request: Request) -> Response:
        limits = limits_of(self._served)
        return Compact(
            {
                "model_id": self._served.name,
                "model_sha": None,
                "model_pipeline_tag": None,
                "max_concurrent_requests": limits.max_concurrent_requests,
                "max_best_of": limits.max_best_of,
                "max_stop_sequences": limits.max_stop_sequences,
                "max_input_tokens": limits.max_input_tokens,
                "max_total_tokens": limits.max_total_tokens,
                "validation_workers": 1,
                "max_client_batch_size": limits.max_client_batch_size,
                "router": "specdec",
                "version": __version__,
                "sha": None,
                "docker_label": None,
            }
        )

    async def _metrics(self, request: Request) -> Response:
        return Response(self._served.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        served = self._served
        names = [served.name, *served.backend.adapter_names]
        return Compact({"object": "list", "data": [self._described(name) for name in names]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name not in (self._served.name, *self._served.backend.adapter_names):
            message = f"The model {name!r} is not served here."
            return Compact(openai_errors.error_body(404, message, code="model_not_found", param="model"), 404)
        return Compact(self._described(name))

    def _described(self, name: str) -> dict[str, Any]:
        served = self._served
        about = {"object": "model", "created": served.since, "owned_by": "specdec"}
        return {"id": name, **about, "max_model_len": served.max_length}


def _refused(path: str, status: int, message: str) -> Response:
    """A request that may not come in, as clients of the path read it."""
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if path.startswith("/v1/"):
        code = "invalid_api_key" if status == 401 else None
        return Compact(openai_errors.error_body(status, message, code=code), status, headers)
    # TGI says nothing.
    return Response(status_code=401, headers=headers) if status == 401 else PlainTextResponse(message, status)


async def _not_here(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    message = f"There is no {request.method} {request.url.path} here."
    if request.url.path.startswith("/v1/"):
        return Compact(openai_errors.error_body(error.status_code, message), error.status_code, error.headers)
    return PlainTextResponse(message, error.status_code, dict(error.headers or {}))
