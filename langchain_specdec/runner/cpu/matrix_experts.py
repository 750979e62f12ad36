"""The experts of a mixture over matrices in blocks: each computes its own tokens only, and none is widened for it.

From version 5 on transformers keeps all experts of a layer as two parameters of one module, `[experts, outputs,
inputs]`. Here each of the two is one matrix, with the rows of one expert after those of another. A kernel of ours
multiplies by its blocks (`kernels/expert_products.cpp`): a token's outputs are the same to the bit whatever tokens are
beside it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langchain_specdec.runner.cpu.decoder_weights import Format, Matrix
from langchain_specdec.runner.cpu.kernels import tested_kernel
from langchain_specdec.runner.cpu.matrix_layers import plain_matrix, widened
from langchain_specdec.runner.cpu.quantized_blocks import quantized_matrix
from langchain_specdec.runner.cpu.weight_numbers import first_numbers


class ExpertWeight(nn.Module):
    """One weight of all experts, and the product with it.

    Args:
        matrix: In blocks, `[experts * outputs, inputs]`; the memory is shared.
        num_experts: How many share its rows.
        bias: `[experts, outputs]`, if there is one.

    Attributes:
        rows: The matrix's bytes, uint8 `[experts * outputs, bytes of a row]`.
    """

    rows: Tensor
    bias: nn.Parameter | None

    def __init__(self, matrix: Matrix, num_experts: int, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.format, self.in_features = matrix.format, matrix.inputs
        self.out_features = matrix.outputs // num_experts
        self.register_buffer("rows", torch.from_numpy(matrix.data), persistent=False)
        self.register_parameter("bias", bias)

    @property
    def samples(self) -> list[float]:
        """The first numbers of the weight, by which models are told apart."""
        return first_numbers(widened(self.rows[:1], self.format))

    def forward(self, inputs: Tensor, experts: Tensor, counts: Tensor) -> Tensor:
        """`inputs @ weight.T + bias`, each token by its expert.

        Args:
            inputs: Tokens in the order of their experts, `[tokens, in_features]` in float32.
            experts: Those that have tokens, int64 `[hit]`.
            counts: How many tokens each of them has, `[hit]`.

        Returns:
            `[tokens, out_features]`.
        """
        kernel = expert_products()
        outputs = (kernel or _widened_products)(self, inputs.contiguous(), experts, counts)
        return outputs if self.bias is None else outputs + self.bias[experts].repeat_interleave(counts, dim=0)


class MatrixExperts(nn.Module):
    """Experts over matrices, called as transformers calls its own.

    Args:
        experts: What they stand for; see `expert_weights`. Its weights are taken from it, and all else stays its own:
            biases, activation and norms.
        first: Of its first weight, which leads to gate and inner states.
        last: Of its last one.
    """

    def __init__(self, experts: Any, first: Matrix, last: Matrix) -> None:
        super().__init__()
        for name, _ in expert_weights(experts):
            setattr(experts, name, None)
        self.own = experts
        biases = ("gate_up_proj_bias" if experts.has_gate else "up_proj_bias", "down_proj_bias")
        self.first, self.last = (
            ExpertWeight(matrix, experts.num_experts, getattr(experts, bias) if experts.has_bias else None)
            for matrix, bias in zip((first, last), biases, strict=True)
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """What the experts make of tokens.

        Args:
            hidden_states: `[tokens, hidden]`.
            top_k_index: The experts of each token, `[tokens, k]`.
            top_k_weights: Their shares, `[tokens, k]`.

        Returns:
            `[tokens, hidden]`.
        """
        own, (num_tokens, k) = self.own, top_k_index.shape
        ids, order = top_k_index.flatten().sort(stable=True)
        experts, counts = ids.unique_consecutive(return_counts=True)
        states = self.first(hidden_states[order // k].float(), experts, counts)
        states = own._apply_gate(states) if own.has_gate else own.act_fn(states)
        states = self.last(states, experts, counts)
        if getattr(own, "has_post_expert_norm", False):
            states = own.post_expert_norm(states)
        outputs = torch.empty_like(states)
        outputs[order] = states
        # Added up one after the other: in which order `sum` does it depends on how many tokens there are.
        shares = (outputs.view(num_tokens, k, -1) * top_k_weights.unsqueeze(-1)).unbind(1)
        return sum(shares[1:], shares[0]).to(hidden_states.dtype)


def expert_weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and numbers `[experts, outputs, inputs]` of the two weights of a layer's experts; none of other modules.

    They are those of classes that transformers has several implementations for (`use_experts_implementation`).
    """
    marks = vars(module)
    if not {"has_gate", "has_bias", "is_transposed"} <= marks.keys():
        return []
    names = ("gate_up_proj" if marks["has_gate"] else "up_proj", "down_proj")
    weights = [(name, getattr(module, name, None)) for name in names]
    if not all(isinstance(weight, nn.Parameter) and weight.ndim == 3 for _, weight in weights):
        return []
    return [(name, weight.mT if marks["is_transposed"] else weight) for name, weight in weights if weight is not None]


_Products = Callable[[ExpertWeight, Tensor, Tensor, Tensor], Tensor]


def _widened_products(weight: ExpertWeight, inputs: Tensor, experts: Tensor, counts: Tensor) -> Tensor:
    """The same by PyTorch: an expert that has tokens is widened for as long as they need it."""
    size = weight.out_features
    parts = [
        F.linear(part, widened(weight.rows[expert * size : (expert + 1) * size], weight.format))
        for expert, part in zip(experts.tolist(), inputs.split(counts.tolist()), strict=True)
    ]
    return torch.cat(parts)


@functools.cache
def expert_products() -> _Products | None:
    """The kernel; None where it cannot be had here, or fails its test. Compiled on the machine's first call."""
    return tested_kernel("expert_products", "experts", _wrapped, _is_right)


def _wrapped(library: ctypes.CDLL) -> _Products:
    function = library.expert_products
    function.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 4, *[ctypes.c_void_p] * 2, ctypes.c_int64]
    function.argtypes += [ctypes.c_void_p] * 2 + [ctypes.c_int]
    function.restype = None

    def products(weight: ExpertWeight, inputs: Tensor, experts: Tensor, counts: Tensor) -> Tensor:
        outputs = inputs.new_empty(len(inputs), weight.out_features)
        ends = counts.cumsum(0)
        function(
            weight.rows.data_ptr(),
            int(weight.format),
            weight.out_features,
            weight.in_features,
            weight.rows.shape[1],
            experts.data_ptr(),
            ends.data_ptr(),
            len(experts),
            inputs.data_ptr(),
            outputs.data_ptr(),
            torch.get_num_threads(),
        )
        return outputs

    return products


def _is_right(products: _Products) -> bool:
    """Whether a few tokens of two of three experts come out as PyTorch's, in each format."""
    numbers = torch.linspace(-1.0, 1.0, 3 * 70 * 64).sin().view(3 * 70, 64)
    inputs = torch.linspace(-2.0, 1.0, 9 * 64).view(9, 64)
    tokens = torch.tensor([0, 2]), torch.tensor([1, 8])
    for number_format in (Format.Q8_0, Format.IQ4_NL):
        matrix = quantized_matrix(plain_matrix(numbers), number_format)
        assert matrix is not None, "plain numbers"  # noqa: S101
        weight = ExpertWeight(matrix, 3)
        expected = _widened_products(weight, inputs, *tokens)
        if not torch.allclose(products(weight, inputs, *tokens), expected, atol=1e-3):
            return False
    return True
