"""Checkpoints that are not whole: what is missing, or wrong, is said in one sentence, and no random numbers run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from langchain_specdec.errors import ModelLoadError, UnsupportedModelError
from langchain_specdec.models import pretrained
from langchain_specdec.models.checkpoint import explained
from langchain_specdec.models.loader import load_model
from tests.support import tiny_models as tiny

pytestmark = pytest.mark.transformers

WEIGHTS = "model.safetensors"
DOWN = "model.layers.1.mlp.down_proj"
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.tiny_model().save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: weight for key, weight in weights.items() if not any(part in key for part in parts)}


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key.replace(old, new): weight for key, weight in weights.items()}


def beside(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: torch.ones(32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layers.1.mlp.down_proj"), rf"lack 1 of \d+ weights \({DOWN}.weight\), which would be random numbers"),
        (without("lm_head"), r"lack 1 of \d+ weights \(lm_head.weight\)"),
        (without("norm"), r"lack 5 of \d+ weights \(.*, \.\.\.\)"),
        (renamed("down_proj.weight", "down_proj.qweight"), "They hold quantised weights .*qweight"),
        (renamed("mlp.down_proj.weight", "mlp.down_proj.weight_packed"), "quantised weights"),
        (renamed("down_proj.weight", "down_proj.base_layer.weight"), "They hold others instead .*base_layer"),
        (beside(f"{DOWN}.weight_scale"), f"hold {DOWN}.weight_scale, for which .* has no place.*quantised weights"),
        (beside(f"{DOWN}.lora_A.default.weight"), "for which .* has no place.*They hold an adapter.*adapter="),
        (beside(f"{DOWN}.bias"), f"hold {DOWN}.bias, for which a LlamaForCausalLM .* has no place"),
        (
            lambda weights: weights | {f"{DOWN}.weight": torch.ones(32, 8)},
            f"the size of {DOWN}.weight is another.* is .32, 64",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_model(
    folder: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"Cannot load {folder}: .*{message}"):
        load_model(folder, device="cpu")


def test_weights_that_need_not_be_there(tmp_path: Path) -> None:
    model = tiny.tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    assert "lm_head.weight" not in weights
    # Of earlier versions, for parts that have no weights now; and of a module that a model of text does not have.
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "vision_tower.embedding": torch.ones(4)}
    save_file(weights | old, tmp_path / WEIGHTS, metadata={"format": "pt"})
    loaded = load_model(tmp_path, tiny.byte_tokenizer(), device="cpu")
    assert torch.equal(loaded.model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_draft_or_a_classifier_is_no_language_model(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    LlamaForSequenceClassification(tiny.tiny_model().config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"lm_head.weight.*score.weight.*says LlamaForSequenceClassification"):
        load_model(tmp_path, tiny.byte_tokenizer(), device="cpu")


def write(file: str, content: bytes | str) -> Callable[[Path], Any]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(data)


def in_config(**changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def as_bin(content: bytes) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return change


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
CODE = b"cos\nsystem\n(S'echo ran > ran'\ntR."


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:3000]),
            f"{WEIGHTS} is damaged",
        ),
        (write(WEIGHTS, b""), f"{WEIGHTS} is empty"),
        (write(WEIGHTS, POINTER), f"{WEIGHTS} is only a pointer of Git LFS"),
        (write(WEIGHTS, b"<!doctype html><html>" * 20), f"{WEIGHTS} is damaged"),
        (as_bin(b"garbage" * 10), r"pytorch_model.bin is damaged"),
        (as_bin(CODE), r"pytorch_model.bin is damaged, or holds other things than weights"),
        (as_bin(b""), r"pytorch_model.bin is empty"),
        (write("config.json", "{"), "config.json is damaged"),
        (write("config.json", "[]"), "config.json holds no JSON object"),
        (write("config.json", "[" * 100_000), "config.json is damaged"),
        (write("config.json", b"\xff\xfe\x00"), "config.json is damaged"),
        (write("generation_config.json", "{"), "generation_config.json is damaged"),
        (write("generation_config.json", ""), "generation_config.json is empty"),
        (write("tokenizer.json", POINTER), "tokenizer.json is only a pointer"),
        (write("tokenizer.json", ""), "tokenizer.json is empty"),
        (write("tokenizer.json", "{}"), "the tokenizer of"),
        (write("tokenizer.json", '{"model": ' * 5000), "tokenizer.json is damaged"),
        (write("tokenizer_config.json", "[]"), "tokenizer_config.json holds no JSON object"),
        (in_config(hidden_size="32"), "hidden_size|size"),
        (in_config(num_attention_heads=0), "Cannot load|cannot run"),
        (in_config(num_attention_heads=-4), "Cannot load|cannot run"),
        (in_config(num_hidden_layers=None), "Cannot load|cannot run"),
        (in_config(num_hidden_layers=0), "number of layers"),
        (in_config(num_hidden_layers=-1), "number of layers"),
        (in_config(vocab_size=[]), "Cannot load|cannot run"),
        (in_config(hidden_act="no_such_function"), "no_such_function"),
        (in_config(layer_types=7), "Cannot load|cannot run"),
        (in_config(model_type=["llama"]), "Cannot load|cannot run"),
        (in_config(num_hidden_layers=4), "lack 18 of"),
    ],
)
def test_damaged_files(
    folder: Path, spoil: Callable[[Path], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    spoil(folder)
    with pytest.raises((ModelLoadError, UnsupportedModelError), match=message) as caught:
        load_model(folder, device="cpu")
    assert str(folder) in str(caught.value) or isinstance(caught.value, UnsupportedModelError)
    assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists(), "code from a checkpoint ran"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_what_tells_of_the_machine_is_passed_on(error: type[BaseException], folder: Path, monkeypatch: Any) -> None:
    with pytest.raises(error), explained("x"):
        raise error

    def read(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(pretrained, "read_weights", read)
    with pytest.raises(error):
        load_model(folder, device="cpu")
