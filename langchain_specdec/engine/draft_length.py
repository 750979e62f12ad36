"""How many tokens to draft: the tree that maximises expected tokens per second.

With V(rows, width) the cost of a target forward, D the cost of a draft forward and r_i the chance that the target
reaches draft token i (that it and all its ancestors are accepted), a step whose trees have n tokens a row emits
``rows + sum(r_i)`` tokens in ``V(rows, 1 + n) + g * D`` seconds, where g is the number of draft forwards. A chain is
the simple tree: its r_i are the products a_1...a_i of its tokens' chances, and this is section 3.5 of Leviathan et al.
2023 with measured instead of constant costs. Tokens are taken in order of r_i, so that every number of them is the best
tree of that size. The best n may be 0. V and D are measured, the chances are estimated while running.

It is asked twice. Before anything is computed, how many draft forwards pay beside what is known for free
(`best_forwards`); and once all tokens are known, how many of them to have checked (`lengths_worth`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from langchain_specdec.drafters.base import Proposal
from langchain_specdec.engine.step_cost import StepCost

# Tokens less likely than this are never drafted: finding them takes time too, even where checking them is free.
_MIN_REACH = 0.004
# After so many numbers of forwards that promise less than a smaller one no larger one is tried.
_PATIENCE = 2


@dataclass(frozen=True)
class DraftLengths:
    """How many tokens to draft, and what is expected of them.

    Attributes:
        lengths: Draft tokens of each row; levels, where it is about what to compute.
        tokens: Expected tokens of each row, the target's own included.
        seconds: Expected cost of the step, draft forwards included.
        plain_seconds: Cost of a step without drafts.
        num_forwards: Draft forwards.
    """

    lengths: tuple[int, ...]
    tokens: tuple[float, ...]
    seconds: float
    plain_seconds: float
    num_forwards: int = 0

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


def best_lengths(reaches: Sequence[Sequence[float]], cost: StepCost) -> DraftLengths:
    """The numbers of draft tokens that maximise expected tokens per second of the coming step, where they are free.

    All rows share a length, as a shorter row is padded to the widest anyway.

    Args:
        reaches: For each row its tokens' chances of being reached, in descending order.
        cost: What steps cost.

    Returns:
        Each length is from 0 to `len(reaches[row])`, and of equally good ones the shortest.
    """
    rows = len(reaches)
    plain = cost.verify_seconds(rows, 1)
    gains = _sums([_gains(row) for row in reaches])
    width, seconds = _best_width(rows, gains, cost, plain)
    return _cut(reaches, width, seconds, plain)


def lengths_worth(
    reaches: Sequence[Sequence[float]], cost: StepCost, spent: float, tokens_per_second: float
) -> DraftLengths:
    """How many of the tokens that draft forwards have brought are worth checking, now that those are paid for.

    A token is where it is likelier to be reached than the time that it adds would bring otherwise.

    Args:
        reaches: For each row its tokens' chances of being reached, in descending order.
        cost: What steps cost.
        spent: Seconds that the draft forwards took, which are part of the step whatever is chosen.
        tokens_per_second: What time is worth: tokens of all rows that a second brings where all goes as expected.

    Returns:
        As `best_lengths`.
    """
    rows = len(reaches)

    def worth(width: int) -> float:
        return gains[width] - tokens_per_second * cost.verify_seconds(rows, 1 + width)

    gains = _sums([_gains(row) for row in reaches])
    width = max(range(len(gains)), key=worth)
    seconds = cost.verify_seconds(rows, 1 + width) + spent
    return _cut(reaches, width, seconds, cost.verify_seconds(rows, 1))


def _cut(reaches: Sequence[Sequence[float]], width: int, seconds: float, plain_seconds: float) -> DraftLengths:
    lengths = tuple([min(width, len(row)) for row in reaches])
    tokens = tuple([1.0 + sum(row[:n]) for row, n in zip(reaches, lengths, strict=True)])
    return DraftLengths(lengths, tokens, seconds, plain_seconds)


def best_forwards(
    free: Sequence[Proposal],
    computed: Sequence[Proposal],
    cost: StepCost,
    max_nodes: int,
    *,
    is_resumed: bool = False,
) -> DraftLengths | None:
    """How many draft forwards promise most beside what can be drafted for free; all rows share them.

    What one tree of both will be worth is not known before it is computed. Its chance of standing down to a depth is at
    least the larger one of the two that it is made of, each with the nodes that are its own: so much is counted. Both
    are mostly right about the same tokens, so there is seldom much more to it. Of chains the better one counts.

    Args:
        free: What is known for each row.
        computed: What can be computed for each; nothing where nothing can.
        cost: What steps cost.
        max_nodes: Most tokens of a row's tree; 0: chains only.
        is_resumed: Whether they would be the first after a step without.

    Returns:
        As lengths the levels that each row has computed. None where nothing can be computed.
    """
    rows, plain = len(free), cost.verify_seconds(len(free), 1)
    best: DraftLengths | None = None
    num_worse = 0
    depths = [p.draft.depths for p in free]
    for count in range(1, 1 + max((len(p.reaches) for p in computed), default=0)):
        if max_nodes:
            pairs = zip(free, depths, computed, strict=True)
            gains = [_gains_of_both(f.reaches, each, c, count, max_nodes) for f, each, c in pairs]
        else:
            gains = [_gains_of_either(f.reaches, c.reaches[:count]) for f, c in zip(free, computed, strict=True)]
        width, seconds = _best_width(rows, _sums(gains), cost, plain, cost.draft_seconds(count, is_resumed=is_resumed))
        lengths = tuple([min(count, len(p.reaches)) for p in computed])
        tokens = tuple([1.0 + row[min(width, len(row) - 1)] for row in gains])
        choice = DraftLengths(lengths, tokens, seconds, plain, count)
        if best is None or choice.gain > best.gain:
            best, num_worse = choice, 0
        elif (num_worse := num_worse + 1) == _PATIENCE:
            break
    return best


def _best_width(
    rows: int, gains: Sequence[float], cost: StepCost, plain_seconds: float, spent: float = 0.0
) -> tuple[int, float]:
    """The number of nodes that gives most tokens per second, by what all rows gain by each; and the step's seconds."""
    best, best_seconds = 0, plain_seconds + spent
    best_rate = rows / best_seconds
    for count in range(1, len(gains)):
        seconds = cost.verify_seconds(rows, 1 + count) + spent
        rate = (rows + gains[count]) / seconds
        if rate > best_rate:
            best, best_seconds, best_rate = count, seconds, rate
    return best, best_seconds


def _gains_of_both(
    free: Sequence[float], depths: Sequence[int], computed: Proposal, count: int, max_nodes: int
) -> list[float]:
    """Expected accepted tokens of a tree of a chain of so many levels and of what is free, by its number of nodes."""
    levels = computed.reaches[:count]
    added = list(levels)
    # The chances of standing down to each depth.
    standing = dict.fromkeys(depths, 0.0)
    for reach, depth in zip(free, depths, strict=True):
        known = levels[depth - 1] if depth <= len(levels) else 0.0
        before = max(standing[depth], known)
        standing[depth] += reach
        added.append(max(standing[depth], known) - before)
    # The tree takes the likeliest ones.
    added.sort(reverse=True)
    return _gains(added[:max_nodes])


def _gains_of_either(free: Sequence[float], computed: Sequence[float]) -> list[float]:
    """Expected accepted tokens of the better one of two chains, by its length."""
    return max(_gains(free), _gains(computed), key=operator.itemgetter(-1))


def _gains(row: Sequence[float]) -> list[float]:
    """Expected accepted tokens of a row, by draft length from 0."""
    return [0.0, *accumulate(row)]


def _sums(gains: Sequence[Sequence[float]]) -> list[float]:
    """What all rows gain together, by draft length; a row that ends before has all of its own."""
    if len(gains) == 1:
        return list(gains[0])
    longest = max(map(len, gains))
    padded = [[*row, *[row[-1]] * (longest - len(row))] for row in gains]
    return list(map(sum, zip(*padded, strict=True)))
