"""Linear layers with their weights packed once for the CPU.

A decoding step multiplies a few rows by every weight of the model. The general matrix product re-arranges the weights
for its kernel at every call, which costs more with every row; oneDNN can keep them arranged. So a wider step costs
hardly more than a narrow one, and that is what makes drafting pay on a CPU. The operators are the ones that torch's
own compiler packs weights with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PackedLinear", "can_pack", "pack_linears"]

_DTYPES = (torch.float32, torch.bfloat16)
# Rows that the layout is chosen for. It serves fewer and many more rows as well; one chosen for 1 row does not.
_TYPICAL_ROWS = 16


class PackedLinear(nn.Module):
    """A linear layer that holds its weight in oneDNN's blocked layout, and no other copy of it.

    Args:
        linear: The layer to take over; on CPU, in float32 or bfloat16.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        weight = linear.weight.detach()
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs @ weight.T + bias`, for `[..., in_features]`."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")
        return output


def can_pack(model: nn.Module) -> bool:
    """Whether packing would work: this build of torch has oneDNN, and the model is on CPU in a type it packs."""
    has_ops = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_ops and all(p.device.type == "cpu" and p.dtype in _DTYPES for p in model.parameters())


def pack_linears(model: nn.Module) -> int:
    """Replace the model's linear layers by packed ones, in place. Quantised and other special layers stay.

    The model computes as before, but its state dict lacks the packed weights: only for a model that nobody else uses.

    Args:
        model: On CPU, in eval mode.

    Returns:
        Number of layers replaced.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    return len(found)
