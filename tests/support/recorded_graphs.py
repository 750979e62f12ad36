"""CUDA graphs played on a CPU: what a function launches is recorded and replayed on the very same memory.

As a graph does, a recording bakes in every number that Python knew, does nothing itself, refuses whatever waits for the
device, and holds no memory but its own: what it read from elsewhere has to be there still. And as graphs that share
their memory do, a replay spoils what the others have put out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from langchain_specdec.runner.cuda.waiting import RefuseWaiting


class _Elsewhere:
    """A tensor whose memory a recording does not hold."""

    def __init__(self, tensor: Tensor) -> None:
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self._view = (tensor.storage_offset(), tensor.size(), tensor.stride())
        self._dtype = tensor.dtype

    def get(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        assert storage is not None, "a graph reads memory that nobody holds any more"
        return torch.empty(0, dtype=self._dtype).set_(storage, *self._view)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own: dict[int, Tensor] = {}
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = {_address(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        held = tree_map_only(Tensor, self._hold, (args, kwargs))
        output = func(*args, **kwargs)
        made = [t for t in tree_flatten(output)[0] if isinstance(t, Tensor) and _address(t) not in inputs]
        for tensor in made:
            self._own[_address(tensor)] = tensor
        if made or func._schema.is_mutable:
            self._calls.append((func, *held, output if made else None))
        return output

    def replay(self) -> None:
        for func, args, kwargs, output in self._calls:
            args, kwargs = tree_map_only(_Elsewhere, _Elsewhere.get, (args, kwargs))
            found = func(*args, **kwargs)
            if output is not None:
                for old, new in zip(tree_flatten(output)[0], tree_flatten(found)[0], strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)

    def _hold(self, tensor: Tensor) -> Tensor | _Elsewhere:
        if _address(tensor) in self._own:
            return tensor
        # Single numbers that Python made tensors of are told to the kernel, and baked in like all of Python's numbers.
        return tensor.clone() if tensor.ndim == 0 else _Elsewhere(tensor)


class RecordedCapture:
    """A `Capture` without a GPU.

    Args:
        seconds: What actions take, in turn: a graph, what it stands for, the next graph, ...
    """

    def __init__(self, seconds: tuple[float, ...] = (1.0, 2.0)) -> None:
        self._seconds = self._in_turn(seconds)
        self._outputs: list[tuple[Tensor, ...]] = []
        self.num_recorded = 0
        self.num_replayed = 0
        self.num_given_back = 0

    def record(
        self, load: Callable[[], None], function: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        refuse = RefuseWaiting(torch.device("cpu"))
        load()
        with refuse:
            function()
        load()
        recorder = _Recorder()
        with refuse, recorder:
            outputs = function()
        self.num_recorded += 1
        # A graph that is being captured computes nothing.
        _spoil(outputs)
        self._outputs.append(outputs)

        def replay() -> None:
            for other in self._outputs:
                _spoil(other)
            recorder.replay()
            self.num_replayed += 1

        return outputs, replay

    def seconds(self, action: Callable[[], object]) -> float:
        action()
        return next(self._seconds)

    def give_back_memory(self) -> None:
        self.num_given_back += 1

    @staticmethod
    def _in_turn(seconds: tuple[float, ...]) -> Iterator[float]:
        while True:
            yield from seconds


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _spoil(tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
