"""Linear layers with their weights arranged once by oneDNN, where there is no kernel of our own for them.

The general matrix product re-arranges the weights for its kernel at every call, which costs more with every row; oneDNN
can keep them arranged. The operators are the ones that torch's own compiler packs weights with.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from typing import Any

import torch
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.bfloat16)
# Rows that the layout is chosen for. It serves fewer and many more rows as well; one chosen for 1 row does not.
_TYPICAL_ROWS = 16

# torch's compiler cannot trace tensors in oneDNN's layout. An operator of our own that takes a plain number for such a
# tensor can be traced, and the number being a tensor keeps one compiled layer valid for all layers of a model.
_packed_weights: dict[int, Any] = {}
_handles = itertools.count()
_library = torch.library.Library("specdec", "FRAGMENT")
_library.define("packed_linear(Tensor inputs, Tensor handle, Tensor? bias, SymInt out_features) -> Tensor")


def _product(inputs: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")
    return output


def _packed_linear(inputs: Tensor, handle: Tensor, bias: Tensor | None, out_features: int) -> Tensor:  # noqa: ARG001
    return _product(inputs, _packed_weights[int(handle)], bias)


_library.impl("packed_linear", _packed_linear, "CPU")


def _shape_only(inputs: Tensor, handle: Tensor, bias: Tensor | None, out_features: int) -> Tensor:  # noqa: ARG001
    return inputs.new_empty((*inputs.shape[:-1], out_features))


torch.library.register_fake("specdec::packed_linear", _shape_only, lib=_library)


class OneDNNWeight(nn.Module):
    """A weight in oneDNN's blocked layout, and the product with it.

    Args:
        weight: `[out_features, in_features]`, float32 or bfloat16, on CPU.
    """

    handle: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features = weight.shape[0]
        handle = next(_handles)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)
        _packed_weights[handle] = self._weight
        weakref.finalize(self, _packed_weights.pop, handle, None)
        self.register_buffer("handle", torch.tensor(handle), persistent=False)

    def forward(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """`inputs @ weight.T + bias`, for `[..., in_features]`."""
        if torch.compiler.is_compiling():
            output: Tensor = torch.ops.specdec.packed_linear.default(inputs, self.handle, bias, self.out_features)
            return output
        # Without the detour, which costs 15 us for each of a model's hundred products.
        return _product(inputs, self._weight, bias)


@functools.cache
def can_use_onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights of this type on this processor."""
    if dtype not in _DTYPES or not torch.backends.mkldnn.is_available():
        return False
    try:
        # Tried, because which processors do bfloat16 is oneDNN's own knowledge.
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), _TYPICAL_ROWS)
    except (AttributeError, RuntimeError):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")
