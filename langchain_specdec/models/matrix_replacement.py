"""Replaces the linear layers and the tables of a module by layers over matrices in fewer bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers.pytorch_utils import Conv1D

from langchain_specdec.runner.cpu.decoder_weights import Matrix
from langchain_specdec.runner.cpu.matrix_experts import MatrixExperts, expert_weights
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear
from langchain_specdec.runner.model_config import text_modules

_LINEAR = (nn.Linear, Conv1D)


def replace_matrices(
    model: Any, make: Callable[[Tensor, bool], Matrix | None], forget: Callable[[Tensor], None]
) -> None:
    """Have layers compute with other matrices. A weight that nobody else holds leaves memory before the next is read.

    Args:
        model: A causal language model on a CPU. Its own kinds of linear layers are left, and its encoders of
            images.
        make: Makes a matrix of a weight `[outputs, inputs]`; told whether it is a table of tokens (the embedding, or
            the head). Asked once of each, also where layers are tied. What it gives as None stays.
        forget: Told of each weight that was replaced.
    """
    tables = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    made: Any = WeakIdKeyDictionary()
    # Neither a list nor a loop's variable may hold the layers that go.
    parents = [module for module in text_modules(model) if not isinstance(module, (*_LINEAR, nn.Embedding))]
    for parent in parents:
        for name in [name for name, _ in parent.named_children()]:
            child = getattr(parent, name)
            is_table = id(child) in tables
            if not (type(child) in _LINEAR or (is_table and _is_plain_table(child))):
                continue
            weight = child.weight
            if weight not in made:
                # GPT-2 keeps [inputs, outputs].
                made[weight] = make(weight.detach().T if isinstance(child, Conv1D) else weight.detach(), is_table)
            if (matrix := made[weight]) is not None:
                is_embedding = isinstance(child, nn.Embedding)
                layer = MatrixEmbedding(child, matrix) if is_embedding else MatrixLinear(matrix, child.bias)
                setattr(parent, name, layer.eval())
                forget(weight.detach())
            del child, weight


def replace_experts(
    model: nn.Module, make: Callable[[Sequence[Tensor]], list[Matrix] | None], forget: Callable[[Tensor], None]
) -> None:
    """The same for the experts of a layer that are parameters of one module.

    Args:
        model: See `replace_matrices`.
        make: Makes matrices of the weights `[outputs of all experts, inputs]` of a module; None: they stay.
        forget: Told of each weight that was replaced.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not (weights := [weight.detach() for _, weight in expert_weights(child)]):
                continue
            if (matrices := make([weight.flatten(0, 1) for weight in weights])) is not None:
                setattr(parent, name, MatrixExperts(child, *matrices).eval())
                for weight in weights:
                    forget(weight)


def _is_plain_table(child: nn.Module) -> bool:
    return isinstance(child, nn.Embedding) and not isinstance(child, MatrixEmbedding) and child.max_norm is None
