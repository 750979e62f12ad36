"""Bodies of requests: read up to a limit, and parsed as JSON."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request


class BodyError(Exception):
    """A body that is no JSON, too large, or of another type.

    Attributes:
        status: The HTTP status that says so.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer. The rest of a body that is not wanted is not waited for."""
        return {"connection": "close"} if self.status in (408, 413) else {}


async def read_json(request: Request, limit: int) -> Any:
    """The body of a request as JSON. Errors are worded as TGI's web framework does.

    Args:
        request: The request. Its body has not been read.
        limit: Most bytes.

    Raises:
        BodyError: It is none, or larger.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise BodyError(415, "Expected request with `Content-Type: application/json`")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyError(413, "Failed to buffer the request body: length limit exceeded")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise BodyError(413, "Failed to buffer the request body: length limit exceeded")
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise BodyError(400, f"Failed to parse the request body as JSON: {reason}") from None


def _refused(constant: str) -> None:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)
