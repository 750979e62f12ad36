"""How the tokens of one forward hang together: depths and ancestors of ragged rows of draft trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TreeLayout", "fill_tree", "is_chain"]


@dataclass(frozen=True)
class TreeLayout:
    """The trees of all rows, padded to one width.

    Attributes:
        is_chain: Whether every row is a chain, which needs no gathering anywhere.
        parents: Index of each node's parent, int64 `[rows, width]`; 0 for node 0 and padding.
        depths: Steps from node 0, int64 `[rows, width]`.
        ancestors: bool `[rows, width, width]`: entry `[r, i, j]` says whether node j leads to node i or is node i.
    """

    is_chain: bool
    parents: Tensor
    depths: Tensor
    ancestors: Tensor

    @classmethod
    def of(cls, parents: Sequence[Sequence[int]], device: torch.device) -> TreeLayout:
        """The layout of rows of nodes; node 0 of each row has the parent -1, parents stand before children."""
        rows, width = len(parents), max(len(row) for row in parents)
        if is_chain(parents):
            return cls.chain(rows, width, device)
        # In numpy, where writing one number costs a tenth of what it does in a tensor.
        all_parents = np.zeros((rows, width), dtype=np.int64)
        all_depths = np.zeros((rows, width), dtype=np.int64)
        sees = np.zeros((rows, width, width), dtype=np.bool_)
        fill_tree(parents, all_parents, all_depths, sees)
        return cls(False, *(torch.from_numpy(array).to(device) for array in (all_parents, all_depths, sees)))

    @classmethod
    def chain(cls, rows: int, width: int, device: torch.device) -> TreeLayout:
        """The layout of rows in which each node follows the one before it; nothing is copied to the device."""
        depths = torch.arange(width, device=device).expand(rows, width)
        ancestors = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        return cls(True, (depths - 1).clamp(min=0), depths, ancestors.expand(rows, width, width))


def is_chain(parents: Sequence[Sequence[int]]) -> bool:
    """Whether in every row each node follows the one before it."""
    return all(list(row) == list(range(-1, len(row) - 1)) for row in parents)


def fill_tree(
    parents: Sequence[Sequence[int]],
    all_parents: NDArray[np.int64],
    all_depths: NDArray[np.int64],
    sees: NDArray[np.bool_],
) -> None:
    """Write the layout of rows of nodes into zeros that may be larger: padded rows, and padded nodes.

    Args:
        parents: As in `TreeLayout.of`.
        all_parents: Becomes `TreeLayout.parents`.
        all_depths: Becomes `TreeLayout.depths`.
        sees: Becomes `TreeLayout.ancestors`.
    """
    # Padding sees itself: seeing nothing would give NaN, and NaN in the cache would spread.
    sees |= np.eye(sees.shape[-1], dtype=np.bool_)
    for row, row_parents in enumerate(parents):
        row_depths, row_sees = [0] * len(row_parents), sees[row]
        for node in range(1, len(row_parents)):
            parent = row_parents[node]
            row_depths[node] = row_depths[parent] + 1
            row_sees[node] |= row_sees[parent]
        all_depths[row, : len(row_depths)] = row_depths
        all_parents[row, 1 : len(row_parents)] = row_parents[1:]
