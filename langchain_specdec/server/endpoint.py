"""What happens to every request with a body: it is read, answered while its client is there, and its errors worded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from langchain_specdec.server.bodies import BodyError, read_json
from langchain_specdec.server.exchange import while_connected
from langchain_specdec.server.held import Held
from langchain_specdec.server.served_model import ServedModel

Work = Callable[[ServedModel, Any, Held], Awaitable[Response]]
"""Answers the JSON of a request. What it holds is let go of at its end, unless a stream takes it over."""
Refusal = Callable[[Exception], Response]
"""The answer to an error."""

# A body comes at once, or its client is gone.
_BODY_SECONDS = 60.0
# TGI's names for errors that keep a request from the model.
_KINDS = {429: "overloaded", 424: "generation"}


class Endpoint:
    """Answers POST requests to one path.

    Args:
        served: The model.
        work: Answers.
        refusal: Words errors.
        is_completion: Whether requests are counted.
    """

    def __init__(self, served: ServedModel, work: Work, refusal: Refusal, *, is_completion: bool = True) -> None:
        self._served = served
        self._work = work
        self._refusal = refusal
        self._is_completion = is_completion

    async def answer(self, request: Request) -> Response:
        """The answer to a request."""
        if self._is_completion:
            self._served.metrics.asked()
        try:
            reading = read_json(request, self._served.settings.body_limit)
            body = await asyncio.wait_for(reading, _BODY_SECONDS)
        except ClientDisconnect:
            return Response(status_code=499)
        except (asyncio.TimeoutError, TimeoutError):
            return self._failed(BodyError(408, "The request body did not come in time"))
        except BodyError as error:
            return self._failed(error)
        return await while_connected(request, self._done(body, request.state.namespace))

    async def _done(self, body: Any, namespace: str) -> Response:
        try:
            with Held(namespace) as held:
                return await self._work(self._served, body, held)
        except Exception as error:
            return self._failed(error)

    def _failed(self, error: Exception) -> Response:
        answer = self._refusal(error)
        kind = _KINDS.get(answer.status_code, "validation")
        # Those that reached the model are counted there.
        if self._is_completion and answer.status_code < 500 and kind != "generation":
            self._served.metrics.failed(kind)
        return answer
