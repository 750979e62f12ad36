"""Adapters by name: several beside one base, of which each call chooses one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.models.adapters import Adapter, find_adapter, kind_of, tuned_by
from langchain_specdec.models.quiet_loading import quiet_loading
from langchain_specdec.runner.row_adapters import AdaptedLinear, LowRank, RowAdapters
from langchain_specdec.runner.stateful_layers import stateful_layers


@quiet_loading()
def find_adapters(adapters: object, model: object, token: str | bool | None) -> dict[str, Adapter]:
    """Find adapters before their base is read.

    Args:
        adapters: What is to name them.
        model: The base, as the user gave it.
        token: Access token of the Hub.

    Returns:
        Them by name.

    Raises:
        InvalidParameterError: It names none, or the base is loaded already.
        ModelLoadError: One is certainly not where its name says.
    """
    if not isinstance(model, (str, os.PathLike)):
        kind = type(model).__name__
        msg = f"The {kind} is loaded already, which is too late for adapters: give its id or folder."
        raise InvalidParameterError(msg)
    if not isinstance(adapters, Mapping) or not adapters:
        msg = f"adapters must name folders or model ids, as in adapters={{'legal': 'path/to/it'}}, got {adapters!r}."
        raise InvalidParameterError(msg)
    found = {}
    for name, source in adapters.items():
        if not isinstance(name, str) or not name or not isinstance(source, (str, os.PathLike)):
            msg = f"adapters must map names to folders or model ids, got {name!r}: {source!r}."
            raise InvalidParameterError(msg)
        found[name] = find_adapter(source, token)
    return found


def put_beside(model: Any, adapters: Mapping[str, Adapter], base: str, token: str | bool | None) -> RowAdapters:
    """Put adapters beside the weights of their base, in place.

    Args:
        model: The base, in eval mode, which nobody else uses.
        adapters: Them by name.
        base: What the base is called, for messages.
        token: Access token of the Hub.

    Returns:
        What says which of them each row of a forward goes by; at first none.

    Raises:
        MissingDependencyError: PEFT is not installed, or does not fit the version of transformers.
        ModelLoadError: One cannot be read, or is for another model.
        UnsupportedModelError: One is of a kind that cannot be chosen by the row.
    """
    updates: dict[str, dict[str, LowRank]] = {}
    for name, adapter in adapters.items():
        tuned = tuned_by(model, adapter, base, token)
        for path, update in _updates(tuned, adapter.name).items():
            updates.setdefault(path, {})[name] = update
        tuned.unload()
    chosen = RowAdapters(list(adapters))
    for path, of_layer in updates.items():
        model.set_submodule(path, AdaptedLinear(model.get_submodule(path), of_layer, chosen))
    _check_rows(model, base)
    return chosen


def _updates(tuned: Any, source: str) -> dict[str, LowRank]:
    """What an adapter adds to layers, by their path in the base."""
    from peft.tuners.lora import Linear, LoraModel

    if not isinstance(tuned.base_model, LoraModel):
        raise _unfit(source, f"is of the kind {kind_of(tuned.active_peft_config)}")
    updates = {}
    for path, module in tuned.base_model.model.named_modules():
        if not type(module).__module__.startswith("peft."):
            continue
        layer: Any = module
        has_more = type(layer) is not Linear or layer.lora_variant
        if has_more or any((*layer.use_dora.values(), *layer.lora_bias.values())):
            raise _unfit(source, f"changes {path} in another way than by a low-rank product")
        ((name, down),) = layer.lora_A.items()
        weights = down.weight.detach(), layer.lora_B[name].weight.detach()
        updates[path] = LowRank(*weights, layer.scaling[name])
    return updates


def _unfit(source: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The adapter {source} {reason}, and calls can choose plain LoRAs of linear layers only. Give it as adapter=, "
        "which merges it when the model is loaded."
    )


@torch.inference_mode()
def _check_rows(model: Any, base: str) -> None:
    """Refuse layers that see other rows than the forward has: the tokens of all texts as one, or texts regrouped.

    Those that text does not reach are refused too: they see the images of all texts as one, or the tokens of an expert.
    """
    regrouped = {id(module) for layer in stateful_layers(model) for module in layer.modules()}
    adapted = [(path, module) for path, module in model.named_modules() if isinstance(module, AdaptedLinear)]
    shapes: dict[str, list[torch.Size]] = {path: [] for path, _ in adapted}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, path=path: shapes[path].append(inputs[0].shape))
        for path, module in adapted
    ]
    try:
        # Two texts of three tokens.
        model(input_ids=torch.zeros(2, 3, dtype=torch.int64, device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()

    def is_fit(path: str, module: torch.nn.Module) -> bool:
        sees_texts = bool(shapes[path]) and all(len(shape) == 3 and shape[0] == 2 for shape in shapes[path])
        return sees_texts and id(module) not in regrouped

    if path := next((path for path, module in adapted if not is_fit(path, module)), None):
        msg = (
            f"Adapters of {base} change {path}, which does not see the texts of a batch one by one, so that no call "
            "can choose its own there. Give one of them as adapter=, which merges it when the model is loaded."
        )
        raise UnsupportedModelError(msg)
