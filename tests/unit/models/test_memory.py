"""Whoever closes a backend, or drops it, has its memory back at once: Python's search for cycles is switched off."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from langchain_specdec import LocalBackend, SpeculativeLLM
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import EngineClosedError
from langchain_specdec.models import memory
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import byte_tokenizer, tiny_model, wait_until

pytestmark = pytest.mark.transformers

REQUEST = CompletionRequest("the cat sat on the mat, the cat", SamplingParams(max_new_tokens=12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def load(folder: Path, **options: Any) -> LocalBackend:
    return LocalBackend(folder, **{"num_slots": 2, "max_length": 128, "step_cost": StepCost.flat(), **options})


def parts_of(backend: LocalBackend) -> list[weakref.ref[Any]]:
    """What has the weights and the slots."""
    refs = []
    runners: list[Any] = backend._runners
    for runner in runners:
        if isinstance(runner, NativeRunner):
            refs += [weakref.ref(runner.model), weakref.ref(runner.cache.memory), weakref.ref(runner._weights)]
            continue
        buffers = [layer.keys for layer in runner.cache._slot_layers]
        assert all(buffer is not None for buffer in buffers)
        weights = next((b for name, b in runner.model.named_buffers() if name.endswith("panels")), None)
        refs += [weakref.ref(part) for part in (runner.model, *buffers, weights) if part is not None]
    return refs


def is_gone(refs: list[weakref.ref[Any]]) -> bool:
    return all(ref() is None for ref in refs)


def test_closing_lets_go_of_weights_and_slots(folder: Path) -> None:
    backend = load(folder, draft_model=folder)
    backend.complete([REQUEST])
    refs = parts_of(backend)
    assert len(refs) >= 6, "models and layers of target and draft"
    backend.close()
    assert is_gone(refs)


def test_dropping_lets_go_too(folder: Path) -> None:
    llm = SpeculativeLLM(backend=load(folder))
    llm.invoke("x", max_new_tokens=4)
    refs = parts_of(llm.backend)  # type: ignore[arg-type]
    del llm
    # The thread sees it when it next looks.
    assert wait_until(lambda: is_gone(refs))


def test_a_running_completion_ends_before_its_model_goes(folder: Path) -> None:
    backend = load(folder)
    stream = backend.stream(CompletionRequest("x", SamplingParams(max_new_tokens=100, ignore_eos=True)))
    next(stream)
    refs = parts_of(backend)
    backend.close()
    assert is_gone(refs)
    with pytest.raises(EngineClosedError):
        list(stream)


def test_a_closed_backend_answers_what_needs_no_model(folder: Path) -> None:
    backend = load(folder)
    before = (backend.model_name, backend.identity, backend.max_length, backend.token_ids("abc"))
    backend.complete([REQUEST])
    backend.close()
    backend.close()
    assert (backend.model_name, backend.identity, backend.max_length, backend.token_ids("abc")) == before
    with pytest.raises(EngineClosedError, match="let go of its model"):
        _ = backend.model
    with pytest.raises(EngineClosedError):
        backend.complete([REQUEST])


def test_a_model_that_others_use_stays_for_them(folder: Path) -> None:
    first = load(folder)
    second = LocalBackend(first.model, first.tokenizer, num_slots=1, max_length=128, step_cost=StepCost.flat())
    expected = first.complete([REQUEST])[0].text
    refs = parts_of(first)[:1]
    first.close()
    assert second.complete([REQUEST])[0].text == expected
    assert not is_gone(refs)
    second.close()
    assert is_gone(refs)


def test_giving_back_works_or_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.give_back_freed()

    def unknown(name: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", unknown)
    memory.give_back_freed()
