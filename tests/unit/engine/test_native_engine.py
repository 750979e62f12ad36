"""The engine over a native decoder writes what it writes over PyTorch's modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import byte_tokenizer, read, tiny_model

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif(native_library() is None, reason="there is no native decoder on this machine"),
]
PROMPTS = ["the cat sat on the mat, the cat sat on", "a", "one two one two one"]
KINDS = {
    "greedy": SamplingParams(max_new_tokens=24),
    "sampled": SamplingParams(max_new_tokens=24, temperature=1.1, seed=5),
    "top-p": SamplingParams(max_new_tokens=24, temperature=0.9, top_p=0.8, seed=6),
    "penalties": SamplingParams(max_new_tokens=24, repetition_penalty=1.3),
    "logprobs": SamplingParams(max_new_tokens=24, logprobs=2),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def backends(model: Any, tmp_path: Path) -> Iterator[tuple[LocalBackend, LocalBackend]]:
    copy.deepcopy(model).save_pretrained(tmp_path)
    native = LocalBackend(tmp_path, byte_tokenizer(), max_length=128, num_slots=5)
    plain = LocalBackend(model, byte_tokenizer(), max_length=128, num_slots=5, drafter="none")
    yield native, plain
    native.close()
    plain.close()


def write(backend: LocalBackend, requests: list[tuple[str, SamplingParams]]) -> list[list[int]]:
    streams = backend.start([CompletionRequest(prompt, params) for prompt, params in requests])
    return [[token.id for token in read(stream)[0]] for stream in streams]


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_that_of_pytorch(backends: tuple[LocalBackend, LocalBackend], kind: str) -> None:
    native, plain = backends
    assert isinstance(native.engine.runner, NativeRunner)
    assert not isinstance(plain.engine.runner, NativeRunner)
    requests = [(prompt, KINDS[kind]) for prompt in PROMPTS]
    assert write(native, requests) == write(plain, requests)


def test_a_text_does_not_depend_on_what_its_neighbours_ask_for(backends: tuple[LocalBackend, LocalBackend]) -> None:
    """Noise is computed by the decoder or by PyTorch, as the batch needs it: to the same bit."""
    native, _ = backends
    requests = [(PROMPTS[0], params) for params in KINDS.values()]
    assert write(native, requests) == [write(native, [request])[0] for request in requests]


def test_what_a_backend_hands_out_is_still_what_it_runs(backends: tuple[LocalBackend, LocalBackend]) -> None:
    native, _ = backends
    request = [(PROMPTS[0], KINDS["greedy"])]
    before = write(native, request)
    other = LocalBackend(native.model, byte_tokenizer(), max_length=128, drafter="none")
    try:
        assert isinstance(other.engine.runner, NativeRunner)
        assert write(other, request) == before
    finally:
        other.close()
    with torch.no_grad():
        native.model.model.norm.weight.mul_(-1.0)
    try:
        assert write(native, request) != before
    finally:
        with torch.no_grad():
            native.model.model.norm.weight.mul_(-1.0)
    assert write(native, request) == before


def test_a_text_goes_on_from_a_short_beginning_that_its_slot_holds(
    backends: tuple[LocalBackend, LocalBackend],
) -> None:
    native, plain = backends
    for first, second in [("t", "the"), ("the c", "the dog sat"), ("the cat sat on the", "the cat sat in")]:
        write(native, [(first, SamplingParams(max_new_tokens=5))])
        request = [(second, KINDS["greedy"])]
        assert write(native, request) == write(plain, request)
