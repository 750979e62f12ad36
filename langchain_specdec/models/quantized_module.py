"""`quantization=` on a CPU: a module's matrices in blocks, which the native decoder runs and PyTorch widens again."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from langchain_specdec.models.matrix_replacement import replace_experts, replace_matrices
from langchain_specdec.models.quantization import QUANTIZATIONS, Quantizer
from langchain_specdec.runner.cpu.mapped_weights import MappedWeights
from langchain_specdec.runner.cpu.matrix_experts import MatrixExperts, expert_products
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, matrix_of, widened

_logger = logging.getLogger(__name__)
# Rows that are widened at a time.
_ROWS_AT_ONCE = 4096


def quantize_module(model: Any, quantization: str, name: str) -> None:
    """Replace a module's linear layers, experts, embedding and head by layers over blocks; the rest becomes float32.

    Each weight leaves memory as soon as it is quantised.

    Args:
        model: A causal language model on a CPU, in any type of numbers, that nobody else uses.
        quantization: `"int8"` or `"int4"`.
        name: Its name, for messages.

    Raises:
        UnsupportedModelError: Nothing of it can be quantised.
    """
    quantizer = Quantizer(name, quantization)
    drop = MappedWeights().drop
    replace_matrices(model, lambda weight, is_table: quantizer(matrix_of(weight), is_table), drop)
    replace_experts(model, lambda weights: quantizer.together([matrix_of(weight) for weight in weights]), drop)
    # Tied layers have one parameter, and that of a table in blocks has no numbers.
    layers = (module for module in model.modules() if not isinstance(module, MatrixEmbedding))
    owned = {id(own): (name, own) for layer in layers for name, own in layer.named_parameters(recurse=False)}
    for name, parameter in owned.values():
        if parameter.ndim > 1 and name != "bias":  # Experts have biases `[experts, outputs]`
            quantizer.leave(parameter.numel())
        parameter.data = parameter.data.float()
    quantizer.report()


def widen_module(model: nn.Module, quantization: str, name: str) -> None:
    """Give PyTorch the linear layers of a quantised module in float32: the numbers of the blocks. Experts keep blocks.

    Args:
        model: What `quantize_module` has made.
        quantization: See `quantize_module`.
        name: See `quantize_module`.
    """
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, MatrixLinear):
                setattr(parent, child_name, _widened(child).eval())
    if any(isinstance(module, MatrixExperts) for module in model.modules()):
        expert_products()  # Compiled now, and not within a forward
        return
    _logger.warning(
        "%s is run by PyTorch here: %s makes it neither smaller nor faster, but changes its numbers, to those of the "
        "model quantised to %s. Leave its quantization out for its own.",
        name, quantization, QUANTIZATIONS[quantization],
    )  # fmt: skip


def _widened(layer: MatrixLinear) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    weight = torch.empty(layer.out_features, layer.in_features)
    for numbers, rows in zip(weight.split(_ROWS_AT_ONCE), layer.rows.split(_ROWS_AT_ONCE), strict=True):
        numbers.copy_(widened(rows, layer.format))
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", layer.bias)
    return linear
