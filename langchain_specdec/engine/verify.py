"""The acceptance rule: which draft tokens are the target's own choice. Pure, tensors in and tensors out."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accept"]


def accept(nodes: Tensor, parents: Tensor, ancestors: Tensor, num_nodes: Tensor, picks: Tensor) -> Tensor:
    """Walk each row's draft tree along the target's picks.

    Node 0 is the last token of the text and always stands. Any other node stands if its parent does and if it is the
    token that the target picks after its parent. Siblings differ, so at most one child of a node stands, and what
    stands is a path from node 0. The pick after the path's end is emitted too (the bonus token).

    This is the shared-noise coupling of Daliri, Musco, Suresh 2024: since drafter and target choose with the same
    noise, comparing tokens is all there is to verification, and what comes out is what the target alone would write.

    Args:
        nodes: The last token and the draft tokens, int64 `[rows, width]`.
        parents: Index of each node's parent among the row's nodes, int64 `[rows, width]`; entry 0 is unused.
        ancestors: bool `[rows, width, width]`: entry `[r, i, j]` says whether node j leads to node i or is node i.
        num_nodes: Nodes in each row, int64 `[rows]`; later columns are padding.
        picks: The target's choice after each node, int64 `[rows, width]`.

    Returns:
        bool `[rows, width]`: which nodes stand.
    """
    matches = nodes == picks.gather(1, parents)
    matches[:, 0] = True
    # A node stands if every node that leads to it matches: one comparison, however deep the tree is.
    stands = (matches[:, None, :] | ~ancestors).all(-1)
    return stands & (torch.arange(nodes.shape[1], device=nodes.device) < num_nodes[:, None])
