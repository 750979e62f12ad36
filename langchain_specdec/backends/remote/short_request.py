"""Short requests to a server: one deadline for everything, a largest size, no redirects, nothing compressed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from langchain_specdec.backends.remote.failures import Failures, error_text
from langchain_specdec.backends.remote.loop_thread import time_limit

_ERROR_BYTES = 2**16
# A server that compresses all the same could make gigabytes of a few megabytes.
_HEADERS = {"accept-encoding": "identity"}


@dataclass(frozen=True)
class ShortRequest:
    """What to ask, and how much of an answer to take.

    Attributes:
        path: Path on the server.
        body: Sent as JSON by POST; None is a GET.
        seconds: Until the last byte of the answer.
        max_bytes: Most bytes of it.
    """

    path: str
    seconds: float
    max_bytes: int
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class OpenAnswer:
    """An answer whose body is still to come.

    Attributes:
        status: HTTP status.
        headers: Looked up in lower case.
        chunks: The body as it was sent.
    """

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


Opener = Callable[[ShortRequest, Mapping[str, str]], AbstractAsyncContextManager[OpenAnswer]]
"""Sends a request with these headers beside its own, by one of the HTTP libraries."""


async def fetch(request: ShortRequest, opener: Opener, failures: Failures) -> bytes:
    """The body of an answer with status 200.

    Raises:
        Failure: There is none, or none that can be of such a server.
    """
    try:
        async with time_limit(request.seconds), opener(request, _HEADERS) as answer:
            encoding = answer.headers.get("content-encoding", "identity")
            if encoding != "identity":
                raise failures.unreadable(request.path, f"is compressed ({encoding}), which nobody asked for")
            is_good = answer.status == 200
            body = bytearray()
            async for chunk in answer.chunks:
                body += chunk
                if len(body) > request.max_bytes and is_good:
                    raise failures.unreadable(request.path, f"has more than {request.max_bytes} bytes")
                if len(body) > _ERROR_BYTES and not is_good:
                    break
    except (asyncio.TimeoutError, TimeoutError):
        failure = failures.late(request.path, request.seconds)
    else:
        if is_good:
            return bytes(body)
        text = error_text(body.decode("utf-8", "replace"))
        failure = failures.by_status(
            answer.status, answer.headers.get("location", "") if 300 <= answer.status < 400 else text
        )
    raise failure


def by_aiohttp(base_url: str, own: Mapping[str, str]) -> Opener:
    """An opener on aiohttp, with a session for each request. It asks no proxy, as the clients on aiohttp do not."""
    import aiohttp

    @asynccontextmanager
    async def open_answer(request: ShortRequest, headers: Mapping[str, str]) -> AsyncIterator[OpenAnswer]:
        method = "GET" if request.body is None else "POST"
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(auto_decompress=False, timeout=timeout, headers={**own, **headers}) as session,
            session.request(method, base_url + request.path, json=request.body, allow_redirects=False) as answer,
        ):
            yield OpenAnswer(answer.status, answer.headers, answer.content.iter_any())

    return open_answer


def by_httpx(base_url: str, own: Mapping[str, str], session: Callable[[], Any]) -> Opener:
    """An opener on an asynchronous client of httpx."""

    @asynccontextmanager
    async def open_answer(request: ShortRequest, headers: Mapping[str, str]) -> AsyncIterator[OpenAnswer]:
        client = session()
        method = "GET" if request.body is None else "POST"
        message = client.build_request(
            method, base_url + request.path, json=request.body, headers={**own, **headers}, timeout=None
        )
        answer = await client.send(message, stream=True, follow_redirects=False)
        try:
            yield OpenAnswer(answer.status_code, answer.headers, answer.aiter_raw())
        finally:
            await answer.aclose()

    return open_answer
