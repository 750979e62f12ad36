"""The native decoder's library, tested before its first use: a tiny decoder, computed once more with numpy."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_specdec.runner.cpu.decoder_weights import (
    BLOCKS,
    PLAIN,
    DecoderWeights,
    Floats,
    Format,
    LayerWeights,
    Matrix,
    plain_numbers,
)
from langchain_specdec.runner.cpu.kernels import tested_kernel
from langchain_specdec.runner.cpu.native_decoder import NativeDecoder, NativeLibrary
from langchain_specdec.runner.cpu.native_step import NativeStep
from langchain_specdec.runner.cpu.rotary import Rotary
from langchain_specdec.runner.step_inputs import RowBatch

_HIDDEN, _MLP, _VOCAB, _HEADS, _KV_HEADS, _HEAD_DIM, _POSITIONS = 48, 80, 67, 6, 2, 8, 12
# Largest difference of a logit that rounding in another order may make.
_TOLERANCE = 1e-4


@functools.cache
def native_library() -> NativeLibrary | None:
    """The library; None where it cannot be had here, or fails its test. Compiled on the machine's first call."""
    return tested_kernel("decoder", "decoding", NativeLibrary, is_right)


def is_right(library: NativeLibrary) -> bool:
    """Whether products are those of the widened numbers in each format, and a prompt and a tree of a decoder right."""
    return all(_is_product_right(library, format_) for format_ in Format) and _is_decoder_right(library)


class _Random:
    """Random numbers without NumPy's module for them, of which nothing else here has a use: it takes 2 MB."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def data(self, *shape: int) -> NDArray[np.uint8]:
        """Bytes."""
        return np.frombuffer(bytearray(self._random.randbytes(math.prod(shape))), np.uint8).reshape(shape)

    def numbers(self, *shape: int) -> NDArray[np.float64]:
        """Numbers of variance 1, evenly spread."""
        return self.data(*shape, 4).view(np.int32)[..., 0].astype(np.float64) * (math.sqrt(3) / 2**31)


def _is_product_right(library: NativeLibrary, format_: Format) -> bool:
    numbers, size = BLOCKS[format_]
    inputs = 2 * max(numbers, 20)
    rng = _Random(int(format_))
    if format_ in PLAIN:
        data = _bits(rng.numbers(5, inputs), format_)
    else:
        # Whatever the bits are they stand for numbers, unless a scale in half precision is infinite or none.
        data = rng.data(5, inputs // numbers * size)
        data &= np.where(np.arange(data.shape[1]) % 2 == 1, 0xBF, 0xFF).astype(np.uint8)
    matrix = Matrix(data, format_, inputs)
    widened = np.stack([library.widen(matrix, row) for row in range(5)])
    x = rng.numbers(3, inputs).astype(np.float32)
    expected = x.astype(np.float64) @ widened.T.astype(np.float64)
    scale = float((np.abs(x).astype(np.float64) @ np.abs(widened.T).astype(np.float64)).max())
    found = library.product(matrix, x)
    if format_ is Format.F32 and not np.array_equal(widened, data.view(np.float32)):
        return False
    return bool(np.isfinite(widened).all() and np.allclose(found, expected, rtol=0, atol=1e-5 * scale))


def _bits(numbers: NDArray[np.float64], format_: Format) -> NDArray[np.uint8]:
    """Rows of plain numbers as bytes."""
    if format_ is Format.F16:
        return numbers.astype(np.float16).view(np.uint8)
    wide = numbers.astype(np.float32)
    if format_ is Format.F32:
        return wide.view(np.uint8)
    return (wide.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def _is_decoder_right(library: NativeLibrary) -> bool:
    weights = _weights()
    decoder = NativeDecoder(library, weights, 2, _POSITIONS, 2)
    try:
        # A prompt, then a draft that branches after its first token.
        prompt, nodes, parents = [3, 11, 66, 0, 7], [5, 9, 4, 12], [-1, 0, 0, 2]
        _run(decoder, prompt, 0, None)
        found = _run(decoder, nodes, len(prompt), parents)
    finally:
        decoder.close()
    expected = _logits(weights, prompt, nodes, parents)
    return bool(np.allclose(found[0], expected, rtol=0, atol=_TOLERANCE)) and found[1] == found[0].argmax(-1).tolist()


def _run(decoder: NativeDecoder, tokens: list[int], start: int, parents: list[int] | None) -> tuple[Floats, list[int]]:
    """Logits and picks of one row in slot 1."""
    step = NativeStep(_VOCAB, _HIDDEN)
    batch = RowBatch([1], [start], [tokens], None if parents is None else [parents])
    decoder.run(step.fill(batch, has_logits=True, picks=True))
    return step.logits(1, len(tokens))[0].copy(), step.picks(1, len(tokens))[0].tolist()


def _weights() -> DecoderWeights:
    rng = _Random(20)

    def matrix(outputs: int, inputs: int, format_: Format) -> Matrix:
        return Matrix(_bits(rng.numbers(outputs, inputs) / math.sqrt(inputs), format_), format_, inputs)

    def norm(size: int) -> Floats:
        return (1.0 + 0.1 * rng.numbers(size)).astype(np.float32)

    def layer(format_: Format, window: int | None) -> LayerWeights:
        wide, narrow = _HEADS * _HEAD_DIM, _KV_HEADS * _HEAD_DIM
        return LayerWeights(
            query=matrix(wide, _HIDDEN, format_),
            key=matrix(narrow, _HIDDEN, format_),
            value=matrix(narrow, _HIDDEN, format_),
            output=matrix(_HIDDEN, wide, format_),
            gate=matrix(_MLP, _HIDDEN, format_),
            up=matrix(_MLP, _HIDDEN, format_),
            down=matrix(_HIDDEN, _MLP, format_),
            attention_norm=norm(_HIDDEN),
            mlp_norm=norm(_HIDDEN),
            window=window,
        )

    rotary = Rotary((0.5 ** np.arange(_HEAD_DIM // 2)).astype(np.float32))
    layers = [layer(Format.F32, None), layer(Format.BF16, 4)]
    embedding = matrix(_VOCAB, _HIDDEN, Format.F16)
    return DecoderWeights(layers, embedding, embedding, norm(_HIDDEN), _HEADS, _KV_HEADS, _HEAD_DIM, 1e-5, (rotary,))


def _logits(weights: DecoderWeights, prompt: list[int], nodes: list[int], parents: list[int]) -> NDArray[Any]:
    """Logits after the nodes of a tree that follows a prompt, `[nodes, vocab]`, in float64."""
    tokens, count = [*prompt, *nodes], len(prompt)
    sees = np.tril(np.ones((len(tokens), len(tokens)), dtype=bool))
    positions = np.arange(len(tokens))
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[count + node] = sees[count + parent]
            sees[count + node, count + node] = True
            positions[count + node] = positions[count + parent] + 1
    hidden = _numbers(weights.embedding)[tokens]
    for layer in weights.layers:
        seen = sees if layer.window is None else sees & (positions > positions[:, None] - layer.window)
        x = _normed(hidden, layer.attention_norm, weights.norm_eps)
        hidden = hidden + _attention(weights, layer, x, seen, positions) @ _numbers(layer.output).T
        x = _normed(hidden, layer.mlp_norm, weights.norm_eps)
        gate = x @ _numbers(layer.gate).T
        hidden = hidden + (gate / (1.0 + np.exp(-gate)) * (x @ _numbers(layer.up).T)) @ _numbers(layer.down).T
    logits: NDArray[Any] = _normed(hidden, weights.final_norm, weights.norm_eps) @ _numbers(weights.head).T
    return logits[count:]


def _attention(
    weights: DecoderWeights, layer: LayerWeights, x: NDArray[Any], seen: NDArray[Any], positions: NDArray[Any]
) -> NDArray[Any]:
    def heads(matrix: Matrix, count: int) -> NDArray[Any]:
        states: NDArray[Any] = (x @ _numbers(matrix).T).reshape(len(x), count, weights.head_dim).swapaxes(0, 1)
        return states

    angles = np.outer(positions, weights.rotary[0].frequencies.astype(np.float64))
    cosines, sines = np.cos(angles), np.sin(angles)

    def turned(states: NDArray[Any]) -> NDArray[Any]:
        first, second = np.split(states, 2, axis=-1)
        return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], -1)

    groups = weights.heads // weights.kv_heads
    query = turned(heads(layer.query, weights.heads))
    key = turned(heads(layer.key, weights.kv_heads)).repeat(groups, 0)
    value = heads(layer.value, weights.kv_heads).repeat(groups, 0)
    scores = np.where(seen, query @ key.swapaxes(1, 2) / math.sqrt(weights.head_dim), -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    attended: NDArray[Any] = (scores / scores.sum(-1, keepdims=True) @ value).swapaxes(0, 1).reshape(len(x), -1)
    return attended


def _numbers(matrix: Matrix) -> NDArray[np.float64]:
    return plain_numbers(matrix.data, matrix.format).astype(np.float64)


def _normed(x: NDArray[Any], weight: Floats, eps: float) -> NDArray[Any]:
    normed: NDArray[Any] = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    return normed
