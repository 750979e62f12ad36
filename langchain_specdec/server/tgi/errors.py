"""Errors as TGI's router words them, and how its web framework does."""

from __future__ import annotations

from starlette.responses import PlainTextResponse, Response

from langchain_specdec.errors import EngineClosedError, InvalidParameterError, OverloadedError
from langchain_specdec.server.admission import RETRY_AFTER
from langchain_specdec.server.bodies import BodyError
from langchain_specdec.server.exchange import Compact


class Refusal(Exception):  # noqa: N818 - what TGI answers, which is no failure of ours
    """An answer `{"error": message, "error_type": kind}`.

    Attributes:
        status: The HTTP status, where no stream has begun.
        kind: TGI's name for the kind of error, which clients make their exceptions of.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    @property
    def body(self) -> dict[str, str]:
        """The JSON of the answer."""
        return {"error": str(self), "error_type": self.kind}


def invalid(message: str) -> Refusal:
    """A request that the router refuses."""
    return Refusal(422, "validation", f"Input validation error: {message}")


def refusal_of(error: Exception) -> Refusal:
    """What TGI says where this engine raises."""
    if isinstance(error, Refusal):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, OverloadedError):
        return Refusal(429, "overloaded", "Model is overloaded")
    if isinstance(error, InvalidParameterError):
        return invalid(text)
    if isinstance(error, EngineClosedError):
        return Refusal(503, "healthcheck", "unhealthy")
    return Refusal(424, "generation", f"Request failed during generation: {text}")


def kept_out(status: int, message: str) -> Response:
    """The answer to a request that may not come in. Of a key that is missing or wrong, TGI says nothing."""
    if status == 401:
        return Response(status_code=401, headers={"www-authenticate": "Bearer"})
    return PlainTextResponse(message, status, {"connection": "close"} if status == 400 else None)


def answer_to(error: Exception) -> Response:
    """The answer to a request that fails before its stream begins."""
    if isinstance(error, BodyError):
        # Of the web framework, which knows nothing of the router's errors.
        return PlainTextResponse(str(error), error.status, error.headers)
    refusal = refusal_of(error)
    headers = {"retry-after": RETRY_AFTER} if refusal.status == 429 else None
    return Compact(refusal.body, refusal.status, headers)
