"""The acceptance rule: which draft tokens the target itself picks. Pure, tensors in and tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_specdec.runner.step_inputs import RowInputs
from langchain_specdec.runner.step_logits import StepLogits


@dataclass(frozen=True)
class Verification:
    """What a target forward says of drafts, on the device. Good until the runner's next forward.

    Attributes:
        logits: `[rows, width, vocab]`; see `StepLogits`.
        verdict: What `pick_and_accept` says; None where more than logits and noise decides.
        inputs: The rows.
    """

    logits: StepLogits
    verdict: Tensor | None
    inputs: RowInputs


@dataclass(frozen=True)
class Verdict:
    """A verdict on the host, row by row: what the target says of the drafts of one step.

    Attributes:
        nodes: The tokens that were verified: the last one of the text and the draft.
        picks: The target's pick after each node.
        paths: The nodes that stand, in order; the first is 0. The pick after the last one is new (the bonus token).
        logits: The target's after each node, `[rows, width, vocab]`.
        order: The nodes on the device, those that stand first, int64 `[rows, width]`; None where no path has gaps.
    """

    nodes: Sequence[Sequence[int]]
    picks: list[list[int]]
    paths: list[list[int]]
    logits: StepLogits
    order: Tensor | None

    def tokens(self, row: int) -> list[int]:
        """What the text of a row goes on with: the target's picks along the path."""
        return [self.picks[row][node] for node in self.paths[row]]


def accept(nodes: Tensor, parents: Tensor, ancestors: Tensor, num_nodes: Tensor, picks: Tensor) -> Tensor:
    """Walk each row's draft tree along the target's picks.

    Node 0 is the last token of the text and always stands. Any other node stands if its parent does and if it is the
    token that the target picks after its parent. Siblings differ, so at most one child of a node stands, and what
    stands is a path from node 0. The pick after the path's end is emitted too (the bonus token).

    This is the shared-noise coupling of Daliri, Musco, Suresh 2024: since drafter and target pick with the same
    noise, comparing tokens is all there is to verification, and what comes out is what the target alone would write.

    Args:
        nodes: The last token and the draft tokens, int64 `[rows, width]`.
        parents: Index of each node's parent among the row's nodes, int64 `[rows, width]`; entry 0 is unused.
        ancestors: bool `[rows, width, width]`: entry `[r, i, j]` says whether node j leads to node i or is node i.
        num_nodes: Nodes in each row, int64 `[rows]`; later columns are padding.
        picks: The target's pick after each node, int64 `[rows, width]`.

    Returns:
        bool `[rows, width]`: which nodes stand.
    """
    matches = nodes == picks.gather(1, parents)
    matches[:, 0] = True
    # A node stands if every node that leads to it matches: one comparison, however deep the tree is.
    stands = (matches[:, None, :] | ~ancestors).all(-1)
    return stands & (torch.arange(nodes.shape[1], device=nodes.device) < num_nodes[:, None])


def pick_and_accept(logits: Tensor, inputs: RowInputs, *, is_sampled: bool) -> Tensor:
    """The verdict where logits and noise are all that the target's picks depend on.

    Args:
        logits: The target's, `[rows, width, vocab]`.
        inputs: What they are of.
        is_sampled: Whether any row is not greedy.

    Returns:
        See `accept_picks`.
    """
    return accept_picks(inputs.pick(logits, inputs.next_positions, is_sampled=is_sampled), inputs)


def accept_picks(picks: Tensor, inputs: RowInputs) -> Tensor:
    """The verdict: the target's picks and which nodes stand by them, in one tensor for one copy to the host.

    Args:
        picks: The target's pick after every node, int64 `[rows, width]`.
        inputs: The nodes.

    Returns:
        int64 `[2, rows, width]`: token ids, and 1 for each node that stands.
    """
    stands = accept(inputs.tokens, inputs.parents, inputs.ancestors, inputs.num_nodes, picks)
    return torch.stack([picks, stands.to(picks.dtype)])
