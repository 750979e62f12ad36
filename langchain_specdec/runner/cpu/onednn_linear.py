"""Linear layers with their weights arranged once by oneDNN, where there is no kernel of our own for them.

The general matrix product re-arranges the weights for its kernel at every call, which costs more with every row; oneDNN
can keep them arranged. The operators are the ones that torch's own compiler packs weights with.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.bfloat16)
# Rows that the layout is chosen for. It serves fewer and many more rows as well; one chosen for 1 row does not.
_TYPICAL_ROWS = 16


class OneDNNWeight(nn.Module):
    """A weight in oneDNN's blocked layout, and the product with it.

    Args:
        weight: `[out_features, in_features]`, float32 or bfloat16, on CPU.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features = weight.shape[0]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)

    def forward(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """`inputs @ weight.T + bias`, for `[..., in_features]`."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise.default(inputs, self._weight, bias, "none", [], "")
        return output


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
