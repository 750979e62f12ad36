"""Requests that fail or are given up leave nothing behind that Python would complain of on standard error."""

from __future__ import annotations

import gc
import sys
import threading

import pytest

from langchain_specdec import SamplingParams
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import SpecDecError
from tests.standin.clients import CLIENTS, assert_in_time, make_backend, quick_retries  # noqa: F401
from tests.standin.generation import Limits
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
def test_failed_requests_of_many_threads_are_silent(server, client, make_backend, complaints, fault):  # noqa: F811
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
def test_answers_that_are_given_up_are_silent(server, client, make_backend, complaints, fault):  # noqa: F811
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
