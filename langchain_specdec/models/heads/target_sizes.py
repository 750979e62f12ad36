"""What a head has to fit of its target: sizes, and its tables of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langchain_specdec.models.gguf.to_transformers import dequantised
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.runner.cpu.decoder_weights import Matrix
from langchain_specdec.runner.cpu.matrix_layers import widened

# Kinds of layers that keep a state, which goes from token to token.
_WITH_STATES = {"linear_attention", "conv", "mamba", "hybrid"}
# Rows of an output layer that are widened at a time.
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class TargetSizes:
    """What a head has to fit.

    Attributes:
        name: What the user calls the target.
        hidden_size: Numbers of one of its states.
        num_layers: Its layers.
        vocab_size: Its tokens.
        has_states: Whether some of its layers keep a recurrent state.
    """

    name: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    has_states: bool = False

    @classmethod
    def of(cls, name: str, config: Any) -> TargetSizes:
        """Those of a model's configuration."""
        text = config.get_text_config()
        kinds = {kind for key in ("layer_types", "layers_block_type") for kind in getattr(text, key, None) or ()}
        has_states = not kinds.isdisjoint(_WITH_STATES)
        return cls(name, int(text.hidden_size), int(text.num_hidden_layers), int(text.vocab_size), has_states)


def embedding_of(target: LoadedModel) -> Callable[[Tensor], Tensor]:
    """A target's embeddings, `[...]` to `[..., hidden_size]`, wherever they are by the time of a call."""
    model: Any = target.model
    if isinstance(model, nn.Module):
        # Asked for anew: a native decoder puts another module in its place.
        module: Any = model
        return lambda tokens: module.get_input_embeddings()(tokens)
    matrix, scale = model.weights.embedding, model.weights.embedding_scale
    return lambda tokens: matrix_rows(matrix, tokens) * scale


def output_of(target: LoadedModel) -> Callable[[Tensor], Tensor]:
    """A target's output layer, `[..., hidden_size]` to `[..., vocab_size]`."""
    model: Any = target.model
    if isinstance(model, nn.Module):
        module: Any = model
        return lambda states: module.get_output_embeddings()(states.to(module.dtype)).to(states.dtype)
    matrix = model.weights.head

    def output(states: Tensor) -> Tensor:
        rows = torch.arange(matrix.outputs).split(_ROWS_AT_ONCE)
        return torch.cat([F.linear(states, matrix_rows(matrix, part)) for part in rows], dim=-1)

    return output


def matrix_rows(matrix: Matrix, index: Tensor) -> Tensor:
    """Rows of a matrix as numbers, int64 `[...]` to float32 `[..., inputs]`."""
    data = matrix.data[index.numpy()]
    try:
        return widened(torch.from_numpy(data), matrix.format)
    except NotImplementedError:
        flat = Matrix(data.reshape(-1, data.shape[-1]), matrix.format, matrix.inputs)
        return torch.from_numpy(dequantised(flat)).reshape(*index.shape, matrix.inputs)
