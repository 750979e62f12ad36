"""Adapters: merged into the weights of their base when it is loaded, or refused with what to do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import (
    InvalidParameterError,
    MissingDependencyError,
    ModelLoadError,
    UnsupportedModelError,
)
from langchain_specdec.models import adapters, model_source
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.models.quantized_module import quantize_module, widen_module
from langchain_specdec.sampling.params import SamplingParams
from tests.support import tiny_models as tiny

pytestmark = pytest.mark.transformers

RANK, SCALE = 2, 3.0
TARGETS = ("q_proj", "down_proj")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny.tiny_model().save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """A LoRA as PEFT saves it, written by hand."""
    return write_adapter(tmp_path / "adapter", base)


def write_adapter(folder: Path, base: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": SCALE * RANK,
        "target_modules": list(TARGETS),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    torch.manual_seed(7)
    parts = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.split(".")[-2] in TARGETS:
            key = f"base_model.model.{name.removesuffix('.weight')}"
            parts[f"{key}.lora_A.weight"] = torch.randn(RANK, weight.shape[1])
            parts[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], RANK)
    save_file(parts, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def expected_weights(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """By the definition of LoRA: W + alpha / r * B A (Hu et al. 2021)."""
    weights, parts = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for key, down in parts.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.").replace("lora_A.", "")
            weights[name] = weights[name] + SCALE * parts[key.replace("lora_A", "lora_B")] @ down
    return weights


def check_weights(model: Any, expected: dict[str, torch.Tensor]) -> None:
    stored = model.state_dict()
    for name, weight in expected.items():
        assert torch.allclose(stored[name], weight, atol=1e-4), f"{name} is not what the adapter makes of it"


def test_an_adapter_is_merged_into_its_base(base: Path, adapter: Path) -> None:
    pytest.importorskip("peft")
    for source, given in ((base, adapter), (base, str(adapter)), (adapter, None)):
        loaded = load_model(source, adapter=given, device="cpu")
        check_weights(loaded.model, expected_weights(base, adapter))
        assert type(loaded.model).__name__ == "LlamaForCausalLM"
        assert loaded.adapter == str(adapter)
        assert loaded.is_owned
        assert not loaded.model.training


def test_text_and_identity_are_those_of_the_adapter(base: Path, adapter: Path) -> None:
    pytest.importorskip("peft")
    request = CompletionRequest("abc", SamplingParams(max_new_tokens=12, ignore_eos=True))
    seen = []
    for given in (None, adapter):
        backend = LocalBackend(base, adapter=given, num_slots=1, max_length=64, device="cpu", compile="off")
        (completion,) = backend.complete([request])
        tokens = [token.id for token in completion.tokens]
        model = tiny.tiny_model()
        if given is not None:
            model.load_state_dict(expected_weights(base, adapter))
        assert tokens == tiny.plain_reference(model, backend.token_ids("abc"), request.params)
        seen.append((tokens, backend.identity))
        backend.close()
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_a_folder_with_a_model_and_an_adapter_is_refused(base: Path, adapter: Path) -> None:
    for file in adapter.iterdir():
        shutil.copy(file, base)
    with pytest.raises(ModelLoadError, match=r"holds a model and.* an adapter beside it.* give that as adapter="):
        load_model(base)


def test_an_adapter_needs_peft(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    for source, given in ((base, adapter), (adapter, None)):
        with pytest.raises(MissingDependencyError, match=r"pip install -U \"peft>="):
            load_model(source, adapter=given, device="cpu")


def test_a_peft_that_does_not_fit_transformers(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peft.py").write_text("from transformers import NoSuchCache")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    with pytest.raises(MissingDependencyError, match=r"NoSuchCache.*pip install -U \"peft>="):
        load_model(base, adapter=adapter, device="cpu")


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 3]},
    ],
    ids=str,
)
def test_adapters_of_the_embeddings(tmp_path: Path, targets: dict[str, Any], is_tied: bool) -> None:
    peft = pytest.importorskip("peft")
    base, adapter, saved = tmp_path / "base", tmp_path / "adapter", tmp_path / "saved"
    tiny.tiny_model(tie_word_embeddings=is_tied).save_pretrained(base)
    tiny.byte_tokenizer().save_pretrained(base)
    tuned = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, **targets)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    tuned.save_pretrained(adapter)
    tokens = torch.arange(1, 8)[None]
    unmerged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    model = load_model(base, adapter=adapter, device="cpu").model
    model.save_pretrained(saved)
    with torch.inference_mode():
        expected = unmerged(input_ids=tokens).logits
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-3, atol=1e-3)
        again = AutoModelForCausalLM.from_pretrained(saved)
        torch.testing.assert_close(again(tokens).logits, expected, rtol=1e-3, atol=1e-3)


def test_an_adapter_whose_base_is_unknown(tmp_path: Path, base: Path) -> None:
    for name, given in (("nameless", None), ("away", str(tmp_path / "no/such/base"))):
        adapter = write_adapter(tmp_path / name, base, base_model_name_or_path=given)
        with pytest.raises(ModelLoadError, match=r"give the base as the model, and .* as adapter="):
            load_model(adapter, device="cpu")


def test_an_adapter_of_an_adapter(tmp_path: Path, base: Path, adapter: Path) -> None:
    second = write_adapter(tmp_path / "second", base, base_model_name_or_path=str(adapter))
    with pytest.raises(ModelLoadError, match="which is one itself"):
        load_model(second)
    with pytest.raises(InvalidParameterError, match="is an adapter itself, and adapter= is another"):
        load_model(adapter, adapter=second)


def test_an_adapter_that_is_not_there(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="There is no folder"):
        load_model(base, adapter=tmp_path / "missing")
    with pytest.raises(ModelLoadError, match=r"There is no adapter in .*adapter_config.json"):
        load_model(base, adapter=base)


@pytest.mark.parametrize("spoil", ["another model's", "damaged", "of a kind that cannot be merged"])
def test_adapters_that_cannot_be_merged(base: Path, tmp_path: Path, spoil: str) -> None:
    pytest.importorskip("peft")
    changes = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4} if spoil.startswith("of a kind") else {}
    adapter = write_adapter(tmp_path / "adapter", base, **changes)
    weights = adapter / "adapter_model.safetensors"
    if spoil == "damaged":
        weights.write_bytes(weights.read_bytes()[:300])
    elif spoil == "another model's":
        parts = load_file(weights)
        save_file({key.replace("layers.1", "layers.7"): part for key, part in parts.items()}, weights)
    expected = UnsupportedModelError if changes else ModelLoadError
    with pytest.raises(expected, match=r"the adapter|is an adapter of the kind PROMPT_TUNING"):
        load_model(base, adapter=adapter, device="cpu")


def test_an_adapter_of_a_base_of_another_size(base: Path, adapter: Path) -> None:
    pytest.importorskip("peft")
    weights = adapter / "adapter_model.safetensors"
    save_file({key: part.repeat(2, 2) for key, part in load_file(weights).items()}, weights)
    with pytest.raises(ModelLoadError, match=r"other shapes than those of .*Give the base that it was made for, which"):
        load_model(base, adapter=adapter, device="cpu")


@pytest.mark.parametrize("is_given", [True, False])
def test_no_adapter_for_quantised_weights(
    base: Path, adapter: Path, is_given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for those that transformers would quantise, nor for those that are; nothing is read to find that out."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("too early for work"))
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    if not is_given:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    options: dict[str, Any] = {"quantization": SimpleNamespace(**quantization)} if is_given else {}
    with pytest.raises(UnsupportedModelError, match="cannot be merged into quantised weights"):
        load_model(adapter, device="cpu", **options)


def test_what_an_adapter_made_of_weights_can_be_quantised(base: Path, adapter: Path) -> None:
    pytest.importorskip("peft")
    merged = load_model(adapter, device="cpu")
    quantised = load_model(adapter, device="cpu", quantization="int8")
    for loaded in (merged, quantised):
        make_runner(loaded, num_slots=1, max_length=16, max_width=2)
    expected = tiny.tiny_model()
    expected.load_state_dict(expected_weights(base, adapter))
    quantize_module(expected, "int8", "expected")
    widen_module(expected, "int8", "expected")
    ids = torch.tensor([[1, 2, 3]])
    found = [model(ids).logits for model in (expected, quantised.model, merged.model)]
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_a_loaded_model_takes_no_adapter(adapter: Path) -> None:
    with pytest.raises(InvalidParameterError, match="too late for adapter"):
        load_model(tiny.tiny_model(), tiny.byte_tokenizer(), adapter=adapter)


@pytest.mark.parametrize("tokenizer", [tiny.byte_tokenizer(), None])
def test_a_revision_of_a_loaded_model_is_for_its_tokenizer_alone(tokenizer: Any, base: Path) -> None:
    model = tiny.tiny_model()
    model.config._name_or_path = str(base)
    if tokenizer is None:
        assert load_model(model, revision="main").private_tokenizer.copied("abc")
        return
    with pytest.raises(InvalidParameterError, match=r"is loaded already \(float32\), which is too late for revision\."):
        load_model(model, tokenizer, revision="main")


@pytest.mark.parametrize("option", ["adapter", "adapters"])
def test_the_hub_is_asked_for_an_adapter_once(
    option: str, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(model_source, "obstacle", lambda name, *_: asked.append(("obstacle", name)))

    def download(name: str, **options: Any) -> str:
        asked.append(("download", name))
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(options["allow_patterns"])
        return str(adapter)

    # All else fails: HF_HUB_OFFLINE is set.
    monkeypatch.setattr(adapters, "snapshot_download", download)
    given: Any = "somebody/adapter" if option == "adapter" else {"it": "somebody/adapter"}
    loaded = load_model(base, device="cpu", **{option: given})
    assert asked == [("obstacle", "somebody/adapter"), ("download", "somebody/adapter")]
    assert (loaded.adapter or loaded.adapter_sources) == given
    if option == "adapter":
        check_weights(loaded.model, expected_weights(base, adapter))


def test_a_loaded_model_with_an_adapter_in_it_is_refused(base: Path, adapter: Path) -> None:
    peft = pytest.importorskip("peft")
    tuned = peft.PeftModel.from_pretrained(tiny.tiny_model(), adapter)
    # The second is the model within, whose layers are the adapter's.
    for model in (tuned, tuned.get_base_model()):
        with pytest.raises(UnsupportedModelError, match=r"has an adapter in it. Merge it first"):
            load_model(model, tiny.byte_tokenizer())
    check_weights(load_model(tuned.merge_and_unload(), tiny.byte_tokenizer()).model, expected_weights(base, adapter))


def test_peft_is_imported_only_where_there_is_an_adapter(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    check_weights(load_model(base, device="cpu").model, load_file(base / "model.safetensors"))
