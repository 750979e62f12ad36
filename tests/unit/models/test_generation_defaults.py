"""A model's generation_config.json: greedy text is that of transformers' `generate`, or it is said what is left out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.caches import InMemoryCache
from transformers import AutoModelForCausalLM, GenerationConfig

from langchain_specdec import LocalBackend, SpeculativeLLM
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.models.generation_defaults import GenerationDefaults, read_generation_defaults
from langchain_specdec.models.loader import load_model
from langchain_specdec.sampling.params import SamplingParams
from tests.support import tiny_models as tiny

pytestmark = pytest.mark.transformers

PROMPT = [257, 10, 20, 30, 10, 20, 30, 10, 20]
COUNT = 24


def save(folder: Path, **settings: Any) -> Path:
    model = tiny.tiny_model()
    model.generation_config = GenerationConfig(bos_token_id=257, eos_token_id=tiny.EOS, pad_token_id=0, **settings)
    model.save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


def generated(folder: Path, **settings: Any) -> list[int]:
    """What transformers writes by its own defaults."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([PROMPT])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, **settings)
    written: list[int] = tokens[0, len(PROMPT) :].tolist()
    return written


def ours(backend: LocalBackend, **params: Any) -> list[int]:
    request = CompletionRequest(PROMPT, SamplingParams(max_new_tokens=COUNT, **params))
    first, second = backend.complete([request, request])
    assert first.text == second.text
    return [token.id for token in first.tokens]


@pytest.mark.parametrize("is_loaded", [False, True], ids=["folder", "loaded"])
def test_greedy_text_is_that_of_transformers(tmp_path: Path, is_loaded: bool) -> None:
    plain = generated(save(tmp_path / "plain"))
    suppressed = sorted(set(plain))[:3]
    tried: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.7},
        {"suppress_tokens": suppressed},
        {"repetition_penalty": 1.3, "suppress_tokens": suppressed},
        {"do_sample": True, "temperature": 0.3, "top_k": 7, "top_p": 0.8, "repetition_penalty": 1.7},
    ]
    for number, settings in enumerate(tried):
        folder = save(tmp_path / str(number), **settings)
        expected = generated(folder, do_sample=False)
        assert (expected == plain) == (not settings)
        source: Any = AutoModelForCausalLM.from_pretrained(folder) if is_loaded else folder
        backend = LocalBackend(source, tiny.byte_tokenizer(), num_slots=2, max_length=128, device="cpu", compile="off")
        assert ours(backend) == expected
        # What a caller says counts more than what the model does.
        off = {"repetition_penalty": 1.0, "logit_bias": dict.fromkeys(suppressed, 0.0)}
        assert ours(backend, **off) == plain
        backend.close()


def test_the_models_of_langchain_take_them_too(tmp_path: Path) -> None:
    folder = save(tmp_path, repetition_penalty=1.7)
    backend = LocalBackend(folder, num_slots=1, max_length=128, device="cpu", compile="off")
    llm = SpeculativeLLM(backend=backend, max_new_tokens=COUNT)
    expected = ours(backend)
    text = backend.tokenizer.decode(expected, skip_special_tokens=True)
    assert llm.invoke(backend.tokenizer.decode(PROMPT[1:])) != llm.invoke(
        backend.tokenizer.decode(PROMPT[1:]), repetition_penalty=1.0
    )
    assert text
    backend.close()


def test_they_are_part_of_the_identity(tmp_path: Path) -> None:
    identities = []
    tried: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.7}, {"suppress_tokens": [5]}, {"do_sample": True}]
    for number, settings in enumerate(tried):
        folder = save(tmp_path / str(number), **settings)
        backend = LocalBackend(folder, num_slots=1, max_length=64, device="cpu", compile="off")
        identities.append({key: value for key, value in backend.identity.items() if key != "model"})
        backend.close()
    assert identities[0] == identities[3], "settings of sampling are not taken"
    assert identities[1]["generation_defaults"] == {"repetition_penalty": 1.7}
    assert identities[2]["generation_defaults"] == {"suppressed": (5,)}


def test_a_cache_tells_models_apart_by_them() -> None:
    model = tiny.tiny_model()
    cache, texts, prompt = InMemoryCache(), [], "abc abc abd abc "
    for penalty in (1.7, None):
        model.generation_config.repetition_penalty = penalty
        with closing(LocalBackend(model, tiny.byte_tokenizer(), num_slots=1, max_length=64)) as backend:
            llm = SpeculativeLLM(backend=backend, max_new_tokens=COUNT, cache=cache)
            texts.append(llm.invoke(prompt))
            assert texts[-1] == SpeculativeLLM(backend=backend, max_new_tokens=COUNT).invoke(prompt)
    assert texts[0] != texts[1]


def test_what_is_not_taken_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path, no_repeat_ngram_size=2, min_new_tokens=5, num_beams=3, bad_words_ids=[[5]])
    backend = LocalBackend(folder, num_slots=1, max_length=64, device="cpu", compile="off")
    ours(backend)
    backend.close()
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("langchain_specdec")]
    expected = "bad_words_ids=[[5]], min_new_tokens=5, no_repeat_ngram_size=2, num_beams=3"
    assert f"{folder} asks for {expected} in its generation_config.json" in message


def test_nothing_is_said_of_what_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    neutral = {"repetition_penalty": 1.0, "num_beams": 1, "no_repeat_ngram_size": 0, "min_length": 0}
    for config in (None, GenerationConfig(), GenerationConfig(**neutral), GenerationConfig(do_sample=True, top_k=5)):
        assert read_generation_defaults(config, 100, "x") == GenerationDefaults()
    assert not caplog.messages


@pytest.mark.parametrize("name", ["repetition_penalty", "suppress_tokens"])
def test_values_that_mean_nothing_are_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = GenerationConfig()
    setattr(config, name, "1.5")
    assert read_generation_defaults(config, 100, "x") == GenerationDefaults()
    assert f"{name}='1.5'" in caplog.text


def test_tokens_that_the_model_does_not_know_are_left_out() -> None:
    config = GenerationConfig(suppress_tokens=[-1, 5, 99, 100])
    assert read_generation_defaults(config, 100, "x").suppressed == (5, 99)


def test_values_may_be_tensors_and_arrays(caplog: pytest.LogCaptureFixture) -> None:
    neutral = {"no_repeat_ngram_size": np.int64(0), "begin_suppress_tokens": torch.tensor([])}
    for tokens in (torch.tensor([3, 5]), np.array([3, 5])):
        config = SimpleNamespace(suppress_tokens=tokens, repetition_penalty=torch.tensor(1.5), **neutral)
        assert read_generation_defaults(config, 100, "x") == GenerationDefaults(1.5, (3, 5))
    assert not caplog.messages
    config = SimpleNamespace(min_length=torch.tensor([5, 6]), suppress_tokens=torch.tensor([0.5, 1.0]))
    assert read_generation_defaults(config, 100, "x") == GenerationDefaults()
    assert "min_length=[5, 6], suppress_tokens=[0.5, 1.0]" in caplog.text


@pytest.mark.parametrize("tokens", [[5, 7], 5])
def test_the_ends_of_a_text_may_be_a_tensor(tokens: list[int] | int) -> None:
    model: Any = tiny.tiny_model()
    model.generation_config.eos_token_id = torch.tensor(tokens)
    expected = {*(tokens if isinstance(tokens, list) else [tokens]), tiny.byte_tokenizer().eos_token_id}
    assert set(load_model(model, tiny.byte_tokenizer()).eos_token_ids) == expected
