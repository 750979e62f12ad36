"""How the tokens of one forward hang together: depths and ancestors of ragged rows of draft trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TreeLayout"]


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
        if all(list(row) == list(range(-1, len(row) - 1)) for row in parents):
            depths = torch.arange(width, device=device).expand(rows, width)
            ancestors = torch.ones(width, width, dtype=torch.bool, device=device).tril()
            return cls(True, (depths - 1).clamp(min=0), depths, ancestors.expand(rows, width, width))
        depths = torch.zeros(rows, width, dtype=torch.int64)
        # Padding sees itself: seeing nothing would give NaN, and NaN in the cache would spread.
        ancestors = torch.eye(width, dtype=torch.bool).repeat(rows, 1, 1)
        padded = torch.zeros(rows, width, dtype=torch.int64)
        for row, row_parents in enumerate(parents):
            for node, parent in enumerate(row_parents[1:], start=1):
                padded[row, node] = parent
                depths[row, node] = depths[row, parent] + 1
                ancestors[row, node] |= ancestors[row, parent]
        return cls(False, padded.to(device), depths.to(device), ancestors.to(device))
