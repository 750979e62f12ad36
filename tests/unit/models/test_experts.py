"""Mixtures of experts: dequantised, quantised, merged with an adapter, and in bfloat16."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.params import SamplingParams
from tests.support import model_families as families
from tests.support import tiny_models as tiny

pytestmark = pytest.mark.transformers

PROMPT = "so it goes, so it goes, so"
# The numbers that four bits stand for, by the standard of microscaling formats.
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
BLOCK, EXPONENT_OF_ONE = 32, 127


def saved(name: str, folder: Path) -> Path:
    families.make_model(name).save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


def texts_of(model: Any, **options: Any) -> list[str]:
    """What a backend writes with drafts and without."""
    texts = []
    for drafter in ("auto", "none"):
        options |= {"drafter": drafter, "max_length": families.POSITIONS, "num_slots": 2}
        with closing(LocalBackend(model, **options)) as backend:
            request = CompletionRequest(PROMPT, SamplingParams(max_new_tokens=16, ignore_eos=True))
            texts.append(backend.complete([request])[0].text)
    return texts


@pytest.fixture
def mxfp4(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of gpt-oss whose experts are in MXFP4, and the numbers that these stand for."""
    folder = saved("gpt_oss", tmp_path / "mxfp4")
    weights, numbers = load_file(folder / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = weights.pop(name).shape
        size = (experts, outputs, inputs // BLOCK)
        pairs = torch.randint(0, 256, (*size, BLOCK // 2), dtype=torch.uint8, generator=generator)
        scales = torch.randint(EXPONENT_OF_ONE - 3, EXPONENT_OF_ONE, size, dtype=torch.uint8, generator=generator)
        weights[f"{name}_blocks"], weights[f"{name}_scales"] = pairs, scales
        # The first of two is in the lower bits.
        codes = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2).long()
        widened = FP4[codes] * torch.exp2(scales.float() - EXPONENT_OF_ONE)[..., None]
        numbers[name] = widened.reshape(experts, outputs, inputs).transpose(1, 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": plain}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, numbers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mxfp4_is_dequantised_on_a_cpu(mxfp4: tuple[Path, dict[str, Tensor]], dtype: str) -> None:
    folder, numbers = mxfp4
    loaded = load_model(folder, dtype=dtype, device="cpu")
    parameters = dict(loaded.model.named_parameters())
    assert {str(parameter.dtype) for parameter in parameters.values()} == {f"torch.{dtype}"}
    for name, expected in numbers.items():
        torch.testing.assert_close(parameters[name].float(), expected, rtol=0, atol=0)
    if dtype == "float32":
        speculative, plain = texts_of(folder, device="cpu")
        assert speculative == plain


def test_mxfp4_is_not_quantised_once_more(mxfp4: tuple[Path, dict[str, Tensor]]) -> None:
    with pytest.raises(InvalidParameterError, match=r"comes quantised \(mxfp4\)"):
        load_model(mxfp4[0], quantization="int8", device="cpu")


@pytest.mark.parametrize("word", ["int8", "int4"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_quantised_to_fewer_bits(name: str, word: str, tmp_path: Path) -> None:
    speculative, plain = texts_of(saved(name, tmp_path), quantization=word, device="cpu")
    assert speculative == plain


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_in_bfloat16(name: str) -> None:
    model = families.make_model(name).to(torch.bfloat16)
    tokens = [(7 * i * i + 3 * i) % 251 for i in range(20)]
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([tokens])).logits[0]
    runner = make_runner(load_model(model, tiny.byte_tokenizer()), num_slots=2, max_length=50, max_width=4)
    runner.prefill(RowBatch([0, 1], [0, 0], [tokens[:16], tokens[:9]]))
    logits = runner.verify(RowBatch([0, 1], [16, 9], [tokens[16:], tokens[9:11]])).logits
    similarity = torch.cosine_similarity(logits[0].float(), expected[16:].float(), dim=-1)
    assert float(similarity.min()) > 0.98


ONE_TENSOR = pytest.mark.skipif(not families.IS_TRANSFORMERS_5, reason="experts are linear layers there")


@pytest.mark.parametrize(
    "targets",
    [{"target_modules": ["q_proj"]}, pytest.param({"target_parameters": ["experts.down_proj"]}, marks=ONE_TENSOR)],
)
def test_adapters_are_merged(targets: dict[str, list[str]], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = saved("qwen3_moe", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, **{"target_modules": []} | targets)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.inference_mode():
        expected = adapted(input_ids=ids).logits[0]
        plain = AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits[0]
    loaded = load_model(base, adapter=tmp_path / "adapter", device="cpu")
    runner = make_runner(loaded, num_slots=1, max_length=50, max_width=5)
    found = runner.verify(RowBatch([0], [0], [ids[0].tolist()])).logits[0]
    assert float((expected - plain).abs().max()) > 1e-2
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
