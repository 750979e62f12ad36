"""Requests to a server over httpx: short ones, and answers that come piece by piece as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import httpx

from langchain_specdec.backends.openai.failures import OpenAIFailures
from langchain_specdec.backends.remote.failures import error_text
from langchain_specdec.backends.remote.short_request import ShortRequest, by_httpx, fetch

# A step's tokens with 20 log probabilities each fit in a hundredth of it.
_LINE_BYTES = 4 * 2**20
_ERROR_BYTES = 2**16
_KEPT_CONNECTIONS = 20
_NO_ROOM = "context_length_exceeded"
# Whoever waits has a time limit of its own.
_NO_TIMEOUT = httpx.Timeout(None)


class OpenAIClient:
    """Talks to a server. For the connection's loop.

    Args:
        base_url: Root address of the server.
        api_key: Its key, if it has one.
        failures: Makes the errors.
    """

    def __init__(self, base_url: str, api_key: str | None, failures: OpenAIFailures) -> None:
        self._base_url = base_url
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._failures = failures
        self._session: httpx.AsyncClient | None = None

    async def fetch(self, request: ShortRequest) -> bytes:
        """The answer to a short request.

        Raises:
            Failure: There is none, or none that can be of such a server.
        """
        return await fetch(request, by_httpx(self._base_url, self._headers, self._made), self._failures)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
        """The objects of an answer, one an event. Closing the generator closes the connection. No time-out.

        Raises:
            Failure: The server refuses the request, or gives an answer of another form.
        """
        session = self._made()
        headers = {**self._headers, "accept": "text/event-stream", "accept-encoding": "identity"}
        message = session.build_request("POST", self._base_url + path, json=dict(body), headers=headers)
        answer = await session.send(message, stream=True)
        try:
            if answer.status_code != 200:
                raise self._failures.by_status(answer.status_code, await self._said(answer))
            kind = answer.headers.get("content-type", "")
            if not kind.startswith("text/event-stream") or "content-encoding" in answer.headers:
                raise self._failures.foreign(f"gave no stream of events as its answer to {path} ({kind or 'no type'})")
            async for line in self._lines(answer.aiter_raw()):
                field, _, value = line.partition(b":")
                if field == b"data" and value.strip() == b"[DONE]":
                    return
                # llama.cpp's field of errors, until 2025.
                if field in (b"data", b"error"):
                    yield self._object(value, is_error=field == b"error")
        finally:
            await answer.aclose()

    async def aclose(self) -> None:
        """Close connections that are kept for reuse."""
        if self._session is not None:
            await self._session.aclose()
            self._session = None

    def _made(self) -> httpx.AsyncClient:
        # In the loop, and once: it reads the certificates of the machine.
        if self._session is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT_CONNECTIONS)
            self._session = httpx.AsyncClient(timeout=_NO_TIMEOUT, limits=limits, follow_redirects=False)
        return self._session

    async def _said(self, answer: httpx.Response) -> str:
        if 300 <= answer.status_code < 400:
            return str(answer.headers.get("location", ""))
        body = bytearray()
        async for chunk in answer.aiter_raw():
            body += chunk
            if len(body) > _ERROR_BYTES:
                break
        text = body.decode("utf-8", "replace")
        said = error_text(text)
        # Where OpenAI's code says more than the words.
        return f"{said} ({_NO_ROOM})" if f'"{_NO_ROOM}"' in text and _NO_ROOM not in said else said

    async def _lines(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        held = bytearray()
        async for chunk in chunks:
            held += chunk
            if len(held) > _LINE_BYTES:
                raise self._failures.foreign(f"sent a line of more than {_LINE_BYTES} bytes")
            if b"\n" in chunk:
                *lines, rest = held.split(b"\n")
                held = bytearray(rest)
                for line in lines:
                    yield bytes(line.rstrip(b"\r"))

    def _object(self, value: bytes, *, is_error: bool) -> Mapping[str, Any]:
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            raise self._failures.foreign("sent an event that is no JSON") from None
        if not isinstance(read, dict):
            raise self._failures.foreign("sent an event that is no object")
        if is_error or read.get("error"):
            raise self._failures.of_error(read.get("error") or read)
        if read.get("object") == "error":
            raise self._failures.of_error(read)
        return read
