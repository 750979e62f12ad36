"""Cases for `tests/native/check_decoder.cpp`, with what is right by gguf, by PyTorch and by the decoder in the open."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from langchain_specdec.runner.cpu.decoder_weights import Activation, DecoderWeights, Format, LayerWeights, Matrix
from langchain_specdec.runner.cpu.rotary import RotaryTables
from langchain_specdec.sampling.noise import gumbel_noise, seed_halves
from tests.support.random_decoders import Row, Shape, random_decoder
from tests.support.reference_decoder import Past, ReferenceDecoder, numbers

_WIDEN, _PRODUCT, _NOISE, _DECODER = range(4)
_RUN, _KEEP = range(2)
_PLAIN = {Format.F32: 4, Format.F16: 2, Format.BF16: 2}
# Where the halves of a block of 256 stand that its scales are multiples of.
_HALVES = {Format.Q4_K: (0, 2), Format.Q5_K: (0, 2), Format.Q6_K: (208,)}
# Whose first prompt is longer than what attention weighs together; emulated, such prompts take most of the time.
_LONG = ("plain", "windows")
# Where every token has another one of the same logit: the first of them counts.
_TIED = ("plain", "biases")
_SLOTS, _LENGTH, _CANDIDATES = 3, 384, 5
_SEEDS = seed_halves([7, 2**63 + 11, 2**32 - 1])

SHAPES = {
    "plain": Shape(windows=(None, None)),
    # A head that is no whole group of 16, neighbours that turn together, heads that are no power of two.
    "pairs": Shape(
        heads=6, kv_heads=2, head_dim=20, rotary_dim=12, has_rotary_pairs=True, activation=Activation.GELU,
        formats=(Format.Q8_0, Format.F16, Format.BF16), hidden=64, mlp=96,
    ),
    "biases": Shape(
        has_biases=True, has_head_norms=True, is_tied=True, formats=(Format.Q4_0, Format.Q5_1, Format.Q4_1), hidden=64,
        mlp=96, heads=9, kv_heads=1, head_dim=32, rotary_dim=32, residual_scale=0.5, logit_scale=0.25,
    ),
    "windows": Shape(
        windows=(24, None, 270), rotaries=(1, 0, None), attention_softcap=20.0, logit_softcap=15.0,
        has_output_norms=True, activation=Activation.GELU_TANH, embedding_scale=1.5, attention_scale=0.3,
        formats=(Format.F32, Format.Q5_0), hidden=32, mlp=64, head_dim=32, rotary_dim=32, heads=3, kv_heads=3,
    ),
    "head": Shape(
        windows=(None, None), embedding=41, hidden=64, mlp=96, is_residual_normed=True, has_head_norms=True,
        formats=(Format.F32, Format.BF16, Format.F16),
    ),
    "blocks of 256": Shape(hidden=256, mlp=256, heads=4, kv_heads=2, head_dim=64, rotary_dim=64),
}  # fmt: skip


def write_cases(path: Path) -> None:
    """Write all of them, some 4 MB."""
    with path.open("wb") as file:
        for number_format in Format:
            _write_widening(file, number_format)
            _write_product(file, number_format)
        _write_noise(file)
        for name, shape in SHAPES.items():
            weights = random_decoder(shape)
            if shape.hidden == 256:
                weights = _with_blocks_of_256(weights)
            if name in _TIED:
                weights = _with_ties(weights)
            _write_decoder(file, name, weights)


def _whole(file: BinaryIO, *numbers_: int) -> None:
    file.write(struct.pack(f"<{len(numbers_)}q", *numbers_))


def _array(file: BinaryIO, array: NDArray[Any] | None, dtype: Any = np.float32) -> None:
    content = b"" if array is None else np.ascontiguousarray(array, dtype).tobytes()
    _whole(file, len(content))
    file.write(content)


def _begin(file: BinaryIO, kind: int, name: str) -> None:
    _whole(file, kind)
    _array(file, np.frombuffer(name.encode(), np.uint8), np.uint8)


def _matrix(file: BinaryIO, matrix: Matrix) -> None:
    _whole(file, int(matrix.format), matrix.outputs, matrix.inputs)
    _array(file, matrix.data, np.uint8)


def _random_matrix(outputs: int, inputs: int, number_format: Format, scale: float | None = None) -> Matrix:
    """Any bits that stand for numbers, or a block of 256's scales of about such a size."""
    rng = np.random.default_rng(int(number_format) + outputs)
    if number_format in _PLAIN:
        dense = rng.standard_normal((outputs, inputs)).astype(np.float32)
        data = gguf.quantize(dense, gguf.GGMLQuantizationType(int(number_format))).view(np.uint8)
        return Matrix(np.ascontiguousarray(data).reshape(outputs, -1), number_format, inputs)
    size, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(number_format))]
    blocks = rng.integers(0, 256, (outputs, inputs // size, num_bytes), np.uint8)
    # A half with this bit may be infinite, or none; where it is no half, the other half of the bytes have it.
    blocks[..., 1::2] &= 0xBF
    if scale is not None:
        for place, at in enumerate(_HALVES[number_format]):
            half = np.float16(scale * (1.0 if place == 0 else 7.5 * (1 + (number_format is Format.Q5_K))))
            blocks[..., at : at + 2] = np.frombuffer(half.tobytes(), np.uint8)
    return Matrix(blocks.reshape(outputs, -1), number_format, inputs)


def _write_widening(file: BinaryIO, number_format: Format) -> None:
    matrices = [_random_matrix(9, 512, number_format)]
    if number_format in _PLAIN:
        matrices.append(_random_matrix(3, 45, number_format))
    if number_format in (Format.F16, Format.BF16):
        # Every number there is, those below the normal ones and the infinite ones too.
        every = np.arange(2**16, dtype=np.uint16)
        exponent, fraction = (0x7C00, 0x03FF) if number_format is Format.F16 else (0x7F80, 0x007F)
        every = every[(every & exponent != exponent) | (every & fraction == 0)]
        matrices.append(Matrix(every.view(np.uint8).reshape(2, -1), number_format, every.size // 2))
    for matrix in matrices:
        _begin(file, _WIDEN, f"widening {number_format.name}, {matrix.inputs} inputs")
        _matrix(file, matrix)
        _array(file, numbers(matrix).numpy())


def _write_product(file: BinaryIO, number_format: Format, rows: int = 17) -> None:
    for outputs, inputs in ((11, 512), (4, 77)) if number_format in _PLAIN else ((11, 512),):
        _begin(file, _PRODUCT, f"products with {number_format.name}, {inputs} inputs")
        _matrix(file, _random_matrix(outputs, inputs, number_format))
        x = np.zeros((rows, -(-inputs // 32) * 32), np.float32)
        x[:, :inputs] = np.random.default_rng(0).standard_normal((rows, inputs))
        _whole(file, rows)
        _array(file, x)


def _write_noise(file: BinaryIO) -> None:
    for seeds in _SEEDS:
        for position in (0, 5, 70_000):
            noise = gumbel_noise(torch.tensor([seeds], dtype=torch.int32), torch.tensor([[position]]), 1003)
            _begin(file, _NOISE, f"noise of {seeds} at {position}")
            _array(file, np.array(seeds), np.int32)
            _whole(file, position)
            _array(file, noise[0, 0].numpy())


def _with_blocks_of_256(weights: DecoderWeights) -> DecoderWeights:
    def blocks(matrix: Matrix, number_format: Format) -> Matrix:
        per_number = 1400 if number_format is Format.Q6_K else 200
        return _random_matrix(matrix.outputs, matrix.inputs, number_format, matrix.inputs**-0.5 / per_number)

    def layer(old: LayerWeights) -> LayerWeights:
        names = ("query", "key", "value", "output", "gate", "up", "down")
        cycle = (Format.Q4_K, Format.Q6_K, Format.Q5_K)
        new: dict[str, Any] = {name: blocks(getattr(old, name), cycle[index % 3]) for index, name in enumerate(names)}
        return dataclasses.replace(old, **new)

    head = blocks(weights.head, Format.Q6_K)
    return dataclasses.replace(weights, layers=[layer(old) for old in weights.layers], head=head)


def _with_ties(weights: DecoderWeights) -> DecoderWeights:
    half = weights.vocab // 2
    rows = np.concatenate([weights.head.data[:half]] * 2)
    bias = None if weights.head_bias is None else np.concatenate([weights.head_bias[:half]] * 2)
    return dataclasses.replace(weights, head=Matrix(rows, weights.head.format, weights.head.inputs), head_bias=bias)


def _write_decoder(file: BinaryIO, name: str, weights: DecoderWeights) -> None:
    _begin(file, _DECODER, f"decoder {name}")
    _write_weights(file, weights)
    steps = list(_steps(weights, 263 if name in _LONG else 37))
    _whole(file, _SLOTS, _LENGTH, len(steps))
    reference = ReferenceDecoder(weights)
    pasts: dict[int, Past] = {}
    for step in steps:
        if isinstance(step, _Kept):
            pasts[step.slot] = pasts[step.slot].keep(step.start, step.offsets)
            _whole(file, _KEEP, step.slot, step.start)
            _array(file, np.array(step.offsets), np.int64)
        else:
            _write_rows(file, reference, step, pasts)


@dataclasses.dataclass(frozen=True)
class _Kept:
    slot: int
    start: int
    offsets: Sequence[int]


def _steps(weights: DecoderWeights, length: int) -> Iterator[list[Row] | _Kept]:
    """Prompts of several lengths, over spans and groups of keys; a chain; trees, of which paths are kept; a chain."""
    rng = np.random.default_rng(3)

    def text(count: int) -> list[int]:
        return [int(token) for token in rng.integers(0, weights.vocab, count)]

    yield [Row(0, 0, text(length)), Row(1, 0, text(17)), Row(2, 0, text(1))]
    yield [Row(0, length, text(1)), Row(2, 1, text(4)), Row(1, 17, text(2))]
    yield [
        Row(0, length + 1, text(12), [-1, 0, 1, 0, 3, 0, 5, 6, 7, 2, 2, 10]),
        Row(1, 19, text(6), [-1, 0, 0, 1, 2, 4]),
        Row(2, 5, text(1), [-1]),
    ]
    yield _Kept(0, length + 1, [0, 5, 6, 7, 8])
    yield _Kept(1, 19, [0, 2, 4])
    yield [Row(1, 22, text(3)), Row(0, length + 6, text(9)), Row(2, 6, text(33))]


def _write_rows(file: BinaryIO, reference: ReferenceDecoder, rows: Sequence[Row], pasts: dict[int, Past]) -> None:
    count, width, hidden = len(rows), max(len(row.tokens) for row in rows), reference.weights.hidden
    vocab, is_tree = reference.weights.vocab, any(row.parents is not None for row in rows)
    tokens, depths = np.zeros((count, width), np.int64), np.zeros((count, width), np.int64)
    ancestors, logits = np.zeros((count, width, width), np.uint8), np.zeros((count, width, vocab), np.float32)
    given = np.random.default_rng(5).standard_normal((count, width, hidden)).astype(np.float32)
    for index, row in enumerate(rows):
        size = len(row.tokens)
        tokens[index, :size], depths[index, :size] = row.tokens, row.depths
        ancestors[index, :size, :size] = row.ancestors
        past = pasts.get(row.slot)
        found, pasts[row.slot] = reference.forward(
            row.tokens, past, depths=row.depths, ancestors=row.ancestors, given=torch.from_numpy(given[index, :size])
        )
        logits[index, :size] = found.float().numpy()
    _whole(file, _RUN, count, width, _CANDIDATES)
    _array(file, tokens, np.int64)
    for numbers_ in ([len(row.tokens) for row in rows], [row.slot for row in rows], [row.start for row in rows]):
        _array(file, np.array(numbers_), np.int64)
    _array(file, depths if is_tree else None, np.int64)
    _array(file, ancestors if is_tree else None, np.uint8)
    _array(file, np.array([0.0, 0.7, 1.3][:count]))
    _array(file, np.array(_SEEDS[:count]), np.int32)
    _array(file, None if reference.weights.state is None else given)
    _array(file, logits)


def _write_weights(file: BinaryIO, weights: DecoderWeights) -> None:
    first = weights.layers[0]
    tables = RotaryTables(weights.rotary, _LENGTH)
    tables.reach(_LENGTH)
    *_, positions, half = tables.array.shape
    _whole(
        file, len(weights.layers), weights.hidden, weights.heads, weights.kv_heads, weights.head_dim,
        first.gate.outputs, weights.vocab, int(weights.activation), 2 * half, int(weights.has_rotary_pairs), positions,
    )  # fmt: skip
    scale = weights.head_dim**-0.5 if weights.attention_scale is None else weights.attention_scale
    _array(file, np.array([
        weights.norm_eps, weights.embedding_scale, scale, weights.attention_softcap or 0.0,
        weights.logit_softcap or 0.0, weights.residual_scale, weights.logit_scale,
    ]))  # fmt: skip
    for index in range(2):
        for numbers_ in tables.array[index] if index < len(tables.array) else (None, None):
            _array(file, numbers_)
    _matrix(file, weights.embedding)
    _matrix(file, weights.head)
    _array(file, weights.final_norm)
    _array(file, weights.head_bias)
    state = weights.state
    _array(file, None if state is None else state.norm)
    _whole(file, int(state is not None and state.is_residual_normed))
    _matrix(file, weights.head if state is None or state.fc is None else state.fc)
    for layer in weights.layers:
        for matrix in (layer.query, layer.key, layer.value, layer.output, layer.gate, layer.up, layer.down):
            _matrix(file, matrix)
        for vector in (
            layer.query_bias, layer.key_bias, layer.value_bias, layer.output_bias, layer.attention_norm,
            layer.query_norm, layer.key_norm, layer.post_attention_norm, layer.mlp_norm, layer.post_mlp_norm,
        ):  # fmt: skip
            _array(file, vector)
        _whole(file, -1 if layer.rotary is None else layer.rotary, layer.window or 0)
