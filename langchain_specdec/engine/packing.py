"""Linear layers with their weights packed once for the CPU.

A decoding step multiplies a few rows by every weight of the model. The general matrix product re-arranges the weights
for its kernel at every call, which costs more with every row; oneDNN can keep them arranged. So a wider step costs
hardly more than a narrow one, and that is what makes drafting pay on a CPU. The operators are the ones that torch's
own compiler packs weights with.

Layers that read the same input (query, key and value; gate and up) are packed as one product: the small ones among
them cost more to start than to compute.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PackedLinear", "can_pack", "pack_linears"]

_DTYPES = (torch.float32, torch.bfloat16)
# Rows that the layout is chosen for. It serves fewer and many more rows as well; one chosen for 1 row does not.
_TYPICAL_ROWS = 16
# Names of sibling layers that Hugging Face models call one after the other on the same input.
_SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

# torch's compiler cannot trace tensors in oneDNN's layout. An operator of our own that takes a plain number for such a
# tensor can be traced, and the number being a tensor keeps one compiled layer valid for all layers of a model.
_packed_weights: dict[int, Any] = {}
_handles = itertools.count()
_library = torch.library.Library("specdec", "DEF")
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


class PackedLinear(nn.Module):
    """A linear layer, or several with the same input, that holds its weight in oneDNN's blocked layout only.

    Args:
        linears: The layers to take over; on CPU, in float32 or bfloat16. The outputs stand one after the other.
    """

    handle: Tensor

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.in_features = linears[0].in_features
        self.out_features = sum(linear.out_features for linear in linears)
        self.bias = _joined_bias(linears)
        weights = [linear.weight.detach() for linear in linears]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        handle = next(_handles)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)
        _packed_weights[handle] = self._weight
        weakref.finalize(self, _packed_weights.pop, handle, None)
        self.register_buffer("handle", torch.tensor(handle), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs @ weight.T + bias`, for `[..., in_features]`."""
        if torch.compiler.is_compiling():
            output: Tensor = torch.ops.specdec.packed_linear.default(inputs, self.handle, self.bias, self.out_features)
            return output
        # Without the detour, which costs 15 us for each of a model's hundred products.
        return _product(inputs, self._weight, self.bias)


class _Part(nn.Module):
    """Stands for one layer of a joint `PackedLinear`. The first computes for all, the others take their share of it.

    A layer that is called with another input than the first one's, whatever the reason, computes anew.
    """

    def __init__(self, joint: PackedLinear, start: int, size: int) -> None:
        super().__init__()
        self._joint = joint
        self._start, self._stop = start, start + size
        self.in_features, self.out_features = joint.in_features, size
        # What the first part computed last: input and output. One attribute, so that threads see both or neither.
        self._computed: tuple[Tensor, Tensor] | None = None
        # In a list, so that it is no submodule; empty for the first part itself: modules that hold themselves stay in
        # memory until Python looks for cycles, which it seldom does.
        self._first: list[_Part] = []

    @classmethod
    def of(cls, joint: PackedLinear, sizes: Sequence[int]) -> list[_Part]:
        """Parts of these sizes, in the order in which they are called."""
        starts = itertools.accumulate(sizes, initial=0)
        parts = [cls(joint, start, size) for start, size in zip(starts, sizes, strict=False)]
        for part in parts[1:]:
            part._first = [parts[0]]
        return parts

    def forward(self, inputs: Tensor) -> Tensor:
        """This layer's share of the joint output, `[..., out_features]`; a view."""
        first = self._first[0] if self._first else self
        computed = None if first is self else first._computed
        if computed is None or computed[0] is not inputs:
            computed = (inputs, self._joint(inputs))
        # The last part lets go of the tensors.
        first._computed = None if self._stop == self._joint.out_features else computed
        return computed[1][..., self._start : self._stop]


def can_pack(model: nn.Module) -> bool:
    """Whether packing would work: the model is on CPU, in types that this build of torch packs on this processor."""
    parameters = list(model.parameters())
    dtypes = {p.dtype for p in parameters}
    return all(p.device.type == "cpu" for p in parameters) and all(map(_can_pack_dtype, dtypes))


@functools.cache
def _can_pack_dtype(dtype: torch.dtype) -> bool:
    if dtype not in _DTYPES or not torch.backends.mkldnn.is_available():
        return False
    try:
        # Tried, because which processors do bfloat16 is oneDNN's own knowledge.
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), _TYPICAL_ROWS)
    except (AttributeError, RuntimeError):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linears(model: nn.Module, packed: Callable[[Tensor], None] | None = None) -> int:
    """Replace the model's linear layers by packed ones, in place. Quantised and other special layers stay.

    The model computes as before, but its state dict lacks the packed weights: only for a model that nobody else uses.

    Args:
        model: On CPU, in eval mode.
        packed: Told each weight of which there is a packed copy now. The model no longer reads it, unless another layer
            has the same one.

    Returns:
        Number of layers replaced.
    """
    count = 0
    for parent, names in list(_groups(model)):
        linears = [getattr(parent, name) for name in names]
        count += len(linears)
        joint = PackedLinear(*linears)
        parts = [joint] if len(linears) == 1 else _Part.of(joint, [linear.out_features for linear in linears])
        for name, part in zip(names, parts, strict=True):
            setattr(parent, name, part)
        if packed is not None:
            for linear in linears:
                packed(linear.weight.detach())
    return count


def _groups(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Where linear layers hang, and under which names; those of one input together."""
    for parent in model.modules():
        names = [name for name, child in parent.named_children() if type(child) is nn.Linear]
        for group in _SHARED_INPUT:
            if set(group) <= set(names) and len({getattr(parent, name).in_features for name in group}) == 1:
                names = [name for name in names if name not in group]
                yield parent, group
        for name in names:
            yield parent, (name,)


def _joined_bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    biases = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        for linear in linears
    ]
    return torch.cat(biases)
