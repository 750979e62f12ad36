"""`quantization=` on a CPU: a module's matrices in blocks, which the native decoder runs and PyTorch widens again."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from langchain_specdec.models.quantization import QUANTIZATIONS, Quantizer
from langchain_specdec.runner.cpu.decoder_weights import Matrix
from langchain_specdec.runner.cpu.mapped_weights import MappedWeights
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, matrix_of, widened
from langchain_specdec.runner.cpu.weight_numbers import without_numbers

_logger = logging.getLogger(__name__)
# Rows that are widened at a time.
_ROWS_AT_ONCE = 4096


def quantize_module(model: Any, quantization: str, name: str) -> None:
    """Replace a module's linear layers, its embedding and its head by layers over blocks; the rest becomes float32.

    Each weight leaves memory as soon as it is quantised.

    Args:
        model: A causal language model on a CPU, in any type of numbers, that nobody else uses.
        quantization: `"int8"` or `"int4"`.
        name: Its name, for messages.

    Raises:
        UnsupportedModelError: Nothing of it can be quantised.
    """
    quantizer = Quantizer(name, quantization)
    mapped = MappedWeights()
    tables = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    # Tied layers have one. The weights are kept: an id is another object's once its object is gone.
    known: dict[int, tuple[nn.Parameter, Matrix | None]] = {}
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            is_table = id(child) in tables
            if type(child) not in (nn.Linear, Conv1D) and not (is_table and _is_table(child)):
                continue
            weight = child.weight
            if id(weight) not in known:
                # GPT-2 keeps [inputs, outputs].
                plain = matrix_of(weight.data.T if isinstance(child, Conv1D) else weight.data)
                known[id(weight)] = weight, quantizer(plain, is_table)
            made = known[id(weight)][1]
            if made is None:
                continue
            if isinstance(child, nn.Embedding):
                child.weight = nn.Parameter(without_numbers(child, torch.float32), requires_grad=False)
                setattr(parent, child_name, MatrixEmbedding(child, made).eval())
            else:
                setattr(parent, child_name, MatrixLinear(made, child.bias).eval())
            mapped.drop(weight.data)
            weight.data = weight.data.new_empty(0)
    for module in model.modules():
        if not isinstance(module, MatrixEmbedding):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim > 1 and id(parameter) not in known:
                    quantizer.leave(parameter.numel())
                parameter.data = parameter.data.float()
    quantizer.report()


def widen_module(model: nn.Module, quantization: str, name: str) -> None:
    """Give PyTorch the linear layers of a quantised module in float32: the numbers of the blocks.

    Args:
        model: What `quantize_module` has made.
        quantization: See `quantize_module`.
        name: See `quantize_module`.
    """
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, MatrixLinear):
                setattr(parent, child_name, _widened(child).eval())
    _logger.warning(
        "%s is run by PyTorch here: %s makes it neither smaller nor faster, but changes its numbers, to those of the "
        "model quantised to %s. Leave its quantization out for its own.",
        name, quantization, QUANTIZATIONS[quantization],
    )  # fmt: skip


def _is_table(child: nn.Module) -> bool:
    return isinstance(child, nn.Embedding) and child.max_norm is None


def _widened(layer: MatrixLinear) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    weight = torch.empty(layer.out_features, layer.in_features)
    for numbers, rows in zip(weight.split(_ROWS_AT_ONCE), layer.rows.split(_ROWS_AT_ONCE), strict=True):
        numbers.copy_(widened(rows, layer.format))
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", layer.bias)
    return linear
