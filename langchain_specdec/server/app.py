"""The server's routes: TGI's, OpenAI's, and what they tell of the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.chat_models import ChatSpeculative
from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.server.endpoint import Endpoint, Refusal, Work
from langchain_specdec.server.exchange import Compact
from langchain_specdec.server.guard import Guard
from langchain_specdec.server.held import Held
from langchain_specdec.server.openai import errors as openai_errors
from langchain_specdec.server.openai.chat import chat
from langchain_specdec.server.openai.completions import completions
from langchain_specdec.server.openai.tokens import openai_tokenize
from langchain_specdec.server.openapi import document
from langchain_specdec.server.served_model import ServedModel
from langchain_specdec.server.settings import ServerSettings
from langchain_specdec.server.tgi import errors as tgi_errors
from langchain_specdec.server.tgi.chat_tokens import chat_tokenize
from langchain_specdec.server.tgi.dialect import Dialect
from langchain_specdec.server.tgi.fields import Limits
from langchain_specdec.server.tgi.routes import TGIRoutes
from langchain_specdec.server.tgi.tokens import tokenize


def make_app(backend: LocalBackend, settings: ServerSettings) -> Starlette:
    """The application that serves a model.

    Args:
        backend: Runs the model; it is not closed.
        settings: Who may reach it, and how much it takes.
    """
    routes = Routes(ServedModel(backend, settings, _chat_on(backend)))
    names = [settings.host, *(settings.allowed_host or ())]
    keys, share = settings.api_keys, settings.share
    guard = Middleware(Guard, names=names, api_keys=keys, is_shared=share, refuse=_refused)
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
        openai, tgi = openai_errors.refusal, tgi_errors.answer_to
        posts = {
            "/v1/chat/completions": self._post(_admitted(chat), openai),
            "/v1/completions": self._post(_admitted(completions), openai),
            "/tokenize": self._post(_tokenize, tgi, is_completion=False),
            "/chat_tokenize": self._post(chat_tokenize, tgi, is_completion=False),
        }
        gets = {
            # Where TGI's router has it, too.
            **dict.fromkeys(("/openapi.json", "/api-doc/openapi.json"), self._document),
            "/v1/models": self._models,
            "/v1/models/{model:path}": self._model,
        }
        return [
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()),
            # Behind what has both a question of TGI's and one of vLLM's.
            *TGIRoutes(self._served, Dialect(self._limits)).routes(),
        ]

    def _post(
        self, work: Work, refusal: Refusal, *, is_completion: bool = True
    ) -> Callable[[Request], Awaitable[Response]]:
        return Endpoint(self._served, work, refusal, is_completion=is_completion).answer

    @property
    def _limits(self) -> Limits:
        served = self._served
        longest = served.max_length
        limit = served.admission.limit
        return Limits(limit, max_best_of=1, max_input_tokens=max(longest - 1, 1), max_total_tokens=longest)

    async def _document(self, request: Request) -> Response:
        return self._documented

    @cached_property
    def _documented(self) -> Response:
        """The document, which takes time to make, and may be asked for by anybody."""
        return Compact(document(self._served, self._limits))

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
        # As vLLM tells what it loaded under that name.
        told = {"id": name, **about, "root": served.backend.model_name, "max_model_len": served.max_length}
        told["eos_token_ids"] = sorted(served.eos_token_ids)
        return told if name == served.name else {**told, "parent": served.name}


def _chat_on(backend: LocalBackend) -> ChatSpeculative | None:
    try:
        return ChatSpeculative(backend=backend)
    except UnsupportedModelError:
        return None


def _admitted(work: Work) -> Work:
    """The same for requests that have room. TGI's paths see to that themselves, where a stream has begun by then."""

    async def run(served: ServedModel, body: Any, held: Held) -> Response:
        held.enter_context(served.admission.take())
        return await work(served, body, held)

    return run


async def _tokenize(served: ServedModel, body: Any, held: Held) -> Response:
    """TGI's question and vLLM's have one path: this names its text `prompt`, that `inputs`."""
    if not isinstance(body, dict) or "prompt" not in body:
        return await tokenize(served, body, held)
    try:
        return await openai_tokenize(served, body)
    except Exception as error:
        return openai_errors.refusal(error)


def _refused(path: str, status: int, message: str) -> Response:
    """A request that may not come in, as clients of the path read it."""
    if not path.startswith("/v1/"):
        return tgi_errors.kept_out(status, message)
    code, headers = ("invalid_api_key", {"www-authenticate": "Bearer"}) if status == 401 else (None, {})
    if status == 400:
        headers["connection"] = "close"
    return Compact(openai_errors.error_body(status, message, code=code), status, headers)


async def _not_here(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    path = request.url.path
    message = f"There is no {request.method} {path} here."
    # Clients of OpenAI add its paths to an address that ends in /v1.
    if is_short := path in ("/chat/completions", "/completions", "/models"):
        message = f"There is no {path} here, but /v1{path}: give the server's address with /v1 at its end."
    if is_short or path.startswith("/v1/"):
        return Compact(openai_errors.error_body(error.status_code, message), error.status_code, error.headers)
    return PlainTextResponse(message, error.status_code, dict(error.headers or {}))
