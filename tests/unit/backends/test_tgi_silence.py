"""Requests that fail or are given up leave nothing behind that Python would complain of on standard error."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading

import huggingface_hub
import pytest

from langchain_specdec import SamplingParams
from langchain_specdec.backends.tgi.client import make_client
from langchain_specdec.backends.tgi.parameters import GenerateParameters
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import SpecDecError
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.clients import CLIENTS, assert_in_time
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread

pytestmark = [pytest.mark.server, pytest.mark.transformers]

NUM_THREADS = 16


@pytest.fixture
def server():
    with ServerThread(FakeModel(speculate=2), Limits(max_input_tokens=60, max_total_tokens=100)) as server:
        yield server


@pytest.fixture
def complaints(caplog, monkeypatch):
    """What asyncio logs, and what exceptions in finalizers and threads would print."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(threading, "excepthook", told.append)
    yield lambda: [*told, *(record.getMessage() for record in caplog.records if record.name == "asyncio")]


def of_many_threads(act):
    threads = [threading.Thread(target=act, args=(index,)) for index in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("fault", ["", "generation:after=2", "garbage:after=2", "drop:after=2", "cut:after=2"])
@pytest.mark.parametrize("client", CLIENTS)
def test_failed_requests_of_many_threads_are_silent(server, client, make_backend, complaints, fault):
    server.set_faults(*([fault] if fault else []))
    backend = make_backend(server.url, client=client, max_retries=0)
    failed = []

    def act(index):
        for prompt in ("x" * 99, "Hello") if index % 2 else ("Hello", "x" * 99):
            try:
                backend.complete([CompletionRequest(prompt, SamplingParams(max_new_tokens=9))])
            except SpecDecError as error:  # noqa: PERF203
                failed.append(type(error))

    of_many_threads(act)
    backend.close()
    gc.collect()
    assert len(failed) == (2 if fault else 1) * NUM_THREADS
    assert complaints() == []


@pytest.mark.parametrize("fault", ["slow:seconds=0.01", "generation:after=3", "drop:after=3", "silence:after=3"])
@pytest.mark.parametrize("client", CLIENTS)
def test_answers_that_are_given_up_are_silent(server, client, make_backend, complaints, fault):
    server.set_faults(fault)
    backend = make_backend(server.url, client=client, max_retries=0)

    def act(index):
        stream = backend.stream(CompletionRequest("Hello", SamplingParams(max_new_tokens=9)))
        for _ in range(1 + index % 3):
            next(stream)
        stream.close()

    of_many_threads(act)
    # The server sees it where its connection closes.
    assert_in_time(lambda: server.standin.num_running == 0, "the server goes on")
    backend.close()
    gc.collect()
    assert complaints() == []


class SlowToClose:
    """A client of `huggingface_hub` that gets no answers, and whose first attempt to close does not end."""

    def __init__(self, *_: object, **__: object) -> None:
        self.is_closed = False
        self.closing = asyncio.Event()

    async def text_generation(self, *_: object, **__: object) -> None:
        raise ConnectionError

    async def close(self) -> None:
        is_first = not self.closing.is_set()
        self.closing.set()
        if is_first:
            await asyncio.Event().wait()
        self.is_closed = True


async def test_a_client_whose_closing_is_cancelled_is_closed_at_the_end(monkeypatch):
    slow = SlowToClose()
    monkeypatch.setattr(huggingface_hub, "AsyncInferenceClient", lambda *_, **__: slow)
    client = make_client("huggingface-hub", "http://127.0.0.1:9", None)
    parameters = GenerateParameters.from_params(SamplingParams(max_new_tokens=9), 0, 4, None)
    request = asyncio.ensure_future(anext(client.stream("Hello", parameters)))
    await slow.closing.wait()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await client.aclose()
    assert slow.is_closed
