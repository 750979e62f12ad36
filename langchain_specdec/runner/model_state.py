"""What others may change of a model that runs here: weights, adapters, hooks, and whether it is in training mode."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

# What PEFT's layers keep of the adapters in use and their share. Of adapters that are not trained, switching one leaves
# no other trace.
_ADAPTER_SETTINGS = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")

_num_fused_steps = 0


def _note_step(optimizer: Any, *_: object) -> None:
    """Count steps of fused optimizers, of any model: they write weights without PyTorch's counting it."""
    global _num_fused_steps
    if any(group.get("fused") for group in optimizer.param_groups):
        _num_fused_steps += 1


register_optimizer_step_post_hook(_note_step)


@dataclass(frozen=True)
class WeightsState:
    """Differs before and after a change of weights, unless they were written through `.data`, which leaves no trace.

    Attributes:
        places: Where each weight is, and whether it is trained.
        switches: What else decides what modules compute: their hooks, and the adapters in use.
        versions: How often PyTorch saw each weight being written.
        num_fused_steps: Steps that fused optimizers have taken.
    """

    places: tuple[tuple[int, bool], ...]
    switches: tuple[tuple[object, ...], ...]
    versions: tuple[int, ...]
    num_fused_steps: int

    @classmethod
    def of(cls, modules: Sequence[nn.Module]) -> WeightsState:
        """The state of modules with their parameters and buffers; nothing is read of what these hold.

        Buffers that are not saved are the model's own to work out, and longrope writes its frequencies in each forward.
        """
        tensors = [
            tensor
            for module in modules
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and name not in module._non_persistent_buffers_set
        ]
        return cls(
            tuple((_place(tensor), tensor.requires_grad) for tensor in tensors),
            tuple(_switches(module) for module in modules if _has_switches(module)),
            # Tensors made in inference mode cannot be written outside of it, and count nothing.
            tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors),
            _num_fused_steps,
        )


def _has_switches(module: nn.Module) -> bool:
    """Whether a module has hooks, or is one of PEFT's layers."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(type(module), "adapter_layer_names"))


def _switches(module: nn.Module) -> tuple[object, ...]:
    """The numbers of its hooks, each of which has one of its own, and its adapters' settings, as they are now."""
    settings = vars(module)
    hooks = (*module._forward_pre_hooks, *module._forward_hooks)
    return (id(module), *hooks, *(repr(settings.get(name)) for name in _ADAPTER_SETTINGS))


_private: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def keep_private(model: nn.Module) -> None:
    """Have a model run without being watched, in eval mode: nobody else has it, so that nobody changes it."""
    _set_training([module for module in modules_of(model) if module.training], is_training=False)
    _private.add(model)


def share(model: nn.Module) -> None:
    """Have a model watched from now on, because it is handed out."""
    _private.discard(model)


def is_private(model: nn.Module) -> bool:
    """Whether nobody else has a model."""
    return model in _private


def modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, each once, also while another thread adds some, which `model.modules()` fails on."""
    found, left = {model: None}, [model]
    while left:
        # Copying a dictionary is one step to other threads, and going through it is not.
        for module in list(left.pop()._modules.values()):
            if module is not None and module not in found:
                found[module] = None
                left.append(module)
    return list(found)


def _place(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:
        # Tensors that wrap others, as quantised weights may, have no place of their own.
        return id(tensor)


@dataclass
class _Held:
    """A model whose forwards are under way: how many, and which of its modules are in training mode otherwise."""

    count: int = 0
    trained: list[nn.Module] = field(default_factory=list)


_lock = threading.Lock()
_held: weakref.WeakKeyDictionary[nn.Module, _Held] = weakref.WeakKeyDictionary()


def _let_go_after_fork() -> None:
    """Leave forwards that were under way to the parent: no thread of a child will end them, or unlock."""
    global _lock
    _lock = threading.Lock()
    for held in _held.values():
        _set_training(held.trained, is_training=True)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


@contextmanager
def evaluating(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Have a model in eval mode within, and afterwards in the mode that it was in: dropout would change a text.

    Forwards of engines that share a model may overlap: the last one restores.

    Args:
        model: The model.
        modules: All its modules.
    """
    with _lock:
        held = _held.setdefault(model, _Held())
        held.count += 1
        trained = [module for module in modules if module.training]
        # In this order: a fork between them knows what to restore.
        held.trained += trained
        _set_training(trained, is_training=False)
    try:
        yield
    finally:
        with _lock:
            held.count -= 1
            if not held.count:
                _set_training(held.trained, is_training=True)
                _held.pop(model, None)


def _set_training(modules: Sequence[nn.Module], *, is_training: bool) -> None:
    """Without what modules do besides when they are told to train or not, and without their slow way to set things."""
    for module in modules:
        object.__setattr__(module, "training", is_training)
