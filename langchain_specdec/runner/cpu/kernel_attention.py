"""Attention of a few queries over long keys and values, by a kernel of our own (`kernels/decode_attention.cpp`).

PyTorch's attention on a CPU takes longer with each token of a step, though what it reads is the same; with a draft of
eight tokens after a text of 700 it takes twice as long as with one. The kernel lets the queries that share keys pass
over them together. A query's output is the same to the bit whatever queries and rows are beside it.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from langchain_specdec.runner.cpu.kernels import tested_kernel

# Wider forwards have enough to compute for each key that they read, and PyTorch's attention is made for them.
_MAX_WIDTH = 24


class _Kernel:
    """The loaded library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.lanes = int(library.decode_attention_lanes())
        self._count_parts = library.decode_attention_parts
        self._count_parts.argtypes = [ctypes.c_void_p]
        self._count_parts.restype = ctypes.c_int64
        self._attend = library.decode_attention
        self._attend.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_float, ctypes.c_int]
        self._attend.restype = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
        """As `decode_attention`, for any width."""
        query, key, value, mask = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value, mask))
        rows, heads, width, key_dim = query.shape
        sizes = (ctypes.c_int64 * 7)(rows, heads, key.shape[1], width, key.shape[2], key_dim, value.shape[3])
        mask_row = mask.stride(0) if mask.shape[0] > 1 else 0
        strides = (ctypes.c_int64 * 12)(
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], mask_row, 0, mask.stride(2)
        )
        parts = query.new_empty(self._count_parts(sizes))
        output = query.new_empty(rows, width, heads, value.shape[3])
        self._attend(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            mask.data_ptr(),
            output.data_ptr(),
            parts.data_ptr(),
            sizes,
            strides,
            scaling,
            torch.get_num_threads(),
        )
        return output


def can_decode_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> bool:
    """Whether `decode_attention` takes such tensors here. Compiles the kernel if it is not there yet."""
    if any(x.device.type != "cpu" or x.dtype != torch.float32 for x in (query, key, value, mask)):
        return False
    kernel = _kernel()
    if kernel is None or mask.shape[1] != 1:
        return False
    return query.shape[1] % key.shape[1] == 0 and value.shape[3] % kernel.lanes == 0


def decode_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention of tensors that `can_decode_attention` takes; PyTorch's for those that are many queries wide.

    Args:
        query: `[rows, heads, width, key_dim]`, float32.
        key: `[rows, kv_heads, length, key_dim]`, float32.
        value: `[rows, kv_heads, length, value_dim]`, float32.
        mask: `[rows or 1, 1, width, length]`, float32, added to the scores; each query has to see something.
        scaling: Factor of the scores.

    Returns:
        `[rows, width, heads, value_dim]`.
    """
    if query.shape[2] <= _MAX_WIDTH:
        kernel = _kernel()
        assert kernel is not None, "ask can_decode_attention first"  # noqa: S101
        return kernel.attend(query, key, value, mask, scaling)
    is_grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=is_grouped)
    return output.transpose(1, 2).contiguous()


@functools.cache
def _kernel() -> _Kernel | None:
    return tested_kernel("decode_attention", "attention", _Kernel, _is_right)


def _is_right(kernel: _Kernel) -> bool:
    """Whether small attentions come out as PyTorch's, for one and for several blocks of keys, partly masked."""
    for width, length in ((1, 5), (7, 300)):
        query = torch.linspace(-3.0, 2.0, 2 * 6 * width * 64, dtype=torch.float32).view(2, 6, width, 64)
        key = torch.linspace(-1.0, 1.0, 2 * 2 * length * 64, dtype=torch.float32).view(2, 2, length, 64).sin()
        value = key.flip(2)
        mask = torch.zeros(2, 1, width, length, dtype=torch.float32)
        mask[0, :, :, length // 2 :] = torch.finfo(torch.float32).min
        expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.5, enable_gqa=True)
        if not torch.allclose(kernel.attend(query, key, value, mask, 0.5).transpose(1, 2), expected, atol=1e-4):
            return False
    return True
