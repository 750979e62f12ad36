"""A decoder's weights as plain arrays: what the native decoder runs, wherever they come from.

Every matrix keeps the bits of its file: rows of GGML blocks (https://github.com/ggml-org/ggml), or plain float32,
float16 or bfloat16 numbers. What a block stands for is what dequantising it gives, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from langchain_specdec.runner.cpu.rotary import Rotary

Floats = NDArray[np.float32]


class Format(IntEnum):
    """How a matrix holds its numbers, by GGML's numbers of its types."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    BF16 = 30


BLOCKS: dict[int, tuple[int, int]] = {
    Format.F32: (1, 4), Format.F16: (1, 2), Format.BF16: (1, 2),
    Format.Q4_0: (32, 18), Format.Q4_1: (32, 20), Format.Q5_0: (32, 22), Format.Q5_1: (32, 24), Format.Q8_0: (32, 34),
    Format.Q4_K: (256, 144), Format.Q5_K: (256, 176), Format.Q6_K: (256, 210), Format.IQ4_NL: (32, 18),
}  # fmt: skip
"""Numbers of a block in each format, and its bytes; in plain formats a number is a block."""
PLAIN = (Format.F32, Format.F16, Format.BF16)
"""The formats whose numbers stand as they are."""


def plain_numbers(data: NDArray[np.uint8], number_format: Format) -> Floats:
    """Bytes in a plain format as float32, `[..., bytes]` to `[..., numbers]`; in float32 a view."""
    if number_format is Format.BF16:
        # It is the upper half of a float32.
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    plain: NDArray[np.floating] = data.view(np.float16 if number_format is Format.F16 else np.float32)
    return plain.astype(np.float32, copy=False)


class Activation(IntEnum):
    """What a gated MLP does to its gate."""

    SILU = 0
    GELU_TANH = 1
    GELU = 2


@dataclass(frozen=True)
class Matrix:
    """The weight of a linear layer, or a table of embeddings.

    Attributes:
        data: Its rows, one after the other without gaps, uint8 `[outputs, bytes of a row]`. Whoever made it keeps
            nothing else alive for it: the array owns its memory, or a map of the file.
        format: How it holds its numbers.
        inputs: Numbers of a row.
    """

    data: NDArray[np.uint8]
    format: Format
    inputs: int

    @property
    def outputs(self) -> int:
        """Rows."""
        return int(self.data.shape[0])

    def rows(self, start: int, stop: int) -> Matrix:
        """Some of its rows; nothing is copied."""
        return Matrix(self.data[start:stop], self.format, self.inputs)


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: RMSNorm, rotary attention over grouped keys, gated MLP. None is "has none".

    Attributes:
        query: `[heads * head_dim, hidden]`.
        key: `[kv_heads * head_dim, hidden]`.
        value: `[kv_heads * head_dim, hidden]`.
        output: `[hidden, heads * head_dim]`.
        gate: `[mlp, hidden]`.
        up: `[mlp, hidden]`.
        down: `[hidden, mlp]`.
        attention_norm: RMSNorm weight before attention, `[hidden]`; so are all others but those of heads.
        mlp_norm: Before the MLP.
        query_norm: Of each head's query, `[head_dim]` (Qwen3, Gemma 3).
        key_norm: Of each head's key, `[head_dim]`.
        post_attention_norm: Of attention's output (Gemma 2 and 3).
        post_mlp_norm: Of the MLP's output (Gemma 2 and 3).
        query_bias: `[heads * head_dim]`; the other biases likewise.
        key_bias: See `query_bias`.
        value_bias: See `query_bias`.
        output_bias: See `query_bias`.
        rotary: Which of the decoder's turns its queries and keys; None: positions do not (NoPE).
        window: Positions that a token sees, itself included; None: all.
    """

    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    attention_norm: Floats
    mlp_norm: Floats
    query_norm: Floats | None = None
    key_norm: Floats | None = None
    post_attention_norm: Floats | None = None
    post_mlp_norm: Floats | None = None
    query_bias: Floats | None = None
    key_bias: Floats | None = None
    value_bias: Floats | None = None
    output_bias: Floats | None = None
    rotary: int | None = 0
    window: int | None = None


@dataclass(frozen=True)
class StateInput:
    """What a draft head reads beside a token's embedding: a state, its target's or its own (EAGLE-3, arXiv 2503.01840).

    The first layer's query, key and value are `[.., embedding + hidden]` then: they read the embedding as that layer's
    `attention_norm` has it, and then the state.

    Attributes:
        norm: RMSNorm weight of the state, `[hidden]`.
        is_residual_normed: Whether the first layer adds to the normed state, not to the state as it is.
        fc: What condenses the states of several layers of the target to one, `[hidden, points * target_hidden]`; None
            where there is one such layer, and its state is taken as it is.
    """

    norm: Floats
    is_residual_normed: bool = False
    fc: Matrix | None = None


@dataclass(frozen=True)
class DecoderWeights:
    """A decoder of the Llama kind.

    Attributes:
        layers: The layers.
        embedding: `[vocab, hidden]`; of a draft head, `[tokens of its target, numbers of an embedding]`.
        head: `[vocab, hidden]`; the embedding itself where they are tied.
        final_norm: `[hidden]`.
        heads: Heads of queries.
        kv_heads: Heads of keys and values.
        head_dim: Numbers of a head.
        norm_eps: What RMSNorms add to the mean square.
        rotary: What turns queries and keys: one, or two (Gemma 3: layers with a window have one of their own).
        has_rotary_pairs: Whether neighbours turn with each other, as GGUF arranges Llama's queries and keys; else
            number i turns with number i + rotary_dim / 2, as Hugging Face has it.
        activation: Of the MLPs' gates.
        embedding_scale: What embeddings are multiplied by (Gemma).
        attention_scale: What scores are multiplied by; None: `head_dim ** -0.5`.
        attention_softcap: See `slot_attention`; None: none (Gemma 2).
        logit_softcap: The same for logits.
        residual_scale: What attention's and MLP's outputs are multiplied by (Granite).
        logit_scale: What logits are multiplied by (Granite, Cohere).
        head_bias: `[vocab]`.
        state: What it reads beside embeddings; None: nothing. Only a draft head has such.
    """

    layers: Sequence[LayerWeights]
    embedding: Matrix
    head: Matrix
    final_norm: Floats
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rotary: Sequence[Rotary] = field(default_factory=tuple)
    has_rotary_pairs: bool = False
    activation: Activation = Activation.SILU
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    head_bias: Floats | None = None
    state: StateInput | None = None

    @property
    def hidden(self) -> int:
        """Numbers of a hidden state."""
        return len(self.final_norm)

    @property
    def vocab(self) -> int:
        """Tokens."""
        return self.head.outputs

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices, each once."""
        layers = ((m.query, m.key, m.value, m.output, m.gate, m.up, m.down) for m in self.layers)
        every = [self.embedding, self.head, *(matrix for layer in layers for matrix in layer)]
        if self.state is not None and self.state.fc is not None:
            every.append(self.state.fc)
        return sum({matrix.data.ctypes.data: matrix.data.nbytes for matrix in every}.values())
