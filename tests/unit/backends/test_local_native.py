"""Models that were loaded here and run by the native decoder: their own text, and a module that others may hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import SpecDecError
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.matrix_layers import MatrixLinear
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.sampling.params import SamplingParams
from tests.support import model_families as families
from tests.support import tiny_models as tiny

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif(native_library() is None, reason="there is no native decoder for this machine"),
]
PROMPTS = [[7, 9, 7, 9, 7], [1, 2, 3, 1, 2, 3, 1, 2], [50], [200, 201, 202, 203, 200, 201, 202]]
NUM_TOKENS = 20


def saved(name: str, folder: Path, dtype: torch.dtype) -> Path:
    """A family's tiny model, as a checkpoint of this type; its tokenizer beside it."""
    model = families.make_model(name).to(dtype)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


def make_backend(source: Any, tokenizer: Any = None, **options: Any) -> LocalBackend:
    options = {"num_slots": 4, "max_length": families.POSITIONS, "max_draft_tokens": 5, **options}
    return LocalBackend(source, tokenizer, **options)


def texts(backend: LocalBackend) -> list[list[int]]:
    """What a backend writes after the prompts, all at once."""
    params = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
    streams = backend.start([CompletionRequest(prompt, params) for prompt in PROMPTS])
    return [tiny.token_ids(tiny.read(stream)[0]) for stream in streams]


def own_texts(model: Any) -> list[list[int]]:
    """What a module writes, every token from a forward over the whole text."""
    params = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
    return [tiny.plain_reference(model, prompt, params) for prompt in PROMPTS]


def load_plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved("llama", tmp_path, torch.float32)


@pytest.fixture
def backend(folder: Path) -> Iterator[LocalBackend]:
    with closing(make_backend(folder)) as made:
        assert isinstance(made.engine.runner, NativeRunner)
        yield made


@pytest.mark.parametrize("name", ["llama", "qwen2-some-sliding", "smollm3", "phi3", "gemma2", "gemma3", "granite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_is_the_modules_own(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = saved(name, tmp_path, dtype)
    with closing(make_backend(folder)) as backend:
        assert isinstance(backend.engine.runner, NativeRunner)
        found = texts(backend)
    assert found == own_texts(load_plain(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_can_be_called_and_another_backend_built_on_it(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path, dtype)
    first = make_backend(folder)
    expected = own_texts(load_plain(folder))
    model = first.model
    assert any(isinstance(module, MatrixLinear) for module in model.modules()) == (dtype == torch.bfloat16)
    assert own_texts(model) == expected
    with closing(make_backend(model, first.tokenizer, drafter="none")) as second:
        assert isinstance(second.engine.runner, NativeRunner)
        places = [_place_of_weights(backend) for backend in (first, second)]
        assert places[0] == places[1], "two backends on one model must share its weights"
        assert texts(first) == texts(second) == expected
        first.close()
        assert texts(second) == expected
        assert own_texts(model) == expected


def _place_of_weights(backend: LocalBackend) -> int:
    runner = backend.engine.runner
    assert isinstance(runner, NativeRunner)
    assert runner._weights is not None
    return int(runner._weights.layers[2].down.data.ctypes.data)


def test_weights_that_are_changed_in_the_model_change_the_text(backend: LocalBackend) -> None:
    before = texts(backend)
    model = backend.model
    with torch.no_grad():
        model.lm_head.weight[: tiny.VOCAB // 2].mul_(-1.0)
        model.model.layers[0].mlp.down_proj = nn.Linear(64, 32, bias=False)
    after = texts(backend)
    assert after == own_texts(model)
    assert after != before


def test_a_model_that_becomes_something_else_is_run_no_more(backend: LocalBackend) -> None:
    backend.model.model.layers[1].mlp.register_forward_hook(lambda _module, _inputs, output: -output)
    with pytest.raises(SpecDecError, match="native decoder"):
        texts(backend)


def test_a_model_that_was_loaded_elsewhere_is_left_as_it_is(folder: Path) -> None:
    model = load_plain(folder)
    kinds = [type(module) for module in model.modules()]
    with closing(make_backend(model, tiny.byte_tokenizer())) as backend:
        assert not isinstance(backend.engine.runner, NativeRunner)
        assert texts(backend) == own_texts(model)
    assert [type(module) for module in model.modules()] == kinds
