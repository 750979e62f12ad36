"""Plain numbers to rows of GGML blocks: 32 numbers share a scale, which is a float16.

Q8_0 is what llama.cpp makes of the same numbers, to the bit. IQ4_NL has a rounding of its own: of all 4-bit formats of
GGML's without tables of importance, its levels lie best for weights, which are dense near zero. Relative errors (root
mean square) of a normal distribution and of Student's t with 4 degrees of freedom: Q4_0 by llama.cpp's reference 8.6%
and 11.6%, with the best scales 8.1% and 11.1%, Q4_1 7.8% and 9.4% at a tenth more bytes, IQ4_NL here 7.4% and 9.1%.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from langchain_specdec.runner.cpu.decoder_weights import BLOCKS, PLAIN, Floats, Format, Matrix, plain_numbers

Bytes = NDArray[np.uint8]

BLOCK = 32
_HEAD = 2  # Bytes of a scale
# Numbers that are looked at together, so that what is made of them on the way stays in a core's cache.
_CHUNK = 1 << 16
# What the greatest number of a matrix may be: float16 holds scales from there on with bits enough, and up to there.
LEAST, MOST = 2.0**-10, 2.0**22

IQ4_NL_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# All places where the nearest level changes are multiples of a half, so a table of twice a number has it exactly.
_HALVES = 256
_NEAREST = np.abs((np.arange(2 * _HALVES) + 0.5 - _HALVES)[:, None] / 2 - IQ4_NL_LEVELS).argmin(1).astype(np.uint8)
# Levels themselves by whole numbers, from -128 on: almost always the nearest, and much faster to look up.
_NEARLY_NEAREST = IQ4_NL_LEVELS[_NEAREST[1::2]].astype(np.int8).tobytes()
# To which levels a block's greatest number is set for a start. Least squares do the rest.
_STARTS = (-127.0, -113.0, -140.0, 113.0, 125.0)


def can_quantize(matrix: Matrix) -> bool:
    """Whether a matrix holds plain numbers whose rows are whole blocks."""
    return matrix.format in PLAIN and matrix.inputs % BLOCK == 0


def quantized_matrix(matrix: Matrix, wanted: Format) -> Matrix | None:
    """A matrix in blocks; None where they would not hold its numbers.

    That is where one is infinite, not a number or beyond what scales reach, or all are so small that the scales, which
    are float16, lose their bits.

    Args:
        matrix: For which `can_quantize` is true.
        wanted: Q8_0 or IQ4_NL.
    """
    quantize = {Format.Q8_0: _to_q8_0, Format.IQ4_NL: _to_iq4_nl}[wanted]
    data = np.empty((matrix.outputs, matrix.inputs // BLOCK * BLOCKS[wanted][1]), np.uint8)
    greatest = 0.0
    for rows in _chunks(matrix):
        blocks = plain_numbers(matrix.data[rows], matrix.format).reshape(-1, BLOCK)
        found = float(max(blocks.max(), -blocks.min()))
        if not found <= MOST:  # Nor where it is not a number
            return None
        greatest = max(greatest, found)
        quantize(blocks, data[rows].reshape(len(blocks), -1))
    return Matrix(data, wanted, matrix.inputs) if greatest == 0 or greatest >= LEAST else None


def _chunks(matrix: Matrix) -> Iterator[slice]:
    step = max(_CHUNK // matrix.inputs, 1)
    return (slice(start, min(start + step, matrix.outputs)) for start in range(0, matrix.outputs, step))


def _to_q8_0(blocks: Floats, out: Bytes) -> None:
    """Write numbers `[n, 32]` as blocks."""
    magnitudes = np.abs(blocks)
    scales = magnitudes.max(1) / np.float32(127)
    levels = np.multiply(magnitudes, _inverse(scales)[:, None], out=magnitudes)
    # Halves away from zero.
    np.copysign(np.floor(levels + np.float32(0.5), out=levels), blocks, out=levels)
    _put(scales.astype(np.float16), levels.astype(np.int8).view(np.uint8), out)


def _to_iq4_nl(blocks: Floats, out: Bytes) -> None:
    """See `_to_q8_0`."""
    # Number by number of all blocks, so that what is per block stands beside all of them at once.
    numbers = np.ascontiguousarray(blocks.T)
    low, high = numbers.min(0), numbers.max(0)
    extremes = np.where(high >= -low, high, low)
    scales, best = np.zeros_like(extremes), np.zeros_like(extremes)
    work = np.empty_like(numbers)
    for start in _STARTS:
        np.multiply(numbers, _inverse(extremes / np.float32(start)), out=work)
        nearest = (
            np.clip(np.add(work, np.float32(128), out=work), 0, 255, out=work)
            .astype(np.uint8)
            .tobytes()
            .translate(_NEARLY_NEAREST)
        )
        levels = np.frombuffer(nearest, np.int8).reshape(numbers.shape).astype(np.float32)
        # The scale of the least squares for these levels, and what it takes off the squares' sum.
        products = np.multiply(levels, numbers, out=work).sum(0)
        found = products * _inverse(np.multiply(levels, levels, out=levels).sum(0))
        gain = products * found
        is_better = gain > best
        best[is_better] = gain[is_better]
        scales[is_better] = found[is_better]
    halves = scales.astype(np.float16)
    np.multiply(numbers, 2 * _inverse(halves.astype(np.float32)), out=work)
    np.clip(np.add(work, np.float32(_HALVES), out=work), 0, 2 * _HALVES - 1, out=work)
    indices = _NEAREST[work.astype(np.intp)]
    _put(halves, (indices[: BLOCK // 2] | indices[BLOCK // 2 :] << 4).T, out)


def _inverse(numbers: Floats) -> Floats:
    """0 for 0, and for what is so small that its inverse would be infinite."""
    has_one = np.abs(numbers) >= np.finfo(np.float32).tiny
    inverse: Floats = np.divide(np.float32(1), numbers, out=np.zeros_like(numbers), where=has_one)
    return inverse


def _put(scales: NDArray[np.float16], packed: Bytes, out: Bytes) -> None:
    out[:, :_HEAD] = scales[:, None].view(np.uint8)
    out[:, _HEAD:] = packed
