"""`quantization=` on a CPU for models that PyTorch runs.

They get the numbers that the native decoder's blocks stand for: the text does not depend on what runs a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from langchain_specdec.models.quantization import QUANTIZATIONS, Quantization, Tally
from langchain_specdec.runner.cpu.decoder_weights import Format, Matrix
from langchain_specdec.runner.cpu.quantized_blocks import dequantized

_logger = logging.getLogger(__name__)


def quantize_module(
    model: nn.Module, quantization: str, name: str, replaced: Callable[[Tensor], None] = lambda _: None
) -> None:
    """Give the linear layers of a module, its embedding and its head the numbers that blocks of them stand for.

    Args:
        model: A causal language model in float32, on a CPU, that nobody else uses.
        quantization: `"int8"` or `"int4"`.
        name: Its name, for messages.
        replaced: Told each tensor that the model does not read any more.

    Raises:
        UnsupportedModelError: Nothing of it can be quantised.
    """
    formats = QUANTIZATIONS[quantization]
    tally = Tally(name, quantization)
    done: set[int] = set()
    for module, wanted in _quantizable(model, formats):
        weight = module.weight
        if id(weight) in done:
            continue
        done.add(id(weight))
        old = weight.data
        is_turned = isinstance(module, Conv1D)  # [inputs, outputs]
        made = tally.quantized(_matrix(old.T if is_turned else old), wanted)
        if made.format is wanted:
            new = torch.from_numpy(dequantized(made))
            weight.data = new.T.contiguous() if is_turned else new
            replaced(old)
    tally.leave(sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in done))
    tally.report()
    _logger.warning(
        "%s is run by PyTorch here: %s makes it neither smaller nor faster, but changes its numbers, to those of the "
        "model quantised to %s. Leave its quantization out for its own.",
        name, quantization, formats,
    )  # fmt: skip


def _quantizable(model: Any, formats: Quantization) -> Iterator[tuple[Any, Format]]:
    """Modules with a weight to quantise, and how: tables first, as the head is a linear layer too."""
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        if table is not None:
            yield table, formats.tables
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D):
            yield module, formats.layers


def _matrix(weight: Tensor) -> Matrix:
    return Matrix(weight.contiguous().numpy().view(np.uint8), Format.F32, weight.shape[1])
