"""GGUF files written in tests, as convert_hf_to_gguf.py of llama.cpp writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP, POSITIONS = 40, 32, 4, 4, 2, 16, 64, 64
_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
_PAIRED = ("llama", "smollm3")
# What models of a type are given beside the sizes above.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "smollm3": {"head_dim": HIDDEN // HEADS},
    "qwen2": {"head_dim": HIDDEN // HEADS, "tie_word_embeddings": False},
    "qwen3": {},
    "phi3": {"sliding_window": 5, "pad_token_id": 0, "head_dim": HIDDEN // HEADS},
    "gemma": {},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": HEAD_DIM},
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": HEAD_DIM, "num_hidden_layers": 7},
}


@dataclass
class Vocabulary:
    """A tokenizer as a file carries it: fields after `tokenizer.ggml.`."""

    model: str = "gpt2"
    pre: str = "gpt-2"
    tokens: Sequence[str] = ("<e>", "<b>", "Ġ", "a", "b", "c", "ab", "Ġa", "!", "1")
    kinds: Sequence[int] = (CONTROL, CONTROL, *[NORMAL] * 8)
    merges: Sequence[str] = ("a b", "Ġ a")
    scores: Sequence[float] = ()
    ids: Mapping[str, int] = field(default_factory=lambda: {"eos": 0, "bos": 1})
    flags: Mapping[str, bool] = field(default_factory=dict)
    chat_template: Any = None


def tiny_model(model_type: str, **options: Any) -> Any:
    """A transformers model of a family, with weights by chance, norms and biases too."""
    sizes = {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": MLP,
        "max_position_embeddings": POSITIONS, "eos_token_id": 0, "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    config = AutoConfig.for_model(model_type, **sizes | FAMILIES[model_type] | options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model


def write_gguf(
    path: Path,
    model: Any,
    vocabulary: Vocabulary | None = None,
    *,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    fields: Mapping[str, Any] | None = None,
    leave_out: Sequence[str] = (),
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    parts: int = 1,
) -> Path:
    """Write a transformers model.

    Args:
        path: The file.
        model: The model.
        vocabulary: Its tokenizer.
        kinds: Types of matrices, by the ends of their names in the file.
        fields: Metadata to add or to replace, after the architecture's name and a dot; whole keys begin with ".".
        leave_out: Ends of names of metadata and tensors that are not written.
        tensors: Tensors to add or to replace.
        parts: How many files to write.
    """
    config = model.config
    name = _ARCHITECTURES.get(config.model_type, config.model_type)
    options = {"split_max_tensors": -(-len(model.state_dict()) // parts)} if parts > 1 else {}
    writer = gguf.GGUFWriter(path, name, **options)
    for key, value in {**_metadata(config, name), **(fields or {})}.items():
        if not key.endswith(tuple(leave_out)) or not leave_out:
            _add(writer, key[1:] if key.startswith(".") else f"{name}.{key}", value)
    _add_vocabulary(writer, vocabulary or Vocabulary(), leave_out)
    for key, weight in {**_tensors(model, name), **(tensors or {})}.items():
        if leave_out and key.endswith(tuple(leave_out)):
            continue
        kind = next((kind for end, kind in (kinds or {}).items() if key.endswith(end)), None)
        if kind is None or weight.ndim < 2:
            writer.add_tensor(key, weight.astype(np.float32))
        else:
            writer.add_tensor(key, gguf.quantize(weight.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of queries or keys with the two of a pair beside each other, as LlamaModel.permute of the converter."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _metadata(config: Any, name: str) -> dict[str, Any]:
    values = vars(config) | config.to_dict()
    rope = values.get("rope_parameters") or values
    local = rope.get("sliding_attention", {}).get("rope_theta") if isinstance(rope, dict) else None
    full = rope.get("full_attention", rope)
    base = full.get("rope_theta") or values.get("rope_theta")
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": values.get("head_dim"),
        "attention.value_length": values.get("head_dim"),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(base),
        "rope.freq_base_swa": float(local) if local else None,
        "attention.sliding_window": values.get("sliding_window"),
        "attn_logit_softcapping": values.get("attn_logit_softcapping"),
        "final_logit_softcapping": values.get("final_logit_softcapping"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _tensors(model: Any, name: str) -> dict[str, np.ndarray[Any, Any]]:
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config.num_hidden_layers)
    weights = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = tensor.float().numpy()
        if name in _PAIRED and ".q_proj." in key:
            weight = permuted(weight, config.num_attention_heads)
        if name in _PAIRED and ".k_proj." in key:
            weight = permuted(weight, config.num_key_value_heads)
        if name.startswith("gemma") and key.endswith("norm.weight"):
            weight = weight + 1
        weights[str(names.get_name(key, try_suffixes=(".weight", ".bias")))] = weight
    return weights


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, leave_out: Sequence[str]) -> None:
    found = {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": list(vocabulary.tokens),
        "token_type": list(vocabulary.kinds),
        "merges": list(vocabulary.merges),
        "scores": list(vocabulary.scores),
        **{f"{name}_token_id": index for name, index in vocabulary.ids.items()},
        **vocabulary.flags,
    }
    for name, value in found.items():
        if value not in ("", []) and f"tokenizer.ggml.{name}" not in leave_out:
            _add(writer, f"tokenizer.ggml.{name}", value)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
