"""Finds the layers of a model that keep recurrent or convolution states, and has them keep these in slots."""

from __future__ import annotations

import copy
import copyreg
import functools
import types
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from langchain_specdec.runner.layer_states import SNAPSHOTS, TAIL, Row, RowStates, SlotStates
from langchain_specdec.runner.mamba2 import single_token_form

# Layers that go on from a state by one token at a time: their form for several tokens begins without one.
_STEPWISE = {"JambaMambaMixer"}
# The form for several tokens, as PyTorch runs it on a CPU, pads them to a whole chunk unless told of a smaller one:
# eight times the work for a draft of four. Layers of this name are told by an argument, others by an attribute.
_TOLD_BY_ARGUMENT = "GatedDeltaNet"
_CHUNK = 64
# Last tokens that are compared of a text: no convolution reaches from them to the first half of it.
_COMPARED = 4


def stateful_layers(model: Any) -> list[Any]:
    """The parts of a model that mix tokens by a state: they have a convolution over text, and a place in a cache."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "layer_idx") and any(isinstance(child, nn.Conv1d) for child in module.children())
    ]


def keep_states_in_slots(module: Any) -> None:
    """Have a layer keep its states in `SlotCache.states` where it runs on one; else it goes on as before."""
    if not isinstance(module, _InSlots):
        # A method of the module itself would keep it alive, and copies of it would run the original.
        kind: Any = type(module)
        module.__class__ = _in_slots(kind)


@torch.inference_mode()
def states_bytes(model: Any) -> int:
    """About the most bytes that a model's layers take in one slot for their states and what they have read lately."""
    total = 0
    embeddings = model.get_input_embeddings().weight
    token = torch.zeros(1, 1, model.config.get_text_config().hidden_size, dtype=model.dtype, device=embeddings.device)
    for layer in stateful_layers(model):
        rows = RowStates()
        layer(hidden_states=token, cache=rows)
        states = sum(int(t.nbytes) for t in (rows.conv, rows.recurrent) if t is not None)
        # A prompt's last tokens, which may be those of two parts of it, and the latest ones.
        total += SNAPSHOTS * states + 3 * TAIL * int(token.nbytes)
    return total


@torch.inference_mode()
def goes_on_from_states(model: Any) -> bool:
    """Whether a layer that keeps its states in slots computes the same for a text at once and in parts.

    A form for several tokens that begins without a state would change texts, by little where they are short.
    """
    layer = stateful_layers(model)[0]
    states = SlotStates()
    size = model.config.get_text_config().hidden_size
    text = torch.randn(1, 16, size, generator=torch.Generator().manual_seed(0))
    text = text.to(model.get_input_embeddings().weight.device, model.dtype)

    def read(slot: int, start: int, tokens: Tensor) -> Tensor:
        states.begin([Row(slot, start, tokens.shape[1])])
        output: Tensor = layer(hidden_states=tokens, cache=SimpleNamespace(states=states))
        return output[:, -_COMPARED:].float()

    whole = read(0, 0, text)
    read(1, 0, text[:, :4])
    read(1, 4, text[:, 4:10])
    parts = read(1, 8, text[:, 8:])
    # What does not remember, and has the inputs of the convolution all the same.
    forgetful = read(2, 0, text[:, 8:])
    noise = 8 * max(torch.finfo(dtype).eps for dtype in (model.dtype, torch.float32)) * whole.norm()
    return bool((parts - whole).norm() <= 0.1 * (forgetful - whole).norm() + noise)


class _InSlots(nn.Module):
    """Comes before the class of a layer that keeps its states in slots."""

    def __call__(self, hidden_states: Tensor, cache: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        run = super().__call__
        states = getattr(cache, "states", None)
        if states is None:
            return run(hidden_states, cache=cache, attention_mask=attention_mask, **kwargs)
        name = type(self).__name__

        def mixer(hidden: Tensor, rows: RowStates) -> Any:
            if name in _STEPWISE and rows.conv is not None:
                return torch.cat([run(token, cache=rows, **kwargs) for token in hidden.split(1, 1)], 1)
            width, is_cpu = hidden.shape[1], hidden.device.type == "cpu"
            if is_cpu and name.endswith(_TOLD_BY_ARGUMENT):
                return run(hidden, cache=rows, **kwargs, chunk_size=min(width, _CHUNK))
            if is_cpu and width < getattr(self, "chunk_size", 0):
                # Whoever else runs the model is not to see it.
                narrow: Any = copy.copy(self)
                narrow.chunk_size = width
                if (single := single_token_form(self)) is not None:
                    narrow.forward = types.MethodType(single, narrow)
                return narrow(hidden, cache=rows, **kwargs)
            return run(hidden, cache=rows, **kwargs)

        return states.run(self.layer_idx, mixer, hidden_states)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies are what the layer was, until they run on slots themselves."""
        state = super().__reduce_ex__(protocol)[2]
        return copyreg._reconstructor, (type(self).__mro__[2], object, None), state  # type: ignore[attr-defined]


@functools.cache
def _in_slots(kind: Any) -> Any:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (_InSlots, kind), names)
