"""Waiting in the loop of a connection: no cancellation is lost, and what is closed has ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from langchain_specdec import SamplingParams, TGIBackend
from langchain_specdec.backends.remote.frames import Frame
from langchain_specdec.backends.remote.loop_thread import time_limit
from langchain_specdec.backends.remote.short_request import Opener, ShortRequest
from langchain_specdec.backends.tgi import backend as tgi
from langchain_specdec.backends.tgi.client import TGIClient
from langchain_specdec.backends.tgi.parameters import GenerateParameters
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import EngineClosedError


class EndlessClient(TGIClient):
    """Answers at once and without end, and counts the answers that are on their way."""

    name = "endless"
    reports_prompt_tokens = True

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9", None)
        self.num_open = 0

    async def stream(self, prompt: str, parameters: GenerateParameters) -> AsyncGenerator[Frame, None]:
        self.num_open += 1
        try:
            while True:
                await asyncio.sleep(0)
                yield Frame(5, "a", False, None, (), None)
        finally:
            self.num_open -= 1

    async def fetch(self, request: ShortRequest, failures: object) -> bytes:
        return b'{"model_id": "m", "max_concurrent_requests": 1000}'

    def _opener(self) -> Opener:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> EndlessClient:
    client = EndlessClient()
    monkeypatch.setattr(tgi, "make_client", lambda *_: client)
    return client


REQUEST = CompletionRequest("Hello", SamplingParams(max_new_tokens=10**9))


async def test_a_generator_that_is_late_has_ended_and_can_be_closed() -> None:
    ends: list[str] = []

    async def frames() -> AsyncIterator[int]:
        try:
            await asyncio.sleep(60)
            yield 1
        finally:
            ends.append("closed")

    reader = frames()
    with pytest.raises(asyncio.TimeoutError):
        async with time_limit(0.01):
            await anext(reader)
    assert ends == ["closed"]


def test_no_closed_stream_runs_on(client: EndlessClient) -> None:
    backend = TGIBackend("http://127.0.0.1:9")
    for number in range(400):
        stream = backend.start([REQUEST])[0]
        for _ in range(number % 3 + 1):
            next(stream)
        stream.close()
    deadline = time.monotonic() + 20
    while client.num_open:
        assert time.monotonic() < deadline, f"{client.num_open} of 400 closed streams run on"
        time.sleep(0.01)
    backend.close()


@pytest.mark.parametrize("num_closed", [0, 5, 10])
def test_closing_the_backend_ends_its_thread_and_every_stream(client: EndlessClient, num_closed: int) -> None:
    backend = TGIBackend("http://127.0.0.1:9")
    streams = backend.start([REQUEST] * 10)
    for stream in streams:
        next(stream)
    # A stream that is cancelled just before its loop ends is cancelled twice.
    for stream in streams[:num_closed]:
        stream.close()
    backend.close()
    assert client.num_open == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("specdec-remote")]
    for stream in streams[num_closed:]:
        with pytest.raises(EngineClosedError):
            list(stream)
