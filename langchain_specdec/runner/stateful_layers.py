"""Finds the layers of a model that keep recurrent or convolution states, and has them keep these in the engine's slots."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from langchain_specdec.runner.layer_states import SNAPSHOTS, RowStates
from langchain_specdec.runner.model_config import decoder_layers

# What a layer's own forward is kept as, where something had replaced that of its class already.
_OWN_FORWARD = "_forward_without_slots"
# Layers that go on from a state by one token at a time: their form for several tokens begins without one.
_STEPWISE = {"JambaMambaMixer"}
# Layers whose form for several tokens, as PyTorch runs it on a CPU, pads them to so many unless told of fewer: nine times
# the work of a draft of four tokens.
_PADDED = "GatedDeltaNet"
_PADDED_WIDTH = 64


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


@torch.inference_mode()
def states_bytes(model: Any) -> int:
    """Most bytes that the states of a model's layers take in one slot."""
    total = 0
    embeddings = model.get_input_embeddings().weight
    token = torch.zeros(1, 1, model.config.get_text_config().hidden_size, dtype=model.dtype, device=embeddings.device)
    for layer in stateful_layers(model):
        rows = RowStates()
        layer(hidden_states=token, cache=rows)
        total += sum(int(t.nbytes) for t in (rows.conv, rows.recurrent) if t is not None)
    return SNAPSHOTS * total


def _forward(self: Any, hidden_states: Tensor, cache: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
    own = getattr(self, _OWN_FORWARD, None) or MethodType(type(self).forward, self)
    states = getattr(cache, "states", None)
    if states is None:
        return own(hidden_states, cache=cache, attention_mask=attention_mask, **kwargs)

    def mixer(hidden: Tensor, rows: RowStates) -> Any:
        is_stepwise = rows.conv is not None and type(self).__name__ in _STEPWISE
        parts = hidden.split(1, 1) if is_stepwise else (hidden,)
        options = kwargs
        if hidden.device.type == "cpu" and type(self).__name__.endswith(_PADDED):
            options = kwargs | {"chunk_size": min(hidden.shape[1], _PADDED_WIDTH)}
        outputs = [own(part, cache=rows, **options) for part in parts]
        return torch.cat(outputs, 1) if is_stepwise else outputs[0]

    return states.run(self.layer_idx, mixer, hidden_states)
