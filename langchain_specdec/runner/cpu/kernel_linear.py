"""Linear layers for a few rows, by a kernel of our own (`kernels/panel_linear.cpp`), in float32 on a CPU.

General matrix products are made for many rows. On the few of a decoding step they leave half of the memory's bandwidth
unused, and take longer with each row. The kernel reads the weights at the memory's pace, for one row as for a dozen.
A row's outputs are the same to the bit whatever rows are beside it.

Checkpoints are mostly in bfloat16, and float32 on a CPU is the same numbers in twice the bytes. Weights that bfloat16
holds exactly are kept in it and widened in registers: the same outputs to the bit, from half of the reading.

Where the kernel cannot be had, or fails its test, other means are used.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langchain_specdec.runner.cpu.kernels import tested_kernel
from langchain_specdec.runner.cpu.weight_numbers import is_exact

_Function = Callable[..., None]


class _Kernel:
    """The loaded library: its functions by the weight's type, and the outputs of a panel."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.width = int(library.panel_width())
        self.functions: dict[torch.dtype, _Function] = {
            torch.float32: library.panel_linear_float32,
            torch.bfloat16: library.panel_linear_bfloat16,
        }
        for function in self.functions.values():
            function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3 + [ctypes.c_int]  # type: ignore[attr-defined]
            function.restype = None  # type: ignore[attr-defined]

    def pack(self, weight: Tensor) -> Tensor:
        """`[outputs, inputs]` to `[panels, inputs, width]`, in bfloat16 if that holds all numbers exactly."""
        outputs, inputs = weight.shape
        dtype = torch.bfloat16 if is_exact(weight, torch.bfloat16) else torch.float32
        # Written where it stays: a copy on the way would be what a large head takes most memory for.
        packed = torch.empty(-(-outputs // self.width), inputs, self.width, dtype=dtype)
        whole = outputs // self.width
        packed[:whole].copy_(weight[: whole * self.width].view(whole, self.width, inputs).transpose(1, 2))
        if rest := outputs % self.width:
            packed[whole].zero_()[:, :rest].copy_(weight[-rest:].T)
        return packed

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
        """`inputs @ weight.T + bias` for `[..., in_features]` in float32 and a packed weight."""
        inputs = inputs.contiguous()
        size = inputs.shape[-1]
        output = inputs.new_empty((*inputs.shape[:-1], out_features))
        if rows := inputs.numel() // size:
            self.functions[weight.dtype](
                inputs.data_ptr(),
                weight.data_ptr(),
                None if bias is None else bias.data_ptr(),
                output.data_ptr(),
                rows,
                size,
                out_features,
                torch.get_num_threads(),
            )
        return output


class PanelWeight(nn.Module):
    """A weight in the kernel's layout, and the product with it.

    Args:
        weight: `[out_features, in_features]`, float32, on CPU.
    """

    panels: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features = weight.shape[0]
        self.register_buffer("panels", _the_kernel().pack(weight), persistent=False)

    def forward(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """`inputs @ weight.T + bias`, for `[..., in_features]`."""
        return _the_kernel().linear(inputs, self.panels, bias, self.out_features)

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the weight as it was, `[..., in_features]` in float32, for an index `[...]`."""
        width = self.panels.shape[-1]
        return self.panels[index // width, :, index % width].float()


def can_use_panels(dtype: torch.dtype) -> bool:
    """Whether there is a kernel for models of this type here. Compiles it if it is not there yet."""
    return dtype == torch.float32 and _kernel() is not None


def _the_kernel() -> _Kernel:
    kernel = _kernel()
    assert kernel is not None, "ask can_use_panels first"  # noqa: S101
    return kernel


@functools.cache
def _kernel() -> _Kernel | None:
    return tested_kernel("panel_linear", "linear layers", _Kernel, _is_right)


def _is_right(kernel: _Kernel) -> bool:
    """Whether small products come out as PyTorch's, for whole and for partial tiles and panels."""
    values = torch.linspace(-1.0, 1.0, 37 * 24, dtype=torch.float32).view(37, 24).to(torch.bfloat16).float()
    for weight in (values, values + 1e-5):
        packed = kernel.pack(weight)
        for rows in (1, 7, 30):
            inputs = torch.linspace(-2.0, 1.0, rows * 24, dtype=torch.float32).view(rows, 24)
            expected = F.linear(inputs, weight, weight[:, 0])
            if not torch.allclose(kernel.linear(inputs, packed, weight[:, 0].contiguous(), 37), expected, atol=1e-4):
                return False
    return True
