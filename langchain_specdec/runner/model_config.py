"""What a model and its configuration say of its sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ATTENTION_NAME = "specdec"
"""What the engine's own attention is called in a configuration; see `attention.slot_attention`."""

# Kinds of layers that keep no keys and values.
_WITHOUT_KEYS = {"linear_attention", "conv", "mamba", "moe", "mlp"}


def num_key_value_heads(config: Any) -> int:
    """Heads that have keys and values of their own; all of them where a configuration does not say."""
    # Falcon and StarCoder, of which newer Falcons keep what they share once for each head.
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def layer_configs(config: Any) -> list[Any]:
    """A configuration for each layer where layers differ (Gemma 4), and else the one of all.

    Of all layers together, one with layers that differ refuses to say what it says of each.
    """
    return list(getattr(config, "per_layer_config", None) or [config])


def cached_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes that the keys and values of one position take in one layer; where layers differ, in the largest."""
    return max(num_key_value_heads(layer) * _cached_numbers(layer) for layer in layer_configs(config)) * dtype.itemsize


def _cached_numbers(layer: Any) -> int:
    """Numbers of a key and its value in one head."""
    # DeepSeek's keys are longer than its values. Newer versions of transformers keep less, of which both are made.
    if hasattr(layer, "qk_nope_head_dim"):
        return int(layer.qk_nope_head_dim + layer.qk_rope_head_dim + layer.v_head_dim)
    return 2 * int(getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)


def num_cached_layers(config: Any) -> int:
    """Layers that keep keys and values: in hybrid models only some do."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if kinds is None:
        return int(config.num_hidden_layers)
    return sum(kind not in _WITHOUT_KEYS for kind in kinds)


def keyed_layers(config: Any) -> dict[str, int]:
    """The last layer of each kind that has keys of its own, which later ones share (Gemma 3n and 4)."""
    count = config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", 0) or 0)
    return {kind: layer for layer, kind in enumerate(config.layer_types[:count])}


def max_positions(config: Any) -> int | None:
    """Positions that a model was made for; None where its configuration does not say.

    Longrope models read texts of more than their original length with other frequencies. Those would not fit the
    keys in the cache, and one long text would change the short ones beside it, so the original length is the limit.
    """
    # MPT has a name of its own for them.
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Models with several kinds of layers may have parameters for each kind.
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type", parameters.get("type")) == "longrope":
            original = getattr(config, "original_max_position_embeddings", None)
            limits.append(parameters.get("original_max_position_embeddings") or original)
    return min((int(limit) for limit in limits if limit and limit > 0), default=None)


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder layers, by where all Hugging Face decoders keep them: one list directly below the text model."""
    count = model.config.get_text_config().num_hidden_layers
    text = getattr(model.base_model, "language_model", model.base_model)
    lists = [m for m in text.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0]) if len(lists) == 1 else []


def text_modules(model: Any) -> list[nn.Module]:
    """The modules of a model but for those of its encoders of images and sounds, each once."""
    base = getattr(model, "base_model", model)
    text = getattr(base, "language_model", None)
    encoders = [child for child in base.children() if text is not None and child is not text]
    left_out = {module for encoder in encoders for module in encoder.modules()}
    return [module for module in model.modules() if module not in left_out]
