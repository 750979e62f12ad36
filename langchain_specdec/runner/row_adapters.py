"""Adapters chosen by the row of a forward: low-rank updates (LoRA, Hu et al. 2021) beside the weights of their base."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRank(NamedTuple):
    """What an adapter adds to a layer: `(inputs @ down.T) @ up.T * scaling`.

    Attributes:
        down: `[rank, in_features]`.
        up: `[out_features, rank]`.
        scaling: Usually alpha / rank.
    """

    down: Tensor
    up: Tensor
    scaling: float


class RowAdapters:
    """Which adapter the text in each slot goes by, and so each row of the forward that runs.

    Args:
        names: The adapters by name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        # By the thread that runs a forward: whoever calls the model beside it gets the base.
        self._groups: dict[int, list[tuple[str, Tensor | None]]] = {}
        self._of_slot: dict[int, str] = {}

    @property
    def groups(self) -> Sequence[tuple[str, Tensor | None]]:
        """Adapters of the forward that runs in this thread, with their rows, int64; None: all of them."""
        return self._groups.get(threading.get_ident(), ())

    def set(self, slot: int, name: str | None) -> None:
        """Have the text in a slot go by an adapter from now on; None is the base alone."""
        self._of_slot.pop(slot, None)
        if name is not None:
            self._of_slot[slot] = name

    @contextmanager
    def choosing(self, slots: Sequence[int], device: torch.device) -> Iterator[None]:
        """Have the rows of a forward within go by the adapters of their slots; outside, all go by the base alone."""
        named = [self._of_slot.get(slot) for slot in slots]
        chosen = sorted({name for name in named if name is not None})
        if len(chosen) == 1 and None not in named:
            groups: list[tuple[str, Tensor | None]] = [(chosen[0], None)]
        else:
            rows = {name: [row for row, other in enumerate(named) if other == name] for name in chosen}
            groups = [(name, torch.tensor(rows[name], device=device)) for name in chosen]
        thread = threading.get_ident()
        self._groups[thread] = groups
        try:
            yield
        finally:
            del self._groups[thread]


class AdaptedLinear(nn.Module):
    """A layer that adds to each row what the adapter of that row makes of it.

    Args:
        base: The layer as it is without adapters.
        updates: What each adapter adds to it; those that leave it alone are not in it.
        adapters: Says which rows go by which.
    """

    def __init__(self, base: nn.Module, updates: Mapping[str, LowRank], adapters: RowAdapters) -> None:
        super().__init__()
        self.base = base
        self._adapters = adapters
        self._places: dict[str, tuple[str, str, float]] = {}
        for index, (name, update) in enumerate(updates.items()):
            # Buffers, so that they go with the model to another device; names of adapters may hold any character.
            self._places[name] = f"down_{index}", f"up_{index}", update.scaling
            self.register_buffer(f"down_{index}", update.down)
            self.register_buffer(f"up_{index}", update.up)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[rows, width, out_features]`, for `[rows, width, in_features]`."""
        output: Tensor = self.base(inputs)
        for name, rows in self._adapters.groups:
            if (place := self._places.get(name)) is None:
                continue
            own = inputs if rows is None else inputs[rows]
            down, up, scaling = getattr(self, place[0]), getattr(self, place[1]), place[2]
            update = (F.linear(F.linear(own.to(down.dtype), down), up) * scaling).to(output.dtype)
            output = output + update if rows is None else output.index_add(0, rows, update)
        return output
