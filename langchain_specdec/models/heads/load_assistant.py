"""Gemma 4's assistants: told from models, checked against the model that they are to draft for, and loaded."""

from __future__ import annotations

from typing import Any

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.heads.head_source import HeadSource
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.runner.model_config import ATTENTION_NAME, keyed_layers, layer_configs, num_key_value_heads

_TARGETS = {"gemma4_assistant": "gemma4_text", "gemma4_unified_assistant": "gemma4_unified_text"}
_RIGHT_ONE = (
    "Each size of Gemma 4 has an assistant of its own, named after it: google/gemma-4-E4B-it has "
    "google/gemma-4-E4B-it-assistant"
)


def is_assistant(source: HeadSource) -> bool:
    """Whether a head is an assistant of Gemma 4."""
    return source.config.get("model_type") in _TARGETS


def check_assistant(source: HeadSource, name: str, target: Any) -> None:
    """Raise an `UnsupportedModelError` where an assistant cannot draft for a model.

    Args:
        source: The assistant.
        name: What the user calls the model.
        target: Its configuration.
    """
    _refuse(source, name, _misfit(source, target.get_text_config()))


def load_assistant(source: HeadSource, target: LoadedModel) -> Any:
    """Load an assistant, in its target's type and on its device.

    Args:
        source: The assistant.
        target: What it is to draft for.

    Returns:
        Transformers' `Gemma4AssistantForCausalLM`, or that of the unified models.

    Raises:
        ModelLoadError: Its files cannot be read.
        UnsupportedModelError: It does not fit the target.
    """
    check_assistant(source, target.name, target.model.config)
    # Its target's classes are imported by now.
    from transformers import AutoModelForCausalLM

    from langchain_specdec.models.checkpoint import read_weights
    from langchain_specdec.models.quiet_loading import quiet_loading

    model: Any = target.model
    given = {"revision": source.revision, "token": source.token}
    options = {key: value for key, value in given.items() if value is not None}
    with quiet_loading():
        assistant = read_weights(
            AutoModelForCausalLM, source.place, source.name, dtype=model.dtype, attn_implementation=ATTENTION_NAME,
            **options,
        )  # fmt: skip
    _refuse(source, target.name, _unlike_keys(assistant, model.config.get_text_config()))
    return assistant.to(model.device).eval().requires_grad_(False)


def _refuse(source: HeadSource, name: str, reason: str | None) -> None:
    if reason:
        msg = f"{source.name} cannot draft for {name}: {reason}. {_RIGHT_ONE}."
        raise UnsupportedModelError(msg)


def _misfit(source: HeadSource, target: Any) -> str | None:
    own, text = source.config, source.config.get("text_config") or {}
    if target.model_type != (wanted := _TARGETS[own["model_type"]]):
        return f"it drafts for models of type {wanted!r}, and this one is of type {target.model_type!r}"
    if (size := own.get("backbone_hidden_size")) != target.hidden_size:
        return f"it reads states of {size} numbers, and the model's have {target.hidden_size}"
    if (size := text.get("vocab_size", target.vocab_size)) != target.vocab_size:
        return f"it drafts from {size} tokens, and the model has {target.vocab_size}"
    if getattr(target, "sliding_window", None) is None or len(set(target.layer_types)) < 2:
        return "it reads the keys of a layer with a sliding window and of one without, and the model has only one kind"
    return None


def _unlike_keys(assistant: Any, target: Any) -> str | None:
    """Why an assistant cannot read the keys of its target; None where it can."""
    layers, configs = keyed_layers(target), layer_configs(target)
    for layer in assistant.model.layers:
        kind, size, heads = layer.self_attn.layer_type, layer.self_attn.head_dim, layer.self_attn.config
        config = configs[layers[kind] % len(configs)]
        if size != config.head_dim or heads.num_attention_heads % num_key_value_heads(config):
            return (
                f"its layer of kind {kind} reads keys of {size} numbers by {heads.num_attention_heads} heads, and the "
                f"model's have {config.head_dim}, in {num_key_value_heads(config)} heads"
            )
    return None
