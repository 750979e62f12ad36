"""Random decoders of the Llama kind, and forwards of rows by the native one."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from langchain_specdec.runner.cpu.decoder_weights import (
    BLOCKS,
    Activation,
    DecoderWeights,
    Floats,
    Format,
    LayerWeights,
    Matrix,
    StateInput,
)
from langchain_specdec.runner.cpu.native_decoder import NativeDecoder
from langchain_specdec.runner.cpu.native_step import Step
from langchain_specdec.runner.cpu.rotary import Rotary

# Formats that gguf rounds no numbers to: where a block's half-precision scales are, and what these are for numbers of
# about 1.
_SCALES: dict[Format, dict[int, float]] = {
    Format.Q4_K: {0: 1 / 200, 2: 1 / 30},
    Format.Q5_K: {0: 1 / 400, 2: 1 / 30},
    Format.Q6_K: {208: 1 / 1200},
    Format.IQ4_NL: {0: 1 / 64},
}


def matrix_of(numbers: NDArray[Any], number_format: Format) -> Matrix:
    """Rows of numbers in a format, as gguf rounds them; others of about that size where it cannot."""
    outputs, inputs = numbers.shape
    if number_format not in _SCALES:
        data = gguf.quantize(numbers.astype(np.float32), gguf.GGMLQuantizationType(int(number_format)))
        return Matrix(np.ascontiguousarray(data).view(np.uint8).reshape(outputs, -1), number_format, inputs)
    count, size = BLOCKS[number_format]
    rng = np.random.default_rng(abs(hash((outputs, inputs, float(numbers[0, 0])))))
    blocks = rng.integers(0, 256, (outputs, inputs // count, size), np.uint8)
    for at, scale in _SCALES[number_format].items():
        half = (scale * float(numbers.std()) * rng.uniform(0.5, 1.5, blocks.shape[:2])).astype(np.float16)
        blocks[..., at : at + 2] = half[..., None].view(np.uint8)
    return Matrix(blocks.reshape(outputs, -1), number_format, inputs)


@dataclass(frozen=True)
class Shape:
    """What a random decoder is like; see `DecoderWeights` and `LayerWeights`.

    Attributes:
        windows: Of its layers, of which there are as many.
        rotaries: Of its layers; the last is that of all that follow.
        formats: Of its matrices, in turn.
        embedding: Numbers of an embedding of a draft head, which is given states, too; 0: it is another decoder.
    """

    windows: Sequence[int | None] = (None, None)
    rotaries: Sequence[int | None] = (0,)
    hidden: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rotary_dim: int = 16
    mlp: int = 72
    vocab: int = 70
    formats: Sequence[Format] = (Format.F32,)
    activation: Activation = Activation.SILU
    has_rotary_pairs: bool = False
    has_head_norms: bool = False
    has_output_norms: bool = False
    has_biases: bool = False
    is_tied: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    embedding: int = 0
    is_residual_normed: bool = False


def random_decoder(shape: Shape, seed: int = 0) -> DecoderWeights:
    """A decoder whose attention looks far: neither its scores nor its logits are nearly even."""
    rng = np.random.default_rng(seed)
    made = 0

    def matrix(outputs: int, inputs: int, scale: float = 1.0) -> Matrix:
        nonlocal made
        made += 1
        numbers = scale * rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        return matrix_of(numbers, shape.formats[made % len(shape.formats)])

    def vector(size: int, middle: float = 0.0) -> Floats:
        return (middle + 0.2 * rng.standard_normal(size)).astype(np.float32)

    def norm(size: int, *, is_there: bool = True) -> Any:
        return vector(size, 1.0) if is_there else None

    def bias(size: int) -> Any:
        return vector(size) if shape.has_biases else None

    wide, narrow, hidden = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden

    def layer(index: int, window: int | None) -> LayerWeights:
        is_joint = index == 0 and shape.embedding > 0
        read = shape.embedding if is_joint else hidden
        inputs = read + hidden * is_joint
        return LayerWeights(
            query=matrix(wide, inputs, 2.0),
            key=matrix(narrow, inputs, 2.0),
            value=matrix(narrow, inputs),
            output=matrix(hidden, wide),
            gate=matrix(shape.mlp, hidden),
            up=matrix(shape.mlp, hidden),
            down=matrix(hidden, shape.mlp),
            attention_norm=norm(read),
            mlp_norm=norm(hidden),
            query_norm=norm(shape.head_dim, is_there=shape.has_head_norms),
            key_norm=norm(shape.head_dim, is_there=shape.has_head_norms),
            post_attention_norm=norm(hidden, is_there=shape.has_output_norms),
            post_mlp_norm=norm(hidden, is_there=shape.has_output_norms),
            query_bias=bias(wide),
            key_bias=bias(narrow),
            value_bias=bias(narrow),
            output_bias=bias(hidden),
            rotary=shape.rotaries[min(index, len(shape.rotaries) - 1)],
            window=window,
        )

    def rotary(base: float) -> Rotary:
        frequencies = base ** (-np.arange(shape.rotary_dim // 2) / max(shape.rotary_dim // 2, 1))
        return Rotary(frequencies.astype(np.float32))

    layers = [layer(index, window) for index, window in enumerate(shape.windows)]
    embedding = matrix(shape.vocab, shape.embedding or hidden, 4.0)
    count = max((index for index in shape.rotaries if index is not None), default=-1) + 1
    return DecoderWeights(
        layers=layers,
        embedding=embedding,
        head=embedding if shape.is_tied else matrix(shape.vocab, hidden, 2.0),
        final_norm=norm(hidden),
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        norm_eps=1e-5,
        rotary=[rotary(base) for base in (100.0, 10.0)[:count]],
        has_rotary_pairs=shape.has_rotary_pairs,
        activation=shape.activation,
        embedding_scale=shape.embedding_scale,
        attention_scale=shape.attention_scale,
        attention_softcap=shape.attention_softcap,
        logit_softcap=shape.logit_softcap,
        residual_scale=shape.residual_scale,
        logit_scale=shape.logit_scale,
        head_bias=bias(shape.vocab),
        state=StateInput(norm(hidden), shape.is_residual_normed, matrix(hidden, 2 * hidden))
        if shape.embedding
        else None,
    )


@dataclass(frozen=True)
class Row:
    """Some tokens of one text.

    Attributes:
        slot: Where the text stands.
        start: Tokens of it that are there.
        tokens: Those that follow.
        parents: For each the index of the one before it; the first has -1. None: a chain.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    parents: Sequence[int] | None = None

    @property
    def depths(self) -> list[int]:
        """Steps of each token from the first."""
        depths: list[int] = []
        for index in range(len(self.tokens)):
            parent = index - 1 if self.parents is None else self.parents[index]
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    @property
    def ancestors(self) -> list[list[bool]]:
        """Which tokens each sees, itself included."""
        seen: list[list[bool]] = []
        for index in range(len(self.tokens)):
            parent = index - 1 if self.parents is None else self.parents[index]
            row = list(seen[parent]) if parent >= 0 else [False] * len(self.tokens)
            row[index] = True
            seen.append(row)
        return seen


@dataclass
class Result:
    """What a forward gave, for each row.

    Attributes:
        logits: float32 `[tokens, vocab]`; of the last token alone where no others were wanted.
        picks: The token after each.
        best: `[candidates, tokens]`.
    """

    logits: list[Floats] = field(default_factory=list)
    picks: list[list[int]] = field(default_factory=list)
    best: list[NDArray[np.int64]] = field(default_factory=list)


def run_rows(
    decoder: NativeDecoder,
    rows: Sequence[Row],
    *,
    vocab: int,
    wants_logits: bool = True,
    last_only: bool = False,
    candidates: int = 0,
    temperatures: Sequence[float] | None = None,
    seeds: Sequence[tuple[int, int]] | None = None,
    given: Floats | None = None,
) -> Result:
    """One forward of some rows; what is not written stays NaN, or -7. A draft head is given `[rows, width, hidden]`."""
    count, width = len(rows), max(len(row.tokens) for row in rows)
    tokens, depths = np.zeros((count, width), np.int64), np.zeros((count, width), np.int64)
    ancestors = np.zeros((count, width, width), np.uint8)
    for index, row in enumerate(rows):
        size = len(row.tokens)
        tokens[index, :size], depths[index, :size] = row.tokens, row.depths
        ancestors[index, :size, :size] = row.ancestors
    lengths = np.array([len(row.tokens) for row in rows], np.int64)
    slots, starts = np.array([row.slot for row in rows], np.int64), np.array([row.start for row in rows], np.int64)
    logits = np.full((count, width, vocab), np.nan, np.float32)
    picks, scores = np.full((count, width), -7, np.int64), np.full((count, width), np.nan, np.float32)
    best = np.full((candidates, count, width), -7, np.int64)
    heats = None if temperatures is None else np.array(temperatures, np.float32)
    halves = None if seeds is None else np.array(seeds, np.int32)
    is_tree = any(row.parents is not None for row in rows)

    def address(array: Any) -> ctypes.c_void_p | None:
        return None if array is None or not array.size else ctypes.c_void_p(array.ctypes.data)

    ones = np.ones(count, np.int64)
    step = Step(rows=count, width=width, wanted=address(ones if last_only else None), candidates=candidates)
    step.tokens, step.counts, step.slots, step.starts = map(address, (tokens, lengths, slots, starts))
    if is_tree:
        step.depths, step.ancestors = address(depths), address(ancestors)
    if wants_logits:
        step.logits, step.picks, step.scores, step.best = map(address, (logits, picks, scores, best))
    step.temperatures, step.seeds, step.hidden = address(heats), address(halves), address(given)
    decoder.run(step)
    result = Result()
    for index, size in enumerate(lengths):
        kept = slice(size - 1, size) if last_only else slice(0, size)
        result.logits.append(logits[index, kept])
        result.picks.append(picks[index, kept].tolist())
        result.best.append(best[:, index, kept])
    return result
