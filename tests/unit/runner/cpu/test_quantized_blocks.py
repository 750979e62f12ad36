"""Plain numbers in GGML blocks: what llama.cpp makes of them, or closer to them, and what the blocks stand for."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.decoder_weights import Floats, Format, Matrix
from langchain_specdec.runner.cpu.matrix_layers import widened
from langchain_specdec.runner.cpu.quantized_blocks import can_quantize, quantized_matrix

WANTED = (Format.Q8_0, Format.IQ4_NL)


def matrix(numbers: Floats, format_: Format = Format.F32) -> Matrix:
    """Numbers as a file holds them."""
    if format_ is Format.BF16:
        rows = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        rows = numbers.astype({Format.F32: np.float32, Format.F16: np.float16}[format_]).view(np.uint8)
    return Matrix(rows, format_, numbers.shape[1])


def quantized(numbers: Floats, wanted: Format) -> Matrix:
    made = quantized_matrix(matrix(numbers), wanted)
    assert made is not None
    return made


def dequantized(made: Matrix) -> Floats:
    """What a module computes with."""
    return widened(torch.from_numpy(made.data), made.format).numpy()


def by_gguf(numbers: Floats, kind: GGMLQuantizationType) -> Floats:
    """What is left of numbers that the reference quantises."""
    return gguf.dequantize(gguf.quantize(numbers, kind), kind)


def error(numbers: Floats, found: Floats) -> float:
    return float(np.sqrt(((found - numbers) ** 2).mean() / (numbers**2).mean()))


def samples(kind: str, rows: int = 128, inputs: int = 512) -> Floats:
    random = np.random.default_rng(0)
    drawn = {
        "normal": lambda: random.standard_normal((rows, inputs)),
        "heavy tails": lambda: random.standard_t(4, (rows, inputs)),
        "few great ones": lambda: random.standard_normal((rows, inputs)) * np.where(random.random(inputs) < 0.01, 8, 1),
        "columns of all sizes": lambda: random.standard_normal((rows, inputs)) * np.exp(random.standard_normal(inputs)),
    }[kind]()
    return (0.02 * drawn).astype(np.float32)


KINDS = ("normal", "heavy tails", "few great ones", "columns of all sizes")


@pytest.mark.parametrize("kind", KINDS)
def test_8_bits_are_those_of_llama_cpp(kind: str) -> None:
    numbers = samples(kind)
    numbers[3, :40] = 0  # A block of zeros, and one that begins with some
    numbers[4, 1] = numbers[4, 5] = 127 * 2.0**-8
    numbers[4, 2:5] = 2.0**-9, -(2.0**-9), 3 * 2.0**-9  # Halves between two levels
    assert np.array_equal(quantized(numbers, Format.Q8_0).data, gguf.quantize(numbers, GGMLQuantizationType.Q8_0))


@pytest.mark.parametrize("kind", KINDS)
def test_4_bits_are_nearer_than_those_of_as_many_bytes(kind: str) -> None:
    """IQ4_NL against Q4_0 of llama.cpp's reference; both take 18 bytes for 32 numbers."""
    numbers = samples(kind)
    made = quantized(numbers, Format.IQ4_NL)
    assert made.data.shape == gguf.quantize(numbers, GGMLQuantizationType.Q4_0).shape
    assert error(numbers, dequantized(made)) < 0.88 * error(numbers, by_gguf(numbers, GGMLQuantizationType.Q4_0))


def test_4_bits_are_nearer_than_those_of_more_bytes_for_weights_as_they_are() -> None:
    numbers = samples("normal")
    assert error(numbers, dequantized(quantized(numbers, Format.IQ4_NL))) < 0.075
    assert error(numbers, by_gguf(numbers, GGMLQuantizationType.Q4_1)) > 0.075


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_stand_for_what_gguf_says(wanted: Format, kind: str) -> None:
    """For a module, and for the native decoder."""
    made = quantized(samples(kind, 37), wanted)
    assert (made.format, made.inputs, made.outputs) == (wanted, 512, 37)
    expected = gguf.dequantize(made.data, GGMLQuantizationType(wanted))
    assert np.array_equal(dequantized(made), expected)
    if (library := native_library()) is not None:
        assert np.array_equal([library.widen(made, row) for row in range(37)], expected)


@pytest.mark.parametrize("wanted", WANTED)
def test_every_level_has_its_place(wanted: Format) -> None:
    """Numbers that blocks can hold come back as they were."""
    levels = np.arange(-127, 128) if wanted is Format.Q8_0 else np.array(
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    )  # fmt: skip
    numbers: Floats = np.random.default_rng(1).choice(levels, (64, 96)).astype(np.float32) / np.float32(256)
    numbers[:, ::32] = -127 / 256
    assert np.array_equal(dequantized(quantized(numbers, wanted)), numbers)
    assert np.array_equal(dequantized(quantized(-numbers, Format.Q8_0)), -numbers)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("source", [Format.F16, Format.BF16])
def test_the_same_of_any_plain_format(wanted: Format, source: Format) -> None:
    plain = matrix(samples("normal"), source)
    made = quantized_matrix(plain, wanted)
    assert made is not None
    assert np.array_equal(made.data, quantized(dequantized(plain), wanted).data)


@pytest.mark.parametrize("wanted", WANTED)
def test_a_row_is_quantised_by_itself(wanted: Format) -> None:
    """So a matrix may be cut by rows before or after; and many rows are as few."""
    numbers = samples("heavy tails", 700, 256)
    made = quantized(numbers, wanted)
    assert np.array_equal(made.rows(300, 301).data, quantized(numbers[300:301], wanted).data)
    part = quantized_matrix(matrix(numbers).rows(1, 650), wanted)
    assert part is not None
    assert np.array_equal(part.data, made.data[1:650])


@given(st.data())
def test_no_number_goes_astray(data: st.DataObject) -> None:
    wanted = data.draw(st.sampled_from(WANTED))
    scale = 10.0 ** data.draw(st.integers(-2, 6))
    drawn = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=32, max_size=32))
    numbers = (np.array([drawn], np.float32) * scale).astype(np.float32)
    made = quantized_matrix(matrix(numbers), wanted)
    if made is None:
        assert 0 < np.abs(numbers).max() < 2**-10
        return
    share = 0.6 / 127 if wanted is Format.Q8_0 else 0.15
    assert np.abs(dequantized(made) - numbers).max() <= share * np.abs(numbers).max()


@pytest.mark.parametrize("wanted", WANTED)
def test_zeros_stay_zeros(wanted: Format) -> None:
    assert not dequantized(quantized(np.zeros((2, 64), np.float32), wanted)).any()


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 1e-36, 1e-12])
def test_a_block_of_next_to_nothing_is_nothing(wanted: Format, size: float) -> None:
    numbers = samples("normal")
    numbers[5, 64:96] *= np.float32(size)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = dequantized(quantized(numbers, wanted))
    assert not found[5, 64:96].any()
    assert found[5, :64].all() or wanted is Format.Q8_0


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, 1e7])
def test_numbers_beyond_the_scales_are_left(wanted: Format, bad: float) -> None:
    numbers = samples("normal")
    numbers[-1, 77] = bad
    assert quantized_matrix(matrix(numbers), wanted) is None


@pytest.mark.parametrize("wanted", WANTED)
def test_numbers_below_the_scales_are_left(wanted: Format) -> None:
    assert quantized_matrix(matrix(samples("normal") * np.float32(1e-4)), wanted) is None


def test_what_can_be_quantised() -> None:
    numbers = samples("normal")
    assert can_quantize(matrix(numbers))
    assert not can_quantize(matrix(numbers[:, :48].copy())), "half a block"
    assert not can_quantize(quantized(numbers, Format.Q8_0)), "quantised already"
