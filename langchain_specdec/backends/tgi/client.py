"""The seam to the two Python clients of TGI: `text_generation`, and `InferenceClient` of `huggingface_hub`.

Both become a stream of `Frame`, by their asynchronous classes. `/info` and `/tokenize` go through the HTTP library that
the client itself stands on: neither client asks for the second, and only one for the first, with a Hugging Face token.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, ClassVar

from langchain_specdec.backends.remote.failures import Failures
from langchain_specdec.backends.remote.frames import Frame, FrameEnd
from langchain_specdec.backends.remote.short_request import Opener, ShortRequest, by_aiohttp, by_httpx, fetch
from langchain_specdec.backends.tgi.parameters import GenerateParameters
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError

CLIENTS = ("auto", "text-generation", "huggingface-hub")
"""Names of the clients that can be asked for."""

_INSTALL = {
    # huggingface_hub before 1.0 has its asynchronous client on aiohttp and leaves that to its user.
    "huggingface-hub": "pip install aiohttp",
    "text-generation": (
        # Its declared range of huggingface-hub excludes transformers 5, though it runs there.
        "pip install --no-deps text-generation, and pip install aiohttp requests"
    ),
}


class TGIClient(ABC):
    """One way to talk to a server.

    Args:
        base_url: Root address of the server.
        api_key: Its key, if it has one.
    """

    name: ClassVar[str]
    """Its name in `CLIENTS`."""
    reports_prompt_tokens: ClassVar[bool]
    """Whether the last frame has the number of prompt tokens."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        self._base_url = base_url
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}

    @abstractmethod
    def stream(self, prompt: str, parameters: GenerateParameters) -> AsyncGenerator[Frame, None]:
        """The frames of an answer. Closing the generator closes the connection. No time-out, no retries."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close connections that are kept for reuse."""

    @abstractmethod
    def _opener(self) -> Opener:
        """How short requests are sent."""

    async def fetch(self, request: ShortRequest, failures: Failures) -> bytes:
        """The answer to a short request.

        Raises:
            Failure: There is none, or none that can be TGI's.
        """
        return await fetch(request, self._opener(), failures)


def make_client(name: str, base_url: str, api_key: str | None) -> TGIClient:
    """The client of that name; `"auto"` is `text_generation` where it is installed.

    Raises:
        InvalidParameterError: The name is unknown.
        MissingDependencyError: The client is not installed.
    """
    if name not in CLIENTS:
        msg = f"client must be one of {', '.join(map(repr, CLIENTS))}, got {name!r}."
        raise InvalidParameterError(msg)
    has_text_generation = all(find_spec(module) for module in ("text_generation", "aiohttp", "requests"))
    if name == "auto":
        name = "text-generation" if has_text_generation else "huggingface-hub"
    kind: type[TGIClient] = TextGenerationClient if name == "text-generation" else HubClient
    try:
        return kind(base_url, api_key)
    except ImportError as error:
        msg = f"The client {name!r} is not installed ({error}). Install it: {_INSTALL[name]}."
        raise MissingDependencyError(msg) from error


class TextGenerationClient(TGIClient):
    """`text_generation.AsyncClient`.

    It reads no more of an answer than a chat of 2023 needed: `input_length` is dropped, so prompts are counted by the
    server apart. Its own time-out is a total one and stays off.
    """

    name = "text-generation"
    reports_prompt_tokens = False

    def __init__(self, base_url: str, api_key: str | None) -> None:
        import aiohttp  # noqa: F401
        from text_generation import AsyncClient  # type: ignore[import-untyped]

        super().__init__(base_url, api_key)
        self._client = AsyncClient(base_url, headers=self._headers, timeout=None)

    async def stream(self, prompt: str, parameters: GenerateParameters) -> AsyncGenerator[Frame, None]:
        """See `TGIClient`."""
        options = asdict(parameters)
        options["stop_sequences"] = list(options.pop("stop"))
        async with aclosing(self._client.generate_stream(prompt, **options)) as answer:
            async for response in answer:
                end = None
                if response.details is not None:
                    reason = response.details.finish_reason.value
                    end = FrameEnd(reason, response.generated_text or "", None)
                yield _frame(response.token, response.top_tokens, end)

    async def aclose(self) -> None:
        """See `TGIClient`."""

    def _opener(self) -> Opener:
        return by_aiohttp(self._base_url, self._headers)


class _SharedClient:
    """A `huggingface_hub` client and what it has to do.

    It notes every answer until it is closed, and has at most 100 connections; so it serves so many at a time, and not
    for ever.
    """

    MAX_ACTIVE = 64
    MAX_USES = 512

    def __init__(self, client: Any) -> None:
        self.client = client
        self.num_active = 0
        self.num_uses = 0
        self.is_retired = False


class _Headers(dict[str, Any]):
    """Headers of a client, of which a None takes away what it would send by itself.

    Before 1.0 it gives a copy of them to its HTTP library too, which knows no None.
    """

    def copy(self) -> dict[str, Any]:
        return {name: value for name, value in self.items() if value is not None}


class HubClient(TGIClient):
    """`huggingface_hub.AsyncInferenceClient`.

    Without a token of its own it would send the Hugging Face token of this machine to any server, so it is given a
    placeholder, and a header of None in place of the one that this makes.

    To make one costs some 20 ms, as it reads all certificates of the machine, so answers share a few.
    """

    name = "huggingface-hub"
    reports_prompt_tokens = True

    def __init__(self, base_url: str, api_key: str | None) -> None:
        import huggingface_hub

        self._make_session: Callable[[], Any] | None = getattr(huggingface_hub, "get_async_session", None)
        if self._make_session is None:
            # Before 1.0 its asynchronous client is made of aiohttp, which it leaves to its users to install.
            import aiohttp  # noqa: F401
        self._session: Any = None
        self._make_client = huggingface_hub.AsyncInferenceClient
        super().__init__(base_url, api_key)
        self._shared: list[_SharedClient] = []

    async def stream(self, prompt: str, parameters: GenerateParameters) -> AsyncGenerator[Frame, None]:
        """See `TGIClient`."""
        options = asdict(parameters)
        options["stop"] = list(options["stop"])
        shared = self._take()
        try:
            answer = await shared.client.text_generation(
                prompt, details=True, stream=True, return_full_text=False, **options
            )
            lines = _source_of(answer)
            try:
                async for output in answer:
                    end = None
                    if output.details is not None:
                        length = output.details.input_length
                        end = FrameEnd(output.details.finish_reason, output.generated_text or "", length)
                    yield _frame(output.token, output.top_tokens, end)
            except (GeneratorExit, Exception):
                await _break_off(lines)
                raise
        except Exception:
            # The client may hold a connection that nobody reads any more.
            shared.is_retired = True
            raise
        finally:
            await self._give_back(shared)

    def _take(self) -> _SharedClient:
        free = (s for s in self._shared if s.num_active < s.MAX_ACTIVE and not s.is_retired)
        shared = next(free, None)
        if shared is None:
            client = self._make_client(self._base_url, token="unused", timeout=None)  # noqa: S106
            client.headers = _Headers({"authorization": None, **self._headers})
            shared = _SharedClient(client)
            self._shared.append(shared)
        shared.num_active += 1
        shared.num_uses += 1
        shared.is_retired = shared.num_uses >= shared.MAX_USES
        return shared

    async def _give_back(self, shared: _SharedClient) -> None:
        shared.num_active -= 1
        if shared.is_retired and not shared.num_active:
            await shared.client.close()
            # Not before: where this is cancelled, `aclose` has to close it.
            self._shared.remove(shared)

    async def aclose(self) -> None:
        """See `TGIClient`."""
        while self._shared:
            await self._shared.pop().client.close()
        if self._session is not None:
            await self._session.aclose()
            self._session = None

    def _opener(self) -> Opener:
        make = self._make_session
        return (
            by_aiohttp(self._base_url, self._headers)
            if make is None
            else by_httpx(self._base_url, self._headers, lambda: self._short_session(make))
        )

    def _short_session(self, make: Callable[[], Any]) -> Any:
        if self._session is None:
            self._session = make()
            # The hook of huggingface_hub reads the whole of an error, unpacked.
            self._session.event_hooks = {**self._session.event_hooks, "response": []}
        return self._session


def _source_of(answer: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """What the generator of an answer reads its lines from: its first argument.

    The generator ends at an error without closing it, and then the garbage collector would, in tasks that fail.
    """
    frame = getattr(answer, "ag_frame", None)
    return answer if frame is None else frame.f_locals[frame.f_code.co_varnames[0]]


async def _break_off(lines: AsyncIterator[Any]) -> None:
    """Close the connection of one answer among those of a client: a read that is cancelled does."""

    async def read_on() -> None:
        async for _ in lines:
            pass

    reading = asyncio.ensure_future(read_on())
    # What has arrived already is taken without waiting, and only a read that waits can be cancelled.
    await asyncio.sleep(0)
    reading.cancel()
    # How it ends is of no matter any more, but nobody else asks for its exception.
    await asyncio.gather(reading, return_exceptions=True)


def _frame(token: Any, top_tokens: Any, end: FrameEnd | None) -> Frame:
    if isinstance(token.id, int) and token.id < 0:
        msg = "a token has a negative id"
        raise ValueError(msg)
    # JSON has no infinity: TGI sends null for a token that a grammar rules out.
    top = tuple((other.id, -math.inf if other.logprob is None else other.logprob) for other in top_tokens or ())
    return Frame(token.id, token.text, token.special, token.logprob, top, end)
