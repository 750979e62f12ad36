"""Layers over a native decoder's matrices: they compute what a layer with the same numbers does."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import nn

from langchain_specdec.runner.cpu.decoder_weights import Format, Matrix
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, narrowed, widened
from tests.support.reference_decoder import numbers


def matrix_of(values: np.ndarray, number_format: Format) -> Matrix:
    data = gguf.quantize(values, gguf.GGMLQuantizationType(int(number_format)))
    return Matrix(np.ascontiguousarray(data).view(np.uint8), number_format, values.shape[1])


def random_values(rows: int = 7, inputs: int = 64) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, inputs)).astype(np.float32)


WIDENED = [Format.F32, Format.F16, Format.BF16, Format.Q8_0, Format.Q4_0, Format.Q4_1]


@pytest.mark.parametrize("number_format", WIDENED)
def test_rows_are_widened_to_the_numbers_that_they_stand_for(number_format: Format) -> None:
    matrix = matrix_of(random_values(), number_format)
    torch.testing.assert_close(widened(torch.from_numpy(matrix.data), number_format), numbers(matrix), atol=0, rtol=0)


def test_other_formats_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="Q6_K"):
        widened(torch.zeros(1, 210, dtype=torch.uint8), Format.Q6_K)


@pytest.mark.parametrize("number_format", WIDENED)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer(number_format: Format, has_bias: bool) -> None:
    matrix = matrix_of(random_values(rows=5000, inputs=32), number_format)
    bias = nn.Parameter(torch.randn(5000)) if has_bias else None
    layer, inputs = MatrixLinear(matrix, bias), torch.randn(2, 3, 32)
    expected = inputs @ numbers(matrix).T + (0 if bias is None else bias)
    torch.testing.assert_close(layer(inputs), expected, atol=1e-4, rtol=0)
    assert layer.matrix.data.ctypes.data == matrix.data.ctypes.data
    assert layer.samples == numbers(matrix)[0, :16].tolist()


@pytest.mark.parametrize("number_format", WIDENED)
def test_an_embedding(number_format: Format) -> None:
    matrix = matrix_of(random_values(), number_format)
    embedding = nn.Embedding(7, 64)
    layer = MatrixEmbedding(embedding, matrix)
    index = torch.tensor([[0, 6], [3, 3]])
    torch.testing.assert_close(layer(index), numbers(matrix)[index], atol=0, rtol=0)
    assert layer.weight.shape == embedding.weight.shape
    assert layer.weight.untyped_storage().nbytes() == 4, "its own weight must hold no memory"


def test_a_weight_is_narrowed_only_to_a_type_that_holds_all_its_numbers() -> None:
    values = torch.from_numpy(random_values())
    assert narrowed(values).format is Format.F32
    assert narrowed(values).data.ctypes.data == values.data_ptr()
    assert narrowed(values.bfloat16().float()).format is Format.BF16
    assert narrowed(values.half().float()).format is Format.F16
    # Beyond float16's largest number, and below its smallest.
    assert narrowed(values.bfloat16().float() * 2.0**20).format is Format.BF16
    large = values.half().float()
    large[3, 5] = 1e6 + 1
    assert narrowed(large).format is Format.F32
    for narrow in (values.bfloat16().float(), values.half().float(), values):
        torch.testing.assert_close(numbers(narrowed(narrow)), narrow, atol=0, rtol=0)


def test_a_weight_that_is_not_one_piece_is_copied() -> None:
    values = torch.from_numpy(random_values()).T
    torch.testing.assert_close(numbers(narrowed(values)), values, atol=0, rtol=0)
