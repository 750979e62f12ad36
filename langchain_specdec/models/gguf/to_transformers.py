"""A GGUF model as one of transformers', dequantised: for what only that runs, such as a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from langchain_specdec.errors import MissingDependencyError, UnsupportedModelError
from langchain_specdec.models.gguf.config import ARCHITECTURES
from langchain_specdec.models.gguf.model import GGUFModel
from langchain_specdec.models.gguf.rotary import FACTORS, inverse_frequencies
from langchain_specdec.runner.cpu.decoder_weights import Floats, Format, LayerWeights, Matrix
from tgi_launcher.extras import install_command

_MODULES = {
    "query": "self_attn.q_proj.weight", "key": "self_attn.k_proj.weight", "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight",
    "query_bias": "self_attn.q_proj.bias", "key_bias": "self_attn.k_proj.bias", "value_bias": "self_attn.v_proj.bias",
    "output_bias": "self_attn.o_proj.bias",
    "query_norm": "self_attn.q_norm.weight", "key_norm": "self_attn.k_norm.weight",
    "attention_norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight",
}  # fmt: skip
# Where there are norms after attention and the MLP, the one before the MLP has another name.
_POST_NORMS = {
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_attention_norm": "post_attention_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}
_FUSED = (
    ("self_attn.qkv_proj.weight", ("query", "key", "value")),
    ("mlp.gate_up_proj.weight", ("gate", "up")),
)


def to_transformers(model: GGUFModel) -> Any:
    """Make a `PreTrainedModel` in float32 of a model. Its text is the same.

    Raises:
        MissingDependencyError: The package gguf, which dequantises, is not installed.
        UnsupportedModelError: The installed transformers has no place for a weight.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from langchain_specdec.models.quiet_loading import quiet_loading

    values = transformers_config(model)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    state = {name: torch.from_numpy(numbers) for name, numbers in state_dict(model)}
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    with quiet_loading():
        loaded = model_class.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    if different := sorted(set(loaded.state_dict()).symmetric_difference(state) - {"lm_head.weight"}):
        raise UnsupportedModelError(
            f"{model.name} has other weights than {model_class.__name__} of this version of transformers "
            f"({', '.join(different[:3])}): it runs on a CPU only, where a C++ compiler is installed."
        )
    loaded.config._name_or_path = model.name
    if any(name in model.file.tensors for name in FACTORS):
        frequencies, scale = inverse_frequencies(model.file, model.config)
        rotary = loaded.model.rotary_emb
        rotary.inv_freq.copy_(frequencies)
        rotary.original_inv_freq.copy_(frequencies)
        rotary.attention_scaling = scale
    loaded.generation_config = GenerationConfig(**model.generation_config.to_dict())
    return loaded.eval()


def transformers_config(model: GGUFModel) -> dict[str, Any]:
    """What transformers' configuration of a model is made of, as plain values."""
    # The classes have special tokens of their own where None is not said, such as Phi-3's.
    values = {
        name: value for name, value in model.config.to_dict().items() if value is not None or name.endswith("_token_id")
    }
    if values.get("rope_scaling", {}).get("rope_type") == "longrope":
        del values["rope_scaling"]  # its factors are put in place of the frequencies
    return values


def state_dict(model: GGUFModel) -> Iterator[tuple[str, Floats]]:
    """The names and numbers of all weights, as transformers' classes have them, each as it is made.

    Raises:
        MissingDependencyError: The package gguf, which dequantises, is not installed.
    """
    weights, is_tied = model.weights, model.config.tie_word_embeddings
    one = 1 if ARCHITECTURES[model.file.fields["general.architecture"]].is_gemma else 0
    yield "model.embed_tokens.weight", dequantised(weights.embedding)
    for index, layer in enumerate(weights.layers):
        for name, numbers in _layer(model, layer, one):
            yield f"model.layers.{index}.{name}", numbers
    yield "model.norm.weight", weights.final_norm - one
    if not is_tied:
        yield "lm_head.weight", dequantised(weights.head)


def dequantised(matrix: Matrix) -> Floats:
    """The numbers that a matrix stands for, float32 `[outputs, inputs]`.

    Raises:
        MissingDependencyError: The package gguf is not installed.
    """
    if matrix.format is Format.F32:
        return matrix.data.view(np.float32)
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError(
            f"The package gguf, which dequantises weights, is missing: {install_command('embedded')}"
        ) from error
    numbers: Floats = gguf.dequantize(matrix.data, gguf.GGMLQuantizationType(int(matrix.format)))
    return numbers.astype(np.float32, copy=False)


def _layer(model: GGUFModel, layer: LayerWeights, one: int) -> Iterator[tuple[str, Floats]]:
    names = _MODULES | (_POST_NORMS if layer.post_mlp_norm is not None else {})
    heads = {"query": model.weights.heads, "key": model.weights.kv_heads}
    found: dict[str, Floats] = {}
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, Matrix):
            value = dequantised(value)
        elif not isinstance(value, np.ndarray):
            continue
        elif field.name.endswith("norm"):
            value = value - one
        kind = field.name.removesuffix("_bias")
        if model.weights.has_rotary_pairs and kind in heads and not field.name.endswith("norm"):
            value = _halves_from_pairs(value, heads[kind])
        found[field.name] = value
    if getattr(model.config, "attention_bias", False):  # transformers has all four of them then
        for kind in ("query", "key", "value", "output"):
            found.setdefault(f"{kind}_bias", np.zeros(found[kind].shape[0], np.float32))
    if model.config.model_type == "phi3":
        for name, parts in _FUSED:
            yield name, np.concatenate([found.pop(part) for part in parts])
    for name, numbers in found.items():
        yield names[name], numbers


def _halves_from_pairs(weight: Floats, heads: int) -> Floats:
    # Rotary embeddings turn pairs of rows. GGUF keeps the two rows of a pair next to each other; Hugging Face
    # keeps the first rows of all pairs in one half of the head and the second rows in the other.
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))
