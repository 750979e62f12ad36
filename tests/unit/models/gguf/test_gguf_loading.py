"""GGUF files as models: by their names, in their own bits, or dequantised where that is the only way."""

import copy
import os
import pickle
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import normalizers

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import InvalidParameterError, ModelLoadError
from langchain_specdec.models import loader
from langchain_specdec.models.gguf import GGUFModel, read_gguf
from langchain_specdec.models.gguf.file import open_gguf
from langchain_specdec.models.loader import load_model
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.sampling.params import SamplingParams
from tests.support.gguf_files import tiny_model, write_gguf
from tests.support.tiny_models import byte_tokenizer

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def file(model, tmp_path):
    return write_gguf(tmp_path / "x.gguf", model)


def test_a_file_and_its_folder_are_the_same_model(file, monkeypatch):
    monkeypatch.setattr(loader, "native_library", object)
    for source in (file, str(file), file.parent):
        loaded = load_model(source, device="cpu")
        assert isinstance(loaded.model, GGUFModel)
        assert loaded.name == loaded.model.name == str(source)
        assert loaded.eos_token_ids == (0,)
        assert loaded.tokenizer.decode(loaded.tokenizer("ab a").input_ids) == "ab a"


def test_without_the_native_decoder_it_is_dequantised(file, model, monkeypatch):
    monkeypatch.setattr(loader, "native_library", lambda: None)
    loaded = load_model(file, device="cpu")
    assert type(loaded.model) is type(model)
    assert (loaded.is_owned, loaded.name, loaded.eos_token_ids) == (True, str(file), (0,))
    tokens = torch.tensor([[2, 3, 4, 5]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(("option", "value"), [("dtype", "bfloat16"), ("attn_implementation", "eager")])
def test_what_only_transformers_does_is_done_dequantised(file, model, option, value):
    loaded = load_model(file, device="cpu", **{option: value})
    assert type(loaded.model) is type(model)
    assert str(loaded.model.dtype).endswith(value if option == "dtype" else "float32")


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("device_map", {"device_map": "auto"}),
        ("quantization", {"quantization": "int8"}),
        ("quantization_config", {"quantization": object()}),
        ("adapter", {"adapter": "some/adapter"}),
    ],
)
def test_options_that_it_cannot_take_are_refused_before_it_is_read(tmp_path, option, given):
    (tmp_path / "x.gguf").write_bytes(b"not read")
    for source in (tmp_path / "x.gguf", tmp_path):
        with pytest.raises(InvalidParameterError, match=rf"is a GGUF file, .* no {option}. Leave that out, or give"):
            load_model(source, **given)


@pytest.mark.compiles
def test_a_backend_writes_what_transformers_writes(file, model):
    prompt = [2, 3, 4, 5, 6]
    with closing(LocalBackend(file, device="cpu", max_length=48)) as backend:
        request = CompletionRequest(prompt, SamplingParams(max_new_tokens=12, ignore_eos=True))
        (completion,) = backend.complete([request])
    tokens = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(12):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert [token.id for token in completion.tokens] == tokens[0, len(prompt) :].tolist()


@pytest.mark.skipif(native_library() is None, reason="there is no native decoder on this machine")
def test_its_tokenizer_is_copied_only_for_whoever_asks_for_it(file, monkeypatch):
    copies: list[str] = []
    copied, kind = copy.deepcopy, transformers.PreTrainedTokenizerFast.__name__

    def counting(value, *rest):
        copies.append(type(value).__name__)
        return copied(value, *rest)

    monkeypatch.setattr(copy, "deepcopy", counting)
    request = CompletionRequest("ab a", SamplingParams(max_new_tokens=4, ignore_eos=True))
    with closing(LocalBackend(file, device="cpu", max_length=48)) as backend:
        expected = backend.complete([request])[0].text
        with closing(LocalBackend(backend.model, max_length=48)) as second:
            assert second.complete([request])[0].text == expected
            assert second.private_tokenizer is backend.private_tokenizer
        assert kind not in copies
        tokenizer = backend.tokenizer
        assert tokenizer is backend.model.tokenizer
        assert copies.count(kind) == 1
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "b")
        assert backend.token_ids("ab a") != tokenizer("ab a", add_special_tokens=False).input_ids
        assert backend.complete([request])[0].text == expected
        # One that begins on the model from here on has it as it is by now.
        with closing(LocalBackend(backend.model, max_length=48)) as third:
            assert third.token_ids("ab a") == tokenizer("ab a", add_special_tokens=False).input_ids


def test_the_tokenizer_of_a_processor_is_taken(file):
    processor = SimpleNamespace(tokenizer=byte_tokenizer(), image_processor=object(), chat_template="{{ messages }}")
    for source in (file, read_gguf(file)):
        loaded = load_model(source, processor, device="cpu")
        assert loaded.private_tokenizer.copied.chat_template == "{{ messages }}"


def test_a_model_can_be_pickled(file):
    model = read_gguf(file)
    found = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert found.tokenizer("ab a").input_ids == model.tokenizer("ab a").input_ids
    assert found.tokenizer.chat_template == model.tokenizer.chat_template
    assert (found.weights.embedding.data == model.weights.embedding.data).all()


def test_a_model_keeps_no_lists_of_its_tokenizer(file):
    fields = read_gguf(file).file.fields
    assert fields["general.architecture"] == "llama"
    assert isinstance(open_gguf(file).fields["tokenizer.ggml.tokens"], list)
    assert not [key for key, value in fields.items() if key.startswith("tokenizer.") and isinstance(value, list)]


def test_a_missing_file_is_told_of(tmp_path):
    with pytest.raises(ModelLoadError, match="There is no file"):
        load_model(tmp_path / "y.gguf")


@pytest.mark.process
@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="its tokenizers import sympy")
def test_reading_imports_nothing_of_transformers_model_code(file):
    """A fresh process has the model, tokenizer included, without what takes seconds to import."""
    code = f"""
import sys
from langchain_specdec.models.gguf import read_gguf
read_gguf({str(file)!r}).tokenizer("ab")
heavy = ("transformers.models.", "transformers.modeling_utils", "transformers.configuration_utils", "sympy", "gguf")
print([name for name in sys.modules if name.startswith((*heavy, "torch._dynamo"))])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
