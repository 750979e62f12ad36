"""How many tokens to draft: the tree that maximises expected tokens per second.

With V(rows, width) the cost of a target forward, D the cost of a draft forward and r_i the chance that the target
reaches draft token i (that it and all its ancestors are accepted), a step whose trees have n tokens a row emits
``rows + sum(r_i)`` tokens in ``V(rows, 1 + n) + g * D`` seconds, where g is the number of draft forwards. A chain is
the simple tree: its r_i are the products a_1...a_i of its tokens' chances, and this is section 3.5 of Leviathan et al.
2023 with measured instead of constant costs. Tokens are taken in order of r_i, so that every number of them is the best
tree of that size. The best n may be 0. V and D are measured, the chances are estimated while running.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from langchain_specdec.drafters.base import NOTHING, Proposal
from langchain_specdec.engine.step_cost import StepCost

# Tokens less likely than this are never drafted: finding them takes time too, even where checking them is free.
_MIN_REACH = 0.004


@dataclass(frozen=True)
class DraftLengths:
    """How many tokens to draft, and what is expected of them.

    Attributes:
        lengths: Draft tokens of each row.
        tokens: Expected tokens of each row, the target's own included.
        seconds: Expected cost of the step.
        plain_seconds: Cost of a step without drafts.
    """

    lengths: tuple[int, ...]
    tokens: tuple[float, ...]
    seconds: float
    plain_seconds: float

    @property
    def gain(self) -> float:
        """Expected tokens per second over those of a step without drafts."""
        return sum(self.tokens) / len(self.tokens) * self.plain_seconds / self.seconds


def least_reach(cost: StepCost | None, rows: int, max_nodes: int) -> float:
    """The chance of being reached below which a draft token is not worth looking for.

    A plain step gives each row one token in ``V(rows, 1)``, so a node must be reached with a chance of at least the
    share of ``V(rows, 1)`` that it costs. Costs need not grow evenly, so half of a node's mean cost is asked for.
    """
    if cost is None or max_nodes < 1:
        return _MIN_REACH
    plain = cost.verify_seconds(rows, 1)
    return max(0.5 * (cost.verify_seconds(rows, 1 + max_nodes) - plain) / (max_nodes * plain), _MIN_REACH)


def best_lengths(reaches: Sequence[Sequence[float]], steps_per_token: Sequence[int], cost: StepCost) -> DraftLengths:
    """The numbers of draft tokens that maximise expected tokens per second of the coming step.

    Free drafts (lookups) and computed ones (a draft model) may have different lengths, because only the latter cost
    forwards of their own. All rows of a kind share a length, as a shorter row is padded to the widest anyway.

    Args:
        reaches: For each row its tokens' chances of being reached, in descending order.
        steps_per_token: For each row the draft forwards that a token costs: 0 or 1.
        cost: What steps cost.

    Returns:
        Each length is from 0 to `len(reaches[row])`, and of equally good ones the shortest.
    """
    rows, plain_seconds = len(reaches), cost.verify_seconds(len(reaches), 1)
    if not any(reaches):
        return DraftLengths((0,) * rows, (1.0,) * rows, plain_seconds, plain_seconds)
    free = _expected_gains([r for r, s in zip(reaches, steps_per_token, strict=True) if s == 0])
    computed = _expected_gains([r for r, s in zip(reaches, steps_per_token, strict=True) if s > 0])
    best, best_seconds, best_rate = (0, 0), plain_seconds, rows / plain_seconds
    for num_computed, computed_gain in enumerate(computed):
        draft_seconds = cost.draft_seconds(num_computed)
        for num_free, free_gain in enumerate(free):
            seconds = cost.verify_seconds(rows, 1 + max(num_free, num_computed)) + draft_seconds
            rate = (rows + free_gain + computed_gain) / seconds
            if rate > best_rate:
                best, best_rate, best_seconds = (num_free, num_computed), rate, seconds
    lengths = tuple([min(best[s > 0], len(r)) for r, s in zip(reaches, steps_per_token, strict=True)])
    tokens = tuple([1.0 + sum(r[:n]) for r, n in zip(reaches, lengths, strict=True)])
    return DraftLengths(lengths, tokens, best_seconds, plain_seconds)


def most_promising(offer: Sequence[Proposal], rows: int, cost: StepCost) -> Proposal:
    """The alternative that promises most per second, if all rows had the like; of equals the preferred one."""

    def promise(proposal: Proposal) -> float:
        return best_lengths([proposal.reaches] * rows, [proposal.steps_per_token] * rows, cost).gain

    if len(offer) < 2:
        return offer[0] if offer else NOTHING
    return max(offer, key=promise)


def _expected_gains(reaches: Sequence[Sequence[float]]) -> list[float]:
    """Expected accepted tokens of all rows together, by draft length from 0."""
    longest = max((len(r) for r in reaches), default=0)
    gains = [0.0] * (longest + 1)
    for row in reaches:
        totals = [0.0, *accumulate(row)]
        for length in range(longest + 1):
            gains[length] += totals[min(length, len(row))]
    return gains
