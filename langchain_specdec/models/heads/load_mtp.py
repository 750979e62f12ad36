"""Loads the MTP layers of a model that is loaded, or tells of one that is not whether they fit."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.checkpoint import explained
from langchain_specdec.models.heads.mtp_head import MtpHead
from langchain_specdec.models.heads.mtp_source import PREFIX, MtpSource
from langchain_specdec.models.heads.target_sizes import embedding_of, output_of
from langchain_specdec.models.loaded_model import LoadedModel

_FAMILIES = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
# Copies of what is the target's, and layers after the first.
_LEFT_OUT = re.compile(r"embed_tokens\.|lm_head\.|layers\.[1-9]")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_NUM_NAMED = 3


def load_mtp(source: MtpSource, target: LoadedModel) -> MtpHead:
    """Load the MTP layer of a model, ready to run on its device and in its type.

    Args:
        source: What `find_mtp` found.
        target: The same model.

    Raises:
        ModelLoadError: Its weights cannot be read.
        UnsupportedModelError: It is of a family whose MTP layers are not known, or has other weights than these.
    """
    model: Any = target.model
    _check_family(source, model.config)
    with torch.device("meta"):
        head = MtpHead(model, embedding_of(target), output_of(target))
    weights = _read(source, lambda file, name: file.get_tensor(name))
    _check_weights(source, head, weights, type(model).__name__)
    weights = {name: weights[name].to(model.device, model.dtype) for name in head.state_dict()}
    head.load_state_dict(weights, assign=True)
    return head.eval().requires_grad_(False)


def check_mtp(source: MtpSource, config: Any) -> None:
    """Raise unless a model can draft by its MTP layers, by the headers of its files.

    Args:
        source: What `find_mtp` found.
        config: The model's configuration.

    Raises:
        ModelLoadError: The headers cannot be read.
        UnsupportedModelError: As `load_mtp`.
    """
    _check_family(source, config)
    text = copy.deepcopy(config.get_text_config())
    # One layer is enough to make the head of its class.
    text.num_hidden_layers, text.layer_types = 1, ["full_attention"]
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(text)
        head = MtpHead(model, model.get_input_embeddings(), model.get_output_embeddings())
    shapes = _read(source, lambda file, name: torch.empty(file.get_slice(name).get_shape(), device="meta"))
    _check_weights(source, head, shapes, type(model).__name__)


def _check_family(source: MtpSource, config: Any) -> None:
    if (kind := config.get_text_config().model_type) not in _FAMILIES:
        msg = (
            f"The MTP layers of {source.name} cannot be run: it is of type {kind!r}, and those of Qwen3.5 and "
            "Qwen3-Next are known. Leave drafter out: lookups need no layers."
        )
        raise UnsupportedModelError(msg)


def _check_weights(source: MtpSource, head: MtpHead, weights: Mapping[str, Tensor], model_class: str) -> None:
    expected = head.state_dict()
    wrong = sorted(
        {*expected} ^ {*weights}
        | {name for name in expected if name in weights and weights[name].shape != expected[name].shape}
    )
    if wrong:
        named = ", ".join(PREFIX + name for name in wrong[:_NUM_NAMED]) + ", ..." * (len(wrong) > _NUM_NAMED)
        msg = (
            f"The MTP layers of {source.name} cannot be run: weights are missing, unknown or of another size than a "
            f"layer of {model_class} has them ({named}). Quantised ones are not read: take the model as its "
            "makers published it, or leave drafter out."
        )
        raise UnsupportedModelError(msg)


def _read(source: MtpSource, read: Callable[[Any, str], Tensor]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    with explained(source.name, source.place):
        for path in sorted(set(source.files.values())):
            with safe_open(path, "pt") as file:
                names = [name for name, place in source.files.items() if place == path and not _LEFT_OUT.match(name)]
                weights |= {name: read(file, PREFIX + name) for name in names}
        return _with_stacked_experts(weights)


def _with_stacked_experts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with those of a layer's experts in two tensors, as transformers has them, where each has its own."""
    stacked: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[str, int], Tensor]] = {}
    for name, weight in weights.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(match[1], {})[match[3], int(match[2])] = weight
        else:
            stacked[name] = weight
    for name, each in experts.items():
        count = 1 + max(number for _, number in each)
        gates = [torch.cat([each["gate", number], each["up", number]]) for number in range(count)]
        stacked[f"{name}.gate_up_proj"] = torch.stack(gates)
        stacked[f"{name}.down_proj"] = torch.stack([each["down", number] for number in range(count)])
    return stacked
