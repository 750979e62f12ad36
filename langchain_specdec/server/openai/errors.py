"""Errors in OpenAI's form."""

from __future__ import annotations

from typing import Any

from langchain_specdec.errors import (
    CompletionTimeoutError,
    EngineClosedError,
    InvalidParameterError,
    OverloadedError,
    PromptTooLongError,
    UnsupportedModelError,
)
from langchain_specdec.server.admission import RETRY_AFTER
from langchain_specdec.server.bodies import BodyError
from langchain_specdec.server.exchange import Compact
from langchain_specdec.server.openai.bodies import FieldError
from langchain_specdec.server.served_model import UnknownModelError

_LONGEST = 2000
_TYPES = {400: "invalid_request_error", 401: "invalid_request_error", 404: "invalid_request_error"}


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    if status == 429:
        kind = "rate_limit_error"
    # What was given, and a message repeats, may be as large as a body.
    told, named = (text and f"{text[:_LONGEST]} …" if len(text or "") > _LONGEST else text for text in (message, param))
    return {"error": {"message": told, "type": kind, "param": named, "code": code}}


def problem_of(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The status, the body and the headers that tell a client of an error."""
    # OpenAI's clients send a request again where a server fails, unless it tells them not to.
    final = {"x-should-retry": "false"}
    text = str(error).replace("max_new_tokens", "max_tokens")
    if isinstance(error, BodyError):
        return error.status, error_body(error.status, text), error.headers
    if isinstance(error, OverloadedError):
        return 429, error_body(429, text, code="overloaded"), {"retry-after": RETRY_AFTER}
    if isinstance(error, UnknownModelError):
        return 404, error_body(404, text, code="model_not_found", param="model"), {}
    if isinstance(error, PromptTooLongError):
        return 400, error_body(400, text, code="context_length_exceeded"), {}
    if isinstance(error, (InvalidParameterError, UnsupportedModelError)):
        return 400, error_body(400, text, param=error.field if isinstance(error, FieldError) else None), {}
    if isinstance(error, CompletionTimeoutError):
        msg = "The request took longer than the server lets one take, and was stopped. Lower max_tokens."
        return 504, error_body(504, msg, code="timeout"), final
    if isinstance(error, EngineClosedError):
        return 503, error_body(503, text, code="engine_closed"), final
    return 500, error_body(500, f"The completion failed: {type(error).__name__}: {text}"), final


def refusal(error: Exception) -> Compact:
    """The answer to a request that fails before its stream begins."""
    status, body, headers = problem_of(error)
    return Compact(body, status, headers)
