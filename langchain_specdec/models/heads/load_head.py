"""Loads a head for a model that is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.models.heads.fit import MAPS, check_head, target_ids
from langchain_specdec.models.heads.head_source import HeadSource, find_head
from langchain_specdec.models.heads.head_weights import read_weights
from langchain_specdec.models.heads.target_sizes import TargetSizes, embedding_of, output_of
from langchain_specdec.models.loaded_model import LoadedModel

_logger = logging.getLogger(__name__)


def load_head(
    source: str | os.PathLike[str] | HeadSource,
    target: LoadedModel,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Eagle3Head:
    """Load a head, ready to run on its target's device: in float32 on a CPU, else in the target's type.

    Args:
        source: Folder or id on the Hub, or what `find_head` found.
        target: The model that it is to draft for. Embeddings and the output layer that the head has not are the
            target's, and so are those that are a copy of them.
        revision: Branch, tag or commit of the id.
        token: Access token of the Hub; None takes the one that is logged in.

    Raises:
        InvalidParameterError: It is no name, or a revision is given of what is on this machine.
        ModelLoadError: It cannot be found, read or downloaded.
        UnsupportedModelError: It is no EAGLE-3 head, is damaged, or does not fit the target.
    """
    found = source if isinstance(source, HeadSource) else find_head(source, revision=revision, token=token)
    if found is None:
        msg = f"{source} is a model of its own, and a head is asked for: give the folder or the id of an EAGLE-3 head."
        raise UnsupportedModelError(msg)
    weights = read_weights(found)
    sizes = TargetSizes.of(target.name, target.model.config)
    config = check_head(found, sizes, {name: tuple(weight.shape) for name, weight in weights.items()})
    ids = target_ids(found, weights, config)
    if config.has_embedding and _is_same(weights["embed_tokens.weight"], target, "get_input_embeddings"):
        config = replace(config, has_embedding=False)
    if config.has_output and ids is None and _is_same(weights["lm_head.weight"], target, "get_output_embeddings"):
        config = replace(config, has_output=False)
    _tell_of_another(found, target.name)
    with torch.device("meta"):
        head = Eagle3Head(config, ids, embedding=embedding_of(target), output=output_of(target))
    model: Any = target.model
    dtype = torch.float32 if model.device.type == "cpu" else model.dtype
    head.load_state_dict(_state(weights, head.state_dict(), model.device, dtype), assign=True)
    return head.to(model.device).eval().requires_grad_(False)


def _state(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A head's weights where and as they are to be; a bias that is left out, as Qwen2's of `o_proj`, is 0."""
    assert not any(name in expected for name in MAPS), "those are no weights"  # noqa: S101
    state = {name: weights[name].to(device, dtype) for name in expected if name in weights}
    return state | {
        name: torch.zeros(weight.shape, device=device, dtype=dtype)
        for name, weight in expected.items()
        if name not in state
    }


def _is_same(weight: Tensor, target: LoadedModel, name: str) -> bool:
    """Whether a weight is that of one of the target's layers, as many heads come with copies of its largest two."""
    if not isinstance(target.model, nn.Module):
        return False
    # Quantised ones have none that is plain numbers.
    theirs: Any = getattr(getattr(target.model, name)(), "weight", None)
    is_plain = isinstance(theirs, nn.Parameter) and theirs.is_floating_point() and theirs.shape == weight.shape
    return is_plain and torch.equal(weight.to(theirs), theirs)


def _tell_of_another(source: HeadSource, target: str) -> None:
    """Log it where a head names another model than its target as the one that it was trained for."""
    verifier = (source.config.get("speculators_config") or {}).get("verifier") or {}
    name = verifier.get("name_or_path")
    # Of a local folder, as of an id, the last part tells the model.
    if name and _last(name) != _last(target):
        _logger.warning(
            "%s was trained for %s, and drafts for %s here. The text is the same; drafts of a head that was trained "
            "for another model are seldom right.",
            source.name, name, target,
        )  # fmt: skip


def _last(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
