"""Rotary positions (RoFormer, 2021): by how much queries and keys turn, and a decoder's tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_specdec.runner.lazy_memory import LazyZeros

# Positions whose rows are computed together.
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Rotary:
    """What turns the queries and keys of some layers.

    Attributes:
        frequencies: By how much each pair of numbers turns from one position to the next, float32 `[rotary_dim / 2]`.
        scale: What cosines and sines are multiplied by: the scaling of attention that some kinds have.
    """

    frequencies: NDArray[np.float32]
    scale: float = 1.0

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions, float32 `[positions, rotary_dim / 2]`, by transformers' own arithmetic."""
        angles = positions.float()[:, None] * torch.from_numpy(self.frequencies)
        return angles.cos() * self.scale, angles.sin() * self.scale


class RotaryTables:
    """Cosines and sines by position, of which as many rows are there as texts have been long.

    Args:
        rotaries: Of the decoder's layers; one table is for each.
        positions: Most that a text has.

    Attributes:
        array: Cosines and sines of each, float32 `[tables, 2, positions, rotary_dim / 2]`. It stays where it is
            until it is let go of.

    Raises:
        ValueError: They turn different numbers of pairs.
        MemoryError: There is no room for so many addresses.
    """

    def __init__(self, rotaries: Sequence[Rotary], positions: int) -> None:
        halves = {len(rotary.frequencies) for rotary in rotaries} or {0}
        if len(halves) > 1:
            msg = "rotary tables of one decoder have to have one shape"
            raise ValueError(msg)
        shape = (len(rotaries), 2, positions, halves.pop())
        num_bytes = 4 * int(np.prod(shape))
        try:
            zeros = LazyZeros(max(num_bytes, 1)).array
        except (OSError, OverflowError) as error:
            msg = f"rotary tables of {positions} positions take {num_bytes / 1e9:.1f} GB of addresses"
            raise MemoryError(msg) from error
        self.array: NDArray[np.float32] = zeros[:num_bytes].view(np.float32).reshape(shape)
        self._rotaries = rotaries
        self._reached = 0

    def reach(self, stop: int) -> None:
        """Have the rows of all positions before `stop`, as far as there are so many."""
        first = self._reached
        if stop <= first:
            return
        stop = min(-(-stop // _ROWS_AT_ONCE) * _ROWS_AT_ONCE, self.array.shape[2])
        positions = torch.arange(first, stop, device="cpu")
        for table, rotary in zip(self.array, self._rotaries, strict=True):
            for rows, turns in zip(table, rotary.turns(positions), strict=True):
                rows[first:stop] = turns.numpy()
        # Only now: where memory ran out, the next forward tries again.
        self._reached = stop

    def release(self) -> None:
        """Let go of the memory; the decoder has to be closed by then."""
        self.array = self.array[..., :0, :0].copy()
