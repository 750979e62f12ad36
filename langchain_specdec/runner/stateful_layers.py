"""Finds the layers of a model that keep recurrent or convolution states, and has them keep these in the engine's slots."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn

from langchain_specdec.runner.model_config import decoder_layers

# What a layer's own forward is kept as, where something had replaced that of its class already.
_OWN_FORWARD = "_forward_without_slots"


def stateful_layers(model: Any) -> list[nn.Module]:
    """The parts of a model's decoder layers that mix tokens by a state: those with a convolution over the text."""
    return [
        module
        for layer in decoder_layers(model)
        for module in layer.modules()
        if hasattr(module, "layer_idx") and any(isinstance(child, nn.Conv1d) for child in module.children())
    ]


def keep_states_in_slots(module: Any) -> None:
    """Have a layer keep its states in `SlotCache.states` where it runs on one; else it goes on as before."""
    forward = vars(module).get("forward")
    if getattr(forward, "__func__", None) is _forward:
        return
    if forward is not None:
        setattr(module, _OWN_FORWARD, forward)
    # A copy of the model gets a method of its own, as it would not with a closure.
    module.forward = MethodType(_forward, module)


def _forward(self: Any, hidden_states: Tensor, cache: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
    own = getattr(self, _OWN_FORWARD, None) or MethodType(type(self).forward, self)
    states = getattr(cache, "states", None)
    if states is None:
        return own(hidden_states, cache=cache, attention_mask=attention_mask, **kwargs)
    return states.run(self.layer_idx, lambda x, rows: own(x, cache=rows, **kwargs), hidden_states)
