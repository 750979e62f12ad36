"""What tests of the HTTP side share: the clients there are, what is asked, backends that retry at once, leaks."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from langchain_specdec import SamplingParams, TGIBackend
from langchain_specdec.backends.base import Backend
from langchain_specdec.backends.remote import retries
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.models import FakeModel

CLIENTS = [
    pytest.param(
        "text-generation",
        marks=pytest.mark.skipif(not find_spec("text_generation"), reason="text-generation is not installed"),
    ),
    "huggingface-hub",
]
TEXT = FakeModel.ANSWER
LIMITS = Limits(max_input_tokens=2000, max_total_tokens=2048)


def ask(prompt: str = "Hello", **params: Any) -> CompletionRequest:
    """A request that is whole within its limit, unless that is given."""
    return CompletionRequest(prompt, SamplingParams(**{"max_new_tokens": 60, **params}))


def text_of(backend: Backend, **params: Any) -> str:
    """What a backend answers to it."""
    return backend.complete([ask(**params)])[0].text


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """Fail if a thread of a backend, or a socket, is left."""
    before = _sockets()
    yield
    assert_in_time(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("specdec-remote")], "a thread is left"
    )
    assert_in_time(lambda: not _sockets() - before, "a socket is left")


def _sockets() -> set[str]:
    found = set()
    for path in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            target = str(path.readlink())
            if target.startswith("socket:"):
                found.add(target)
    return found


def assert_in_time(condition: Callable[[], bool], message: str, seconds: float = 10.0) -> None:
    """Wait until it comes true."""
    started = time.monotonic()
    while not condition():
        waited = time.monotonic() - started
        assert waited < seconds, message
        if waited > 0.5:
            gc.collect()
        time.sleep(0.01)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_FIRST_DELAY", 0.01)


@pytest.fixture
def make_backend(quick_retries: None) -> Iterator[Callable[..., TGIBackend]]:
    """Makes backends and closes them when the test ends."""
    made: list[TGIBackend] = []

    def make(url: str, **options: object) -> TGIBackend:
        made.append(TGIBackend(url, **{"read_timeout": 5.0, **options}))  # type: ignore[arg-type]
        return made[-1]

    with no_leaks():
        yield make
        for backend in made:
            backend.close()
        # The session that huggingface_hub shares keeps connections for reuse.
        close_shared_session()


def close_shared_session() -> None:
    """Close what huggingface_hub keeps open between requests."""
    import huggingface_hub

    close = getattr(huggingface_hub, "close_session", None) or getattr(huggingface_hub.utils, "reset_sessions", None)
    if close is not None:
        close()
