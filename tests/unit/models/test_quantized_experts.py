"""`quantization=` of mixtures of experts: their experts are in blocks too, and each computes its own tokens only."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.models.quantization import QUANTIZATIONS
from langchain_specdec.models.quantized_module import quantize_module, widen_module
from langchain_specdec.runner.cpu import matrix_experts
from langchain_specdec.runner.cpu.decoder_weights import Format
from langchain_specdec.runner.cpu.matrix_experts import ExpertWeight, MatrixExperts, expert_products
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, plain_matrix, widened
from langchain_specdec.runner.cpu.quantized_blocks import quantized_matrix
from langchain_specdec.sampling.params import SamplingParams
from tests.support import tiny_models as tiny
from tests.support.hybrid_models import HYBRIDS
from tests.support.model_families import FAMILY_OF, IS_TRANSFORMERS_5, SIZES

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="experts are linear layers there, and quantised as such"),
]
# Blocks are 32 numbers.
_WIDE = {"moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "shared_expert_intermediate_size": 32}
NAMES = ["mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "deepseek_v3", "ernie4_5_moe", "gemma4-experts", "nemotron_h"]


def make(name: str) -> Any:
    """A random model of experts whose rows are whole blocks."""
    level = logging.get_verbosity()
    # Some of the odd configurations here are warned of.
    logging.set_verbosity_error()
    try:
        return _make(name)
    finally:
        logging.set_verbosity(level)


def _make(name: str) -> Any:
    hybrid = HYBRIDS.get(name)
    model_type, differences = (name, hybrid) if hybrid else (FAMILY_OF[name].model_type, FAMILY_OF[name].cases[name])
    known = AutoConfig.for_model(model_type)
    shape = {**SIZES, "num_hidden_layers": 4, "max_position_embeddings": 256}
    sizes = {key: value for key, value in shape.items() if hasattr(known, key)}
    wide = {key: value for key, value in _WIDE.items() if hasattr(known, key)}
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **{**sizes, **differences, **wide})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return model


def experts_of(model: Any) -> list[MatrixExperts]:
    return [module for module in model.modules() if isinstance(module, MatrixExperts)]


@pytest.mark.parametrize("word", QUANTIZATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_experts_compute_with_the_numbers_of_their_blocks(
    name: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(name)
    oracle = copy.deepcopy(model)
    quantize_module(model, word, "the/model")
    assert experts_of(model)
    assert not [key for key, parameter in model.named_parameters() if parameter.ndim == 3 and "conv" not in key]
    for path, module in model.named_modules():
        if isinstance(module, MatrixExperts):
            theirs = oracle.get_submodule(path)
            for own, parameter in zip((module.first, module.last), _weights(theirs), strict=True):
                assert own.format is QUANTIZATIONS[word].layers
                numbers = widened(own.rows, own.format).view(module.own.num_experts, own.out_features, -1)
                numbers = numbers.mT if theirs.is_transposed else numbers
                assert not torch.equal(numbers, parameter.data)
                parameter.data.copy_(numbers)
        elif isinstance(module, (MatrixLinear, MatrixEmbedding)):
            oracle.get_submodule(path).weight.data = widened(module.rows, module.format)
    widen_module(model, word, "the/model")
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        found, expected = model(ids).logits, oracle(ids).logits
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert not [message for message in caplog.messages if "neither smaller nor faster" in message]


def _weights(experts: Any) -> list[torch.nn.Parameter]:
    return [experts.gate_up_proj if experts.has_gate else experts.up_proj, experts.down_proj]


def test_what_is_left_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = make("mixtral")
    routers = sum(layer.mlp.gate.weight.numel() for layer in model.model.layers)
    share = 100 * routers / sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    quantize_module(model, "int4", "the/model")
    assert caplog.messages[0].startswith(f"{share:.2g}% of the weights of the/model keep their numbers")


def test_experts_whose_rows_are_no_whole_blocks_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mixtral", **{**SIZES, "intermediate_size": 40, "num_local_experts": 4})
    ).eval()
    before = model.model.layers[0].mlp.experts.gate_up_proj.detach().clone()
    quantize_module(model, "int8", "the/model")
    assert not experts_of(model)
    assert torch.equal(model.model.layers[0].mlp.experts.gate_up_proj, before)
    assert "% of the weights of the/model keep their numbers" in caplog.messages[0]


# The product.


def weight_of(format_: Format, num_experts: int, outputs: int, inputs: int, seed: int = 0) -> ExpertWeight:
    torch.manual_seed(seed)
    matrix = quantized_matrix(plain_matrix(torch.randn(num_experts * outputs, inputs)), format_)
    assert matrix is not None
    return ExpertWeight(matrix, num_experts)


needs_kernel = pytest.mark.skipif(expert_products() is None, reason="there is no kernel for this machine")


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    outputs=st.integers(1, 140),
    blocks=st.integers(1, 4),
    format_=st.sampled_from([Format.Q8_0, Format.IQ4_NL]),
)
def test_products_are_those_of_float64(counts: list[int], outputs: int, blocks: int, format_: Format) -> None:
    weight = weight_of(format_, len(counts), outputs, 32 * blocks, seed=sum(counts))
    numbers = widened(weight.rows, weight.format).view(len(counts), outputs, -1).double()
    x = torch.randn(sum(counts), 32 * blocks)
    expected = [part.double() @ numbers[i].T for i, part in enumerate(x.split(counts))]
    hit = torch.tensor([i for i, count in enumerate(counts) if count])
    found = weight(x, hit, torch.tensor(counts)[hit])
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=1e-5, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "nemotron_h"])
def test_a_token_does_not_depend_on_the_tokens_beside_it_nor_on_threads(name: str) -> None:
    model = make(name)
    quantize_module(model, "int4", "it")
    experts = experts_of(model)[0]
    hidden = torch.randn(60, 32)
    index = torch.stack([torch.randperm(4)[:2] for _ in range(60)])
    shares = torch.rand(60, 2)
    with torch.inference_mode():
        whole = experts(hidden, index, shares)
        for rows in (slice(0, 1), slice(7, 9), slice(3, 20), slice(11, 60)):
            assert torch.equal(experts(hidden[rows], index[rows], shares[rows]), whole[rows])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            assert torch.equal(experts(hidden, index, shares), whole)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("has_kernel", [True, False])
def test_an_expert_sees_its_own_tokens_only(has_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("mixtral")
    quantize_module(model, "int8", "it")
    experts = experts_of(model)[0]
    seen: list[tuple[list[int], list[int], int]] = []
    products = (has_kernel and expert_products()) or matrix_experts._widened_products

    def counted(weight: ExpertWeight, inputs: Tensor, hit: Tensor, counts: Tensor) -> Tensor:
        seen.append((hit.tolist(), counts.tolist(), len(inputs)))
        return products(weight, inputs, hit, counts)

    monkeypatch.setattr(matrix_experts, "expert_products", lambda: counted)
    index = torch.tensor([[3, 1], [1, 3], [1, 0]])
    experts(torch.randn(3, 32), index, torch.rand(3, 2))
    assert seen == [([0, 1, 3], [1, 3, 2], 6)] * 2


# The whole way.


def texts(folder: Path, **options: Any) -> list[list[int]]:
    """Six texts, greedy and sampled."""
    rng = random.Random(3)
    words = ["the sea ", "a ship ", "of salt ", "and wind "]
    requests: Sequence[CompletionRequest] = [
        CompletionRequest(
            "".join(rng.choices(words, k=8)),
            SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.7 * (i % 2), seed=i),
        )
        for i in range(6)
    ]
    with closing(LocalBackend(folder, device="cpu", max_length=256, num_slots=3, **options)) as backend:
        assert experts_of(backend.model)
        return [tiny.token_ids(tiny.read(stream)[0]) for stream in backend.start(requests)]


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize("word", QUANTIZATIONS)
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_text_is_the_same_however_it_is_drafted(name: str, word: str, tmp_path: Path) -> None:
    make(name).to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    plain = texts(tmp_path, quantization=word, drafter="none")
    assert len({tuple(text) for text in plain}) == len(plain)
    for drafter in ("prompt_lookup", "auto"):
        assert texts(tmp_path, quantization=word, drafter=drafter) == plain
