"""Hugging Face modules as a native decoder's weights: the same logits, no memory twice, nothing taken for another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from langchain_specdec.models.decoder_families import decoder_weights, why_not_native
from langchain_specdec.models.quantization import QUANTIZATIONS
from langchain_specdec.models.quantized_module import quantize_module, widen_module
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.decoder_weights import Activation, DecoderWeights, Format
from langchain_specdec.runner.cpu.mapped_weights import MappedWeights
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, widened
from langchain_specdec.runner.cpu.native_decoder import NativeDecoder
from langchain_specdec.runner.cpu.rotary import RotaryTables
from tests.support import model_families as families
from tests.support import tiny_models as tiny
from tests.support.random_decoders import Row, run_rows
from tests.support.reference_decoder import reference_logits

pytestmark = pytest.mark.transformers

PIECES = [(0, 11), (11, 31)]
TEXT = [(7 * i * i + 3 * i) % 251 for i in range(40)]


def random_model(model_type: str = "llama", dtype: torch.dtype = torch.float32, **differences: Any) -> Any:
    """A random model all of whose parameters matter: no bias is 0, and no norm's weight is 1."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **families.SIZES | differences)
    return varied(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), dtype)


def varied(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            # As a checkpoint in this type holds them.
            parameter.copy_(parameter.to(dtype).float())
    return model.eval()


def own_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([TEXT]), use_cache=False).logits[0]
        return logits


def taken(model: Any) -> DecoderWeights:
    assert why_not_native(model) is None
    weights = decoder_weights(model)
    assert weights is not None
    return weights


def check_same(model: Any) -> DecoderWeights:
    """Take a model's weights; the reference computes the model's logits with them, and the model still does."""
    expected = own_logits(model)
    assert expected.std() > 0.3, "logits so even would hide differences"
    weights = taken(model)
    torch.testing.assert_close(reference_logits(weights, TEXT), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(own_logits(model), expected, atol=1e-5, rtol=0)
    return weights


@pytest.mark.parametrize("name", families.NATIVE)
def test_families(name: str) -> None:
    check_same(varied(families.make_model(name)))


@pytest.mark.skipif(native_library() is None, reason="there is no native decoder for this machine")
@pytest.mark.parametrize("name", families.NATIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_run_natively(name: str, dtype: torch.dtype) -> None:
    model = varied(families.make_model(name), dtype)
    expected = own_logits(model)
    library = native_library()
    assert library is not None
    decoder = NativeDecoder(library, taken(model), 2, families.POSITIONS, 2)
    try:
        # The text in two pieces, then as the branch of a tree whose other branches are no part of it.
        found = [run_rows(decoder, [Row(1, start, TEXT[start:stop])], vocab=tiny.VOCAB) for start, stop in PIECES]
        tree = run_rows(decoder, [Row(1, 31, [TEXT[31], 9, TEXT[32], 8, TEXT[33]], [-1, 0, 0, 1, 2])], vocab=tiny.VOCAB)
    finally:
        decoder.close()
    logits = np.concatenate([*(result.logits[0] for result in found), tree.logits[0][[0, 2, 4]]])
    np.testing.assert_allclose(logits, expected[:34].numpy(), rtol=0, atol=1e-4)


def quantised(name: str, word: str) -> tuple[Any, torch.Tensor]:
    """A model in blocks, and the logits of a plain one with the numbers that these stand for."""
    model = varied(families.make_model(name))
    oracle = copy.deepcopy(model)
    plain = own_logits(model)
    quantize_module(model, word, name)
    for path, layer in model.named_modules():
        if isinstance(layer, (MatrixLinear, MatrixEmbedding)):
            plain_layer, numbers = oracle.get_submodule(path), widened(layer.rows, layer.format)
            plain_layer.weight.data = numbers.T.contiguous() if isinstance(plain_layer, Conv1D) else numbers
    expected = own_logits(oracle)
    assert (expected - plain).abs().max() > 1e-3, "else this shows nothing"
    return model, expected


@pytest.mark.parametrize("word", ["int8", "int4"])
@pytest.mark.parametrize("name", families.NATIVE)
def test_quantised_families(name: str, word: str) -> None:
    model, expected = quantised(name, word)
    weights = taken(model)
    formats = QUANTIZATIONS[word]
    assert (weights.embedding.format, weights.layers[0].gate.format) == (formats.tables, formats.layers)
    torch.testing.assert_close(reference_logits(weights, TEXT), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(own_logits(model), expected, atol=1e-4, rtol=0)


# Experts that are parameters of one module have tests of their own, in test_quantized_experts.py.
_OF_LAYERS = [name for name in families.FAMILIES if not (families.IS_TRANSFORMERS_5 and name in families.WITH_EXPERTS)]


@pytest.mark.parametrize("name", families.params(_OF_LAYERS))
def test_quantised_families_by_pytorch(name: str) -> None:
    model, expected = quantised(name, "int8")
    widen_module(model, "int8", name)
    assert not any(isinstance(layer, MatrixLinear) for layer in model.modules())
    torch.testing.assert_close(own_logits(model), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", families.params(sorted({*families.FAMILY_OF} - {*families.NATIVE})))
def test_other_families_have_none(name: str) -> None:
    model = families.make_model(name)
    assert "is of no family" in (why_not_native(model) or "")
    assert decoder_weights(model) is None


@pytest.mark.parametrize(
    ("model_type", "differences"),
    [
        ("llama", {"head_dim": 80, "hidden_size": 48}),
        ("llama", {"head_dim": 96, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}),
        ("llama", {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 52}),
        ("llama", {"attention_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"hidden_act": "gelu_new"}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {"head_dim": 128, "sliding_window": 5}),
        ("qwen2", {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 1}),
        ("qwen3", {"head_dim": 64, "attention_bias": True}),
        ("smollm3", {"no_rope_layers": [0, 1, 0]}),
        ("smollm3", {"no_rope_layers": [0, 0, 0]}),
        ("gemma", {"head_dim": 256, "num_key_value_heads": 1, "hidden_activation": "gelu_pytorch_tanh"}),
        ("gemma2", {"head_dim": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
        ("gemma2", {"head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma3_text", families.GEMMA3 | {"layer_types": ["sliding_attention"] * 4}),
        ("gemma3_text", families.GEMMA3 | {"layer_types": ["full_attention"] * 4}),
        ("gemma3_text", families.GEMMA3 | {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0}),
        ("phi3", {"head_dim": 16, "partial_rotary_factor": 0.5}),
        ("granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 0.5}),
    ],
)
def test_sizes_and_settings(model_type: str, differences: dict[str, Any]) -> None:
    check_same(random_model(model_type, **{"initializer_range": 0.12, **differences}))


@pytest.mark.parametrize(
    ("model_type", "scaling"),
    [
        ("llama", {"rope_type": "linear", "factor": 4.0}),
        ("llama", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
        (
            "llama",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        ),
        ("qwen2", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}),
        ("gemma3_text", {"rope_type": "linear", "factor": 8.0}),
    ],
)
def test_scaled_positions(model_type: str, scaling: dict[str, Any]) -> None:
    differences: dict[str, Any] = families.GEMMA3 if model_type == "gemma3_text" else {}
    model = random_model(model_type, rope_scaling=scaling, initializer_range=0.3, **differences)
    plain = random_model(model_type, initializer_range=0.3, **differences)
    assert not torch.allclose(own_logits(model), own_logits(plain), atol=1e-2)
    check_same(model)


@pytest.mark.parametrize("name", families.NATIVE)
def test_rotary_embeddings_turn_by_the_very_numbers_that_the_module_has(name: str) -> None:
    model = families.make_model(name)
    # What scales as texts grow has seen a long one.
    embeddings = [model.model.rotary_emb, getattr(model.model, "rotary_emb_local", None)]
    kinds = [[kind] for kind in getattr(model.model.rotary_emb, "layer_types", ())] or [[]]
    asked = [(each, kind) for each in embeddings if each is not None for kind in kinds]
    positions = torch.arange(families.POSITIONS - 1)[None]
    wanted = [[turn[0].clone() for turn in each(torch.zeros(1), positions, *kind)] for each, kind in asked]
    for each, kind in asked:
        each(torch.zeros(1), torch.arange(3 * families.POSITIONS)[None], *kind)
    found = taken(model).rotary
    for each, kind in asked:
        each(torch.zeros(1), torch.arange(3 * families.POSITIONS)[None], *kind)
    tables = RotaryTables(found, families.POSITIONS)
    for stop in (1, 2, 9, families.POSITIONS):
        tables.reach(stop)
    for table, turns in zip(tables.array, wanted, strict=True):
        for rows, turn in zip(table, turns, strict=True):
            half = turn.shape[1] // 2
            assert np.array_equal(rows[: len(turn)], turn[:, :half].numpy())
            assert np.array_equal(rows[: len(turn)], turn[:, half:].numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_default_type_of_numbers_that_a_program_has_set_is_no_matter(dtype: torch.dtype) -> None:
    model = families.make_model("gemma3")
    expected = [rotary.frequencies for rotary in taken(model).rotary]
    torch.set_default_dtype(dtype)
    try:
        found = taken(model).rotary
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(np.array_equal(own.frequencies, other) for own, other in zip(found, expected, strict=True))


def test_float32_weights_are_the_models_own_memory() -> None:
    model = random_model()
    weights = taken(model)
    assert not any(isinstance(module, MatrixLinear) for module in model.modules())
    attention = model.model.layers[1].self_attn
    assert weights.layers[1].key.format is Format.F32
    assert weights.layers[1].key.data.ctypes.data == attention.k_proj.weight.data_ptr()
    assert weights.layers[1].attention_norm.ctypes.data == model.model.layers[1].input_layernorm.weight.data_ptr()
    assert weights.num_bytes == 4 * sum(p.numel() for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, Format.BF16), (torch.float16, Format.F16)])
@pytest.mark.parametrize("model_type", ["llama", "gemma", "gemma3_text", "phi3"])
def test_weights_of_half_the_bytes_are_kept_in_them(model_type: str, dtype: torch.dtype, kept: Format) -> None:
    differences: dict[str, Any] = families.GEMMA3 if model_type == "gemma3_text" else {}
    if model_type == "gemma":
        differences = {"head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"}
    model = random_model(model_type, dtype, initializer_range=0.3, **differences)
    num_bytes = 2 * sum(p.numel() for p in model.parameters() if p.ndim > 1)
    weights = check_same(model)
    assert {m.format for layer in weights.layers for m in (layer.query, layer.up, layer.down)} == {kept}
    assert (weights.embedding.format, weights.head.format) == (kept, kept)
    assert weights.num_bytes == num_bytes
    left = {name: p.shape for name, p in model.named_parameters() if p.untyped_storage().nbytes() > 4 and p.ndim > 1}
    assert not left, "the model must not hold its matrices a second time"
    assert model.dtype == torch.float32, "whoever asks the model for its type is told what it computes in"
    assert len(model.get_input_embeddings().weight) == tiny.VOCAB


def test_the_same_model_again_gives_the_same_memory() -> None:
    model = random_model(dtype=torch.bfloat16)
    first, second = taken(model), taken(model)
    for a, b in zip(first.layers, second.layers, strict=True):
        assert (a.query.data.ctypes.data, a.query.format) == (b.query.data.ctypes.data, b.query.format)
        assert a.mlp_norm.ctypes.data == b.mlp_norm.ctypes.data
    assert first.embedding.data.ctypes.data == second.embedding.data.ctypes.data


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_was_changed_is_read_as_it_is_and_none_of_its_layers_replaced(dtype: torch.dtype) -> None:
    model = random_model(dtype=dtype, initializer_range=0.3)
    taken(model)
    layers = {name: id(module) for name, module in model.named_modules()}
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj = nn.Linear(32, 64, bias=False)
        layers["model.layers.1.mlp.up_proj"] = id(model.model.layers[1].mlp.up_proj)
        # All of these numbers bfloat16 would hold.
        model.model.layers[1].mlp.up_proj.weight.fill_(0.5)
        model.model.norm.weight.mul_(2.0)
    weights = check_same(model)
    assert weights.layers[1].up.format is Format.F32
    assert {name: id(module) for name, module in model.named_modules()} == layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_tables_are_one(dtype: torch.dtype) -> None:
    model = random_model(dtype=dtype, tie_word_embeddings=True, initializer_range=0.3)
    for weights in (check_same(model), taken(model)):
        assert weights.embedding.data.ctypes.data == weights.head.data.ctypes.data


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_mapped_get_memory_of_their_own(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny.tiny_model(hidden_size=64, vocab_size=4096, dtype=dtype).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = own_logits(model)
    weights = taken(model)
    mapped = MappedWeights()
    arrays: list[Any] = [matrix.data for layer in weights.layers for matrix in (layer.query, layer.gate, layer.down)]
    arrays += [weights.embedding.data, weights.head.data, weights.final_norm, weights.layers[0].mlp_norm]
    assert not any(mapped.may_touch(torch.from_numpy(array)) for array in arrays)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"\0" * path.stat().st_size)
    torch.testing.assert_close(reference_logits(weights, TEXT), expected, atol=1e-3, rtol=0)


class _Scaled(nn.Linear):
    """As adapters and quantised layers are: another class in a linear layer's place."""


class _OwnLlama(type(tiny.tiny_model())):  # type: ignore[misc]
    """As code that comes with a model may have it."""


def _replace_linear(model: Any) -> None:
    model.model.layers[0].self_attn.o_proj = _Scaled(32, 32, bias=False)


def _add_bias(model: Any) -> None:
    model.model.layers[2].mlp.down_proj.bias = nn.Parameter(torch.ones(32))


def _add_layer(model: Any) -> None:
    model.model.layers[0].extra = nn.Linear(4, 4)


def _add_buffer(model: Any) -> None:
    model.model.layers[0].self_attn.register_buffer("sinks", torch.zeros(4))


def _hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda _module, _inputs, output: output * 2)


def _pre_hook(model: Any) -> None:
    model.model.norm.register_forward_pre_hook(lambda _module, inputs: inputs)


def _own_forward(model: Any) -> None:
    model.model.layers[1].self_attn.forward = lambda *_args, **_kwargs: (torch.zeros(1), None)


def _see_all(model: Any) -> None:
    model.model.layers[1].self_attn.is_causal = False


def _own_scaling(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 0.9


def _own_epsilon(model: Any) -> None:
    model.model.layers[1].input_layernorm.variance_epsilon = 0.1


def _max_norm(model: Any) -> None:
    model.model.embed_tokens.max_norm = 0.1


def _one_in_bfloat16(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.to(torch.bfloat16)


def _prune(model: Any) -> None:
    model.model.layers[1].self_attn.q_proj = nn.Linear(32, 16, bias=False)


def _no_weights(model: Any) -> None:
    model.model.layers[1].mlp.to("meta")


def _shorten_head(model: Any) -> None:
    model.lm_head = nn.Linear(32, 17, bias=False)


def _other_activation(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def _parametrize(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


@pytest.mark.parametrize(
    "change",
    [
        _replace_linear, _add_bias, _add_layer, _add_buffer, _hook, _pre_hook, _own_forward, _see_all, _own_scaling,
        _own_epsilon, _max_norm, _one_in_bfloat16, _prune, _no_weights, _shorten_head, _other_activation, _parametrize,
    ],
)  # fmt: skip
def test_a_module_that_differs_runs_as_a_module(change: Callable[[Any], None]) -> None:
    model = random_model(dtype=torch.bfloat16)
    assert why_not_native(model) is None
    change(model)
    before = {name: (type(module), id(module)) for name, module in model.named_modules()}
    assert why_not_native(model) is not None
    assert decoder_weights(model) is None
    assert {name: (type(module), id(module)) for name, module in model.named_modules()} == before


def test_a_subclass_runs_as_a_module() -> None:
    model = _OwnLlama(tiny.tiny_model().config)
    assert why_not_native(model) == "a _OwnLlama is of no family that it runs"


def test_a_class_whose_forward_was_replaced_runs_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    kind = type(model.model.layers[0].mlp)
    monkeypatch.setattr(kind, "forward", lambda _self, inputs: inputs)
    assert why_not_native(model) == f"the forward of {kind.__name__} was replaced"


@pytest.mark.parametrize(
    ("model_type", "differences"), [("llama", {"mlp_bias": True}), ("llama", {"hidden_act": "relu"})]
)
def test_settings_that_are_not_known_run_as_a_module(model_type: str, differences: dict[str, Any]) -> None:
    assert why_not_native(random_model(model_type, **differences)) is not None


def test_an_adapter_runs_as_a_module() -> None:
    peft = pytest.importorskip("peft")
    model = random_model()
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), model)
    assert why_not_native(model) is not None


def test_activations_are_known_by_what_they_compute() -> None:
    known = {"silu": Activation.SILU, "swish": Activation.SILU, "gelu": Activation.GELU}
    known |= dict.fromkeys(("gelu_new", "gelu_pytorch_tanh"), Activation.GELU_TANH)
    for name, activation in known.items():
        assert taken(random_model(hidden_act=name)).activation is activation
    assert why_not_native(random_model(hidden_act="quick_gelu")) is not None


def test_a_copy_of_a_model_has_memory_of_its_own() -> None:
    model = random_model(dtype=torch.bfloat16)
    weights = taken(model)
    other = taken(copy.deepcopy(model))
    assert other.layers[0].up.data.ctypes.data != weights.layers[0].up.data.ctypes.data
    np.testing.assert_array_equal(other.layers[0].up.data, weights.layers[0].up.data)


def test_models_whose_weights_were_taken_are_told_apart() -> None:
    def fingerprint(model: Any) -> object:
        return tiny.loaded(model).identity(model, None, is_own_tokenizer=True)["fingerprint"]

    models = [random_model(dtype=torch.bfloat16) for _ in range(4)]
    with torch.no_grad():
        models[1].model.layers[0].self_attn.k_proj.weight[0, 0] += 1
        models[2].model.embed_tokens.weight[0, 0] += 1
    for model in models:
        taken(model)
    assert [fingerprint(models[0]) == fingerprint(model) for model in models] == [True, False, False, True]
