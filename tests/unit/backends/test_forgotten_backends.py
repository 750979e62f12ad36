"""Backends that nobody closes: they go with their last reference, and their memory goes back to the system."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from langchain_specdec import LocalBackend, SpeculativeLLM
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.engine import engine as engine_module
from langchain_specdec.sampling.params import SamplingParams
from tests.support.backends import make_backend, make_drafting_backend
from tests.support.tiny_models import wait_until

REQUEST = CompletionRequest("hello", SamplingParams(max_new_tokens=4))


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Given:
    """What was alive of a backend each time that freed memory was given back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: list[int] = []
        self.parts: list[weakref.ref[Any]] = []
        monkeypatch.setattr(LocalBackend.__del__, "__defaults__", (self.give,))
        monkeypatch.setattr(engine_module, "give_back_freed", self.give)

    def give(self) -> None:
        self.alive.append(sum(part() is not None for part in self.parts))

    def watch(self, backend: LocalBackend) -> None:
        runners = [backend.engine.runner, *backend.engine.drafter.runners]
        self.parts = [weakref.ref(part) for part in (backend.engine, *runners)]


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("make", [make_backend, make_drafting_backend])
def test_a_forgotten_backend_gives_its_memory_back_after_its_model_is_gone(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given(monkeypatch)
    backend = make()
    llm = SpeculativeLLM(backend=backend, max_new_tokens=4)
    chain = llm.model_copy(update={"temperature": 0.0}) | str
    chain.invoke("hello")
    backend.reset()
    given.watch(backend)
    del backend, llm
    assert given.alive == []
    del chain
    # No collector has to come along. The engine's thread may have held it a moment longer.
    assert wait_until(lambda: 0 in given.alive)


@pytest.mark.usefixtures("without_collector")
def test_one_that_is_forgotten_while_it_runs_does_so_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(monkeypatch)
    backend = make_backend()
    stream = backend.stream(CompletionRequest("hello", SamplingParams(max_new_tokens=60, ignore_eos=True)))
    next(stream)
    given.watch(backend)
    del backend
    list(stream)
    assert wait_until(lambda: 0 in given.alive)


def test_a_closed_backend_has_given_it_back_already(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make_backend()
    backend.complete([REQUEST])
    backend.close()
    given = Given(monkeypatch)
    del backend
    gc.collect()
    assert given.alive == []


def test_one_that_could_not_be_made_goes_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(monkeypatch)
    LocalBackend.__new__(LocalBackend)
    gc.collect()
    assert given.alive == []


def test_the_owner_of_a_forgotten_backend_may_close_it() -> None:
    backend = make_backend()
    backend.complete([REQUEST])
    engine = weakref.ref(backend.engine)
    # A collector calls the finalizers of a cycle in any order, and that of an owner closes what it has.
    backend.__del__()
    backend.close()
    assert wait_until(lambda: engine() is None)


def test_a_copy_of_a_backend_goes_on_without_it() -> None:
    backend = make_backend()
    copied = copy.copy(backend)
    del backend
    gc.collect()
    assert len(copied.complete([REQUEST])[0].tokens) == 4
    copied.close()
