"""What waits for the device, which a CUDA graph cannot hold: found, and named, before anything is captured."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from traceback import walk_stack
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ops = torch.ops.aten

_WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# What has none of these tags, and looks at its tensors on the host all the same.
_WAITING = {
    ops.equal.default,
    ops.is_nonzero.default,
    ops.allclose.default,
    ops.unique_dim_consecutive.default,
    ops.multinomial.default,
    ops.embedding_renorm_.default,
    ops._linalg_check_errors.default,
}
# Since PyTorch 2.8 or so.
_GROUPED_MM = getattr(getattr(ops, "_grouped_mm", None), "default", None)
_INDEXING = {ops.index.Tensor, ops.index_put.default, ops.index_put_.default, ops._index_put_impl_.default}
_MASKING = {ops.masked_fill.Tensor, ops.masked_fill_.Tensor}
# What copies an operand that lies elsewhere. Others are told single numbers of the host as they launch.
_COPYING = {ops.copy.default, ops.copy_.default, ops.where.self}

_OURS, _TORCH = __file__, str(Path(torch.__file__).parent)


class WaitingError(RuntimeError):
    """Something waits for the device. The message names the operator and the line that calls it."""


class RefuseWaiting(TorchDispatchMode):
    """Raises `WaitingError` instead of running an operator that waits for a device, or copies to or from it.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kind = device.type

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, or refuse to."""
        kwargs = kwargs or {}
        if is_composite(func):
            # In inference mode it comes as it is, and not as what it is made of.
            with self:
                return func.decompose(*args, **kwargs)
        is_here = [t.device.type == self._kind for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if (any(is_here) and waits(func, args, kwargs)) or self._copies(func, args, kwargs, is_here):
            msg = f"it waits for the device: {func} at {_place()}"
            raise WaitingError(msg)
        return func(*args, **kwargs)

    def _copies(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_here: list[bool]) -> bool:
        """Whether something goes from host to device or back; `is_here` says which tensors are on the device."""
        if func is ops._to_copy.default:
            target = kwargs.get("device") or args[0].device
            return is_here[0] != (torch.device(target).type == self._kind)
        if func in _COPYING:
            return len(set(is_here)) > 1
        if func in _INDEXING:
            moved = [t for t in (*args[1], *args[2:3]) if t is not None and t.device.type != self._kind]
            return is_here[0] and bool(moved) and not _is_told(*args[1:3])
        if self._kind == "cpu":
            return False
        # A number to fill in is read on the host. And what is lifted are the host's numbers, which have just become a
        # tensor on the device by a copy that no operator shows.
        return (func in _MASKING or func is ops.lift_fresh.default) and is_here[-1]


@cache
def is_composite(func: Any) -> bool:
    """Whether an operator is made of others."""
    # Tensors of other classes, quantised ones say, are asked for their device and the like by operators of "prim".
    is_known = isinstance(func, OpOverload) and func.namespace != "prim"
    return is_known and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator looks on the host at what its tensors hold, before or in order to go on."""
    if func in _INDEXING:
        return _counts(args[1], args[2] if len(args) > 2 else None)
    if func is ops.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if func is ops.histc.default:
        # Without bounds of its own it looks for them.
        low, high = (*args[2:], *(kwargs.get(name, 0) for name in ("min", "max")[len(args[2:]) :]))
        return bool(low == high)
    if func is _GROUPED_MM:
        return not _groups_on_device(args[0])
    return func in _WAITING or not _WAITING_TAGS.isdisjoint(func.tags)


def _groups_on_device(inputs: Tensor) -> bool:
    """Whether the device itself reads where each group of a product ends, as experts'; elsewhere PyTorch has a loop."""
    # So it is up to PyTorch 2.13 at least, for want of other kernels.
    is_known = inputs.device.type != "cuda" or torch.cuda.get_device_capability(inputs.device)[0] in (9, 10)
    return is_known and inputs.dtype == torch.bfloat16


def _counts(indices: Any, value: Tensor | None) -> bool:
    """Whether indexing counts the places that masks tell of."""
    return any(_are_masks(indices)) and not _is_told(indices, value)


def _is_told(indices: Any, value: Tensor | None = None) -> bool:
    """Whether one number that the host knows goes wherever one mask says, which takes neither counting nor a copy."""
    is_number = value is not None and value.numel() == 1 and value.device.type == "cpu"
    return is_number and _are_masks(indices) == [True]


def _are_masks(indices: Any) -> list[bool]:
    return [index.dtype in (torch.bool, torch.uint8) for index in indices if index is not None]


def _place() -> str:
    """The innermost line of code that runs now and is neither PyTorch's nor of this file."""
    for frame, line in walk_stack(inspect.currentframe()):
        file = frame.f_code.co_filename
        if file != _OURS and not file.startswith(_TORCH):
            return f"{Path(file).name}:{line}"
    return "an unknown line"
