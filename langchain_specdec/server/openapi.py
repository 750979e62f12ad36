"""The OpenAPI document of a server: made of what bodies are checked by, and of the shapes of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from langchain_specdec._version import __version__
from langchain_specdec.server.openai import shapes as openai
from langchain_specdec.server.openai.bodies import ChatBody, CompletionBody, TokenizeBody
from langchain_specdec.server.served_model import ServedModel
from langchain_specdec.server.tgi import shapes as tgi
from langchain_specdec.server.tgi.fields import Limits, parameters_schema

_REFERENCE = "#/components/schemas/{model}"
_JSON, _TEXT, _EVENTS = "application/json", "text/plain", "text/event-stream"
_BODIES = (ChatBody, CompletionBody, TokenizeBody)
_ANSWERS: tuple[Any, ...] = (
    *(openai.ChatCompletion, openai.ChatCompletionChunk, openai.TextCompletion, openai.OpenAIError),
    *(openai.Model, openai.ModelList, openai.TokenCount),
    *(tgi.Generated, tgi.StreamEvent, tgi.TGIError, tgi.PlacedToken, tgi.ChatTokens, tgi.Info),
)
# Why a request may fail, whatever its path, and which of TGI's paths say so in JSON.
_FAILURES = {
    400: "The body is no JSON, or a value in it is not allowed.",
    403: "The server does not answer to that name, or to pages of other sites.",
    404: "The model is not served here.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not announced as JSON.",
    422: "A value is not allowed.",
    424: "The completion failed.",
    429: "The server has as many requests as it takes.",
    500: "The server failed.",
    503: "The engine has ended.",
    504: "The request took too long.",
}
_OF_BODIES = (400, 403, 408, 413, 415)
_OF_OPENAI = (*_OF_BODIES, 404, 429, 500, 503, 504)
_OF_TGI = (*_OF_BODIES, 422, 424, 429, 500, 503)
_IN_JSON = (424, 429, 500, 503)


def document(served: ServedModel, limits: Limits) -> dict[str, Any]:
    """What a server takes and answers, in OpenAPI 3.1.

    Args:
        served: The model.
        limits: What is told of TGI's paths.
    """
    is_keyed = bool(served.settings.api_keys)
    _, definitions = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_REFERENCE)
    adapters: list[tuple[Any, Literal["serialization"], TypeAdapter[Any]]] = [
        (answer, "serialization", TypeAdapter(answer)) for answer in _ANSWERS
    ]
    _, of_answers = TypeAdapter.json_schemas(adapters, ref_template=_REFERENCE)
    schemas = {**definitions["$defs"], **of_answers["$defs"], **_bodies_of_tgi(served, limits)}
    told: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "specdec serve",
            "version": __version__,
            "description": "A model with speculative decoding, behind TGI's HTTP interface and OpenAI's.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(is_keyed=is_keyed),
        "components": {"schemas": schemas},
    }
    if is_keyed:
        told["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return told


def _bodies_of_tgi(served: ServedModel, limits: Limits) -> dict[str, Any]:
    """The bodies of TGI's paths, which are checked by `tgi.fields`."""
    parameters = parameters_schema(limits)
    names = sorted(served.backend.adapter_names)
    parameters["properties"]["adapter_id"] |= {"enum": [*names, None]}
    inputs = {"inputs": {"type": "string", "minLength": 1, "description": "The prompt."}}
    body = {"type": "object", "required": ["inputs"]}
    generation = {**inputs, "parameters": _ref("GenerateParameters")}
    stream = {"stream": {"type": "boolean", "description": "Whether to answer with a stream."}}
    return {
        "GenerateParameters": parameters,
        "GenerateBody": {**body, "properties": generation},
        "InputsBody": {**body, "properties": inputs},
        "CompatBody": {**body, "properties": {**generation, **stream}},
    }


def _paths(*, is_keyed: bool) -> dict[str, Any]:
    hello = {"role": "user", "content": "What is the capital of France?"}
    generate = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20}}
    chat = {"messages": [hello], "temperature": 0, "max_tokens": 40}
    completion = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 20}
    health = {200: _nothing("It runs."), 503: _answer("TGIError", "The engine has ended.")}
    listed = {**_answer("Generated", "The text."), "content": _content({"type": "array", "items": _ref("Generated")})}
    tokens = {"anyOf": [{"type": "array", "items": _ref("PlacedToken")}, _ref("TokenCount")]}
    token_count = {"description": "The tokens.", "content": _content(tokens)}
    both = {200: _either(listed, _stream("StreamEvent", "TGIError"))}

    def post(name: str, body: Sequence[str], example: Any, answers: Mapping[int, Any], *, is_openai: bool) -> Any:
        failures = {status: _failure(status, is_openai=is_openai) for status in (_OF_OPENAI if is_openai else _OF_TGI)}
        schema = _ref(body[0]) if len(body) == 1 else {"anyOf": [_ref(each) for each in body]}
        asked = {"required": True, "content": {_JSON: {"schema": schema, "example": example}}}
        return _operation(name, {**failures, **answers}, is_keyed=is_keyed, is_openai=is_openai, requestBody=asked)

    def get(
        name: str, answers: Mapping[int, Any], *, is_openai: bool = False, is_open: bool = True, **more: Any
    ) -> Any:
        forbidden = {403: _failure(403, is_openai=is_openai)}
        return _operation(
            name, {**forbidden, **answers}, is_keyed=is_keyed and not is_open, is_openai=is_openai, **more
        )

    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    chat_answers = {
        200: _either(_answer("ChatCompletion", "The answer."), _stream("ChatCompletionChunk", "OpenAIError"))
    }
    text_answers = {200: _either(_answer("TextCompletion", "The texts."), _stream("TextCompletion", "OpenAIError"))}
    no_model = {404: _failure(404, is_openai=True)}
    return {
        "/": {
            "get": get("health_at_root", health),
            "post": post("generate_or_stream", ["CompatBody"], generate, both, is_openai=False),
        },
        "/health": {"get": get("health", health)},
        "/ping": {"get": get("ping", health)},
        "/info": {"get": get("info", {200: _answer("Info", "The model and its limits.")})},
        "/metrics": {"get": get("metrics", {200: _plain("Counts for Prometheus.")})},
        "/generate": {
            "post": post(
                "generate", ["GenerateBody"], generate, {200: _answer("Generated", "The text.")}, is_openai=False
            )
        },
        "/generate_stream": {
            "post": post(
                "generate_stream",
                ["GenerateBody"],
                generate,
                {200: {"description": "The text.", "content": _stream("StreamEvent", "TGIError")}},
                is_openai=False,
            )
        },
        "/tokenize": {
            "post": post(
                "tokenize",
                ["InputsBody", "TokenizeBody"],
                {"inputs": "Hello"},
                {200: token_count, **_of_both(400, 404, 500)},
                is_openai=False,
            )
        },
        "/chat_tokenize": {
            "post": post(
                "chat_tokenize",
                ["ChatBody"],
                {"messages": [hello]},
                {200: _answer("ChatTokens", "The tokens of the prompt.")},
                is_openai=False,
            )
        },
        "/v1/models": {"get": get("models", {200: _answer("ModelList", "The models.")}, is_openai=True, is_open=False)},
        "/v1/models/{model}": {
            "get": get(
                "model",
                {200: _answer("Model", "The model."), **no_model},
                is_openai=True,
                is_open=False,
                parameters=[model],
            )
        },
        "/v1/chat/completions": {"post": post("chat_completions", ["ChatBody"], chat, chat_answers, is_openai=True)},
        "/v1/completions": {"post": post("completions", ["CompletionBody"], completion, text_answers, is_openai=True)},
    }


def _operation(
    name: str, answers: Mapping[int, Any], *, is_keyed: bool, is_openai: bool, **more: Any
) -> dict[str, Any]:
    answers = dict(answers)
    if is_keyed:
        told = _answer("OpenAIError", "") if is_openai else _nothing("")
        answers[401] = {**told, "description": "The key is missing or wrong."}
        more["security"] = [{"key": []}]
    tag = "OpenAI" if is_openai else "TGI"
    responses = {str(status): answers[status] for status in sorted(answers)}
    return {"operationId": name, "tags": [tag], **more, "responses": responses}


def _failure(status: int, *, is_openai: bool) -> dict[str, Any]:
    if is_openai:
        told = _answer("OpenAIError", _FAILURES[status])
    elif status == 422:
        # A value of the wrong type is refused by the web framework, in plain text.
        told = _either(_answer("TGIError", _FAILURES[status]), _plain("")["content"])
    else:
        told = _answer("TGIError", _FAILURES[status]) if status in _IN_JSON else _plain(_FAILURES[status])
    if status == 429:
        told["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
    return told


def _of_both(*statuses: int) -> dict[int, Any]:
    """Failures of a path that answers to clients of both kinds."""
    return {status: _either(_answer("OpenAIError", _FAILURES[status]), _plain("")["content"]) for status in statuses}


def _either(told: dict[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, "content": {**told["content"], **further}}


def _answer(shape: str, about: str) -> dict[str, Any]:
    return {"description": about, "content": _content(_ref(shape))}


def _content(schema: Any) -> dict[str, Any]:
    return {_JSON: {"schema": schema}}


def _stream(*shapes: str) -> dict[str, Any]:
    """Server-sent events; the schema is that of each. OpenAI's streams end by one that holds `[DONE]`."""
    held = {"anyOf": [_ref(shape) for shape in shapes]}
    json = {"type": "string", "contentMediaType": _JSON, "contentSchema": held}
    data = {"anyOf": [json, {"const": "[DONE]"}]} if "OpenAIError" in shapes else json
    return {_EVENTS: {"schema": {"type": "object", "required": ["data"], "properties": {"data": data}}}}


def _plain(about: str) -> dict[str, Any]:
    return {"description": about, "content": {_TEXT: {"schema": {"type": "string"}}}}


def _nothing(about: str) -> dict[str, Any]:
    return {"description": about}


def _ref(shape: str) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=shape)}
