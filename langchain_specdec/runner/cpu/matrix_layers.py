"""Layers of a Hugging Face module whose weights are matrices that a native decoder reads too.

Numbers in bfloat16, float16 or blocks take a half or less of float32's memory, and a module that kept its float32
beside them would undo that. So its layers hold the decoder's own arrays, and widen them when they are called: the same
numbers, more slowly. Nothing of the native path calls them; whoever asks for the module may.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langchain_specdec.runner.cpu.decoder_weights import BLOCKS, Format, Matrix
from langchain_specdec.runner.cpu.quantized_blocks import IQ4_NL_LEVELS
from langchain_specdec.runner.cpu.weight_numbers import first_numbers, is_exact, without_numbers

# Rows that are widened at a time.
_ROWS_AT_ONCE = 4096
# Bytes of a block's scales, which stand first.
_HEADS = {Format.Q8_0: 2, Format.Q4_0: 2, Format.Q4_1: 4, Format.IQ4_NL: 2}
_PLAIN = {Format.F32: torch.float32, Format.F16: torch.float16, Format.BF16: torch.bfloat16}


def narrowed(weight: Tensor) -> Matrix:
    """A float32 weight `[outputs, inputs]` in the fewest bytes that hold each of its numbers exactly.

    In float32 it is the weight's own memory, where that is one piece.
    """
    for number_format in (Format.BF16, Format.F16):
        dtype = _PLAIN[number_format]
        if is_exact(weight, dtype):
            return _of_bytes(weight.to(dtype), number_format)
    return plain_matrix(weight)


def plain_matrix(weight: Tensor) -> Matrix:
    """A float32 weight `[outputs, inputs]` as it is; its own memory, where that is one piece."""
    return _of_bytes(weight, Format.F32)


def widened(rows: Tensor, number_format: Format) -> Tensor:
    """Rows of a matrix as numbers: uint8 `[..., bytes]` to float32 `[..., inputs]`.

    Raises:
        NotImplementedError: It is in a format that no module is given.
    """
    if (dtype := _PLAIN.get(number_format)) is not None:
        return rows.contiguous().view(dtype).float()
    if (head := _HEADS.get(number_format)) is None:
        msg = f"a module's weights cannot be in {number_format.name}"
        raise NotImplementedError(msg)
    blocks = rows.view(*rows.shape[:-1], -1, BLOCKS[number_format][1])
    scales, packed = _halves(blocks[..., :head]), blocks[..., head:]
    if number_format is Format.Q8_0:
        numbers = packed.contiguous().view(torch.int8) * scales
    else:
        nibbles = torch.cat([packed & 15, packed >> 4], dim=-1)
        if number_format is Format.IQ4_NL:
            return (torch.from_numpy(IQ4_NL_LEVELS)[nibbles.int()] * scales).flatten(-2)
        numbers = nibbles.float()
        if number_format is Format.Q4_0:
            numbers = (numbers - 8) * scales
        else:
            numbers = numbers * scales[..., :1] + scales[..., 1:]
    return numbers.flatten(-2)


class MatrixLinear(nn.Module):
    """A linear layer over a matrix.

    Args:
        matrix: Its weight; the memory is shared.
        bias: Its bias, if any.

    Attributes:
        rows: The matrix's bytes, uint8 `[out_features, bytes of a row]`.
    """

    rows: Tensor
    bias: nn.Parameter | None

    def __init__(self, matrix: Matrix, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.inputs, matrix.outputs
        self.format = matrix.format
        self.register_buffer("rows", torch.from_numpy(matrix.data), persistent=False)
        self.register_parameter("bias", bias)

    @property
    def matrix(self) -> Matrix:
        """Its weight as a native decoder takes it; the memory is this layer's."""
        return Matrix(self.rows.numpy(), self.format, self.in_features)

    @property
    def samples(self) -> list[float]:
        """The first numbers of its weight, by which models are told apart."""
        return first_numbers(widened(self.rows[:1], self.format))

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs @ weight.T + bias`, for `[..., in_features]`."""
        parts = [
            F.linear(inputs, widened(part, self.format).to(inputs.dtype)) for part in self.rows.split(_ROWS_AT_ONCE)
        ]
        output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return output if self.bias is None else output + self.bias


class MatrixEmbedding(nn.Embedding):
    """An embedding over a matrix.

    Its own weight keeps its shape, in float32, and has no memory and no numbers; nothing reads it.

    Args:
        embedding: What it stands for.
        matrix: Its table; the memory is shared.

    Attributes:
        rows: The matrix's bytes, uint8 `[num_embeddings, bytes of a row]`.
        embed_scale: What its numbers are multiplied by; None: nothing.
    """

    rows: Tensor

    def __init__(self, embedding: nn.Embedding, matrix: Matrix) -> None:
        nothing = without_numbers(embedding, torch.float32)
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, _weight=nothing)
        self.format = matrix.format
        self.register_buffer("rows", torch.from_numpy(matrix.data), persistent=False)
        scale = getattr(embedding, "embed_scale", None)
        self.embed_scale = None if scale is None else float(scale)

    @property
    def matrix(self) -> Matrix:
        """Its table as a native decoder takes it; the memory is this layer's."""
        return Matrix(self.rows.numpy(), self.format, self.embedding_dim)

    @property
    def samples(self) -> list[float]:
        """The first numbers of its table, by which models are told apart."""
        return first_numbers(widened(self.rows[:1], self.format))

    def forward(self, index: Tensor) -> Tensor:
        """`[..., embedding_dim]` for `[...]`."""
        numbers = widened(self.rows[index], self.format).to(self.weight.dtype)
        return numbers if self.embed_scale is None else numbers * self.embed_scale


def matrix_of(weight: Tensor) -> Matrix:
    """A weight `[outputs, inputs]` in the type that it is in; one that no matrix has, as float64, becomes float32."""
    found = next((known for known, dtype in _PLAIN.items() if dtype == weight.dtype), None)
    return _of_bytes(weight.float(), Format.F32) if found is None else _of_bytes(weight, found)


def _of_bytes(weight: Tensor, number_format: Format) -> Matrix:
    return Matrix(weight.detach().contiguous().view(torch.uint8).numpy(), number_format, weight.shape[1])


def _halves(pairs: Tensor) -> Tensor:
    return pairs.contiguous().view(torch.float16).float()
