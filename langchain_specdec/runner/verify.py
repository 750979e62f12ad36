"""The acceptance rule: which draft tokens the target itself picks. Pure, tensors in and tensors out."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.sampling.top_tokens import top_tokens

UNSOUND = -1
"""Stands for a pick where a model's scores are NaN or infinite, or all minus infinity, so that none can be picked."""


@dataclass(frozen=True)
class Verification:
    """What a target forward says of drafts, on the device. Good until the runner's next forward.

    Attributes:
        logits: `[rows, width, vocab]`; see `StepLogits`.
        verdict: What `pick_and_accept` says, a tensor, or an array where no device is involved; None where more than
            logits and noise decides.
        rows: The rows, on the device if they were taken there.
    """

    logits: StepLogits
    verdict: Tensor | NDArray[np.int64] | None
    rows: RowInputs | RowBatch

    @property
    def inputs(self) -> RowInputs:
        """The rows on the device."""
        rows = self.rows
        return RowInputs.from_batch(rows, self.logits.device) if isinstance(rows, RowBatch) else rows


@dataclass(frozen=True)
class Verdict:
    """A verdict on the host, row by row: what the target says of the drafts of one step.

    Attributes:
        nodes: The tokens that were verified: the last one of the text and the draft.
        picks: The target's pick after each node; `UNSOUND` where it has none.
        paths: The nodes that stand and have a pick, in order; the first is 0, and there is none where that has no pick.
            The pick after the last one is new (the bonus token).
        logits: The target's after each node, `[rows, width, vocab]`.
        order: The nodes on the device, those that stand first, int64 `[rows, width]`; None where no path has gaps.
        ranked: The target's best tokens after each node, by rank, row and node; none where nobody asked for them.
    """

    nodes: Sequence[Sequence[int]]
    picks: list[list[int]]
    paths: list[list[int]]
    logits: StepLogits
    order: Tensor | None
    ranked: Sequence[Sequence[Sequence[int]]] = ()

    def tokens(self, row: int) -> list[int]:
        """What the text of a row goes on with: the target's picks along the path."""
        return [self.picks[row][node] for node in self.paths[row]]

    def has_unsound(self, row: int) -> bool:
        """Whether a node of a row has no sound scores, and so left nothing sound in its slot."""
        return min(self.picks[row]) < 0

    def candidates(self, row: int, node: int) -> list[int]:
        """The target's best tokens after a node of a row, best first."""
        return [rank[row][node] for rank in self.ranked]


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


def accept_rows(
    nodes: Sequence[Sequence[int]], parents: Sequence[Sequence[int]] | None, picks: list[list[int]], width: int
) -> list[list[bool]]:
    """`accept` on the host, for rows that are not padded.

    Args:
        nodes: The last token and the draft tokens of each row.
        parents: Index of each node's parent among the row's nodes; None: the node before it.
        picks: The target's pick after each node; what stands after a row's own is not looked at.
        width: Entries of each row of the answer.

    Returns:
        Which nodes stand; padding does not.
    """
    verdicts = []
    for row, tokens in enumerate(nodes):
        above, chosen = parents[row] if parents is not None else range(-1, len(tokens) - 1), picks[row]
        stands = [True]
        for node in range(1, len(tokens)):
            parent = above[node]
            stands.append(stands[parent] and tokens[node] == chosen[parent])
        stands += [False] * (width - len(tokens))
        verdicts.append(stands)
    return verdicts


def is_gapless(offsets: Sequence[int]) -> bool:
    """Whether nodes stand one after the other from the first on, so that nothing has to move."""
    return all(map(operator.eq, offsets, itertools.count()))


def pick_and_accept(logits: Tensor, inputs: RowInputs, *, is_sampled: bool, num_candidates: int = 0) -> Tensor:
    """The verdict where logits and noise are all that the target's picks depend on.

    Args:
        logits: The target's, `[rows, width, vocab]`.
        inputs: What they are of.
        is_sampled: Whether any row is not greedy.
        num_candidates: See `RowBatch`.

    Returns:
        See `accept_picks`.
    """
    picks = inputs.pick(logits, inputs.next_positions, is_sampled=is_sampled)
    return accept_picks(picks, score_of(logits, picks), logits, inputs, num_candidates)


def score_of(logits: Tensor, picks: Tensor) -> Tensor:
    """The logit of each pick, `[rows, width]`: not finite where noise alone picked among logits that are not sound."""
    return logits.gather(-1, picks[..., None])[..., 0]


def sound_picks(picks: Tensor, best: Tensor) -> Tensor:
    """The picks, with `UNSOUND` where the best logit is not finite; so the host learns of it without another copy."""
    # What is not finite does not become 0.
    return picks.masked_fill((best - best) != 0, UNSOUND)


def sound_chains(chains: Tensor, logits: Tensor, picked: Tensor) -> list[list[int]]:
    """Drafted tokens on the host, in one copy.

    Args:
        chains: int64 `[rows, count]`.
        logits: By which the last ones were picked, `[rows, 1, vocab]`.
        picked: The last ones, int64 `[rows, 1]`.

    Returns:
        The tokens, by row; none for a row whose scores are not sound.
    """
    checked = torch.cat([chains, sound_picks(picked, score_of(logits, picked))], 1)
    return [row[:-1] if row[-1] >= 0 else [] for row in checked.tolist()]


def accept_picks(picks: Tensor, best: Tensor, logits: Tensor, inputs: RowInputs, num_candidates: int) -> Tensor:
    """The verdict: all that the host wants to know of a forward, in one tensor for one copy.

    Args:
        picks: The target's pick after every node, int64 `[rows, width]`.
        best: The best of its logits there, or that of the pick where it is as good a sign, `[rows, width]`.
        logits: The target's, `[rows, width, vocab]`.
        inputs: The nodes.
        num_candidates: See `RowBatch`.

    Returns:
        int64 `[2 + num_candidates, rows, width]`: the picks or `UNSOUND`, 1 for each node that stands by them, and
        the best tokens after each node by rank.
    """
    picks = sound_picks(picks, best)
    stands = accept(inputs.tokens, inputs.parents, inputs.ancestors, inputs.num_nodes, picks)
    verdict = torch.stack([picks, stands.to(picks.dtype)])
    if not num_candidates:
        return verdict
    return torch.cat([verdict, top_tokens(logits, num_candidates).permute(2, 0, 1)])
