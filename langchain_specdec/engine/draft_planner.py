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

from langchain_specdec.drafters.base import Draft, DraftKind, DraftLimits, Rates
from langchain_specdec.engine.step_cost import StepCost

__all__ = ["Choice", "best_first", "choose_lengths", "limits_that_pay"]

# No tree is grown by tokens less likely than that, however cheap they are to check: finding them takes time as well.
_MIN_REACH = 0.004


def limits_that_pay(cost: StepCost | None, rows: int, max_depth: int, max_nodes: int) -> DraftLimits:
    """How far it is worth looking for draft tokens.

    A step that decodes plainly gives each row a token in ``V(rows, 1)``. A node that is reached with chance r has to
    give at least as much for the time that it costs. Cost need not grow evenly with width, so half of its mean growth
    is what a node is asked for.
    """
    if cost is None or max_nodes < 1:
        return DraftLimits(max_depth, max_nodes, _MIN_REACH)
    plain = cost.verify_seconds(rows, 1)
    growth = (cost.verify_seconds(rows, 1 + max_nodes) - plain) / (max_nodes * plain)
    return DraftLimits(max_depth, max_nodes, max(0.5 * growth, _MIN_REACH))


def best_first(draft: Draft, kinds: Sequence[DraftKind], rates: Rates) -> tuple[Draft, list[float]]:
    """A draft with its tokens ordered by their chance of being reached, and these chances.

    Args:
        draft: Any tree; empty where its tokens are yet to be computed, as a chain.
        kinds: The kinds of its tokens.
        rates: The chances by kind.
    """
    parents: Sequence[int] = draft.parents or range(-1, len(kinds) - 1)
    reaches: list[float] = []
    # What is left of each node's chance when the siblings so far were wrong; the root's stands last, at -1.
    left = [0.0] * len(kinds) + [1.0]
    is_ordered, previous = True, 1.0
    known = {kind: rates.rate(kind) for kind in set(kinds)}
    for node, (kind, parent) in enumerate(zip(kinds, parents, strict=True)):
        reach = left[parent] * known[kind]
        left[parent] -= reach
        left[node] = reach
        reaches.append(reach)
        is_ordered = is_ordered and reach <= previous
        previous = reach
    if is_ordered or not draft.tokens:
        return draft, reaches
    # The sort is stable, and no node is likelier than its parent: parents stay before children.
    order = sorted(range(len(reaches)), key=lambda i: -reaches[i])
    return draft.take(order), [reaches[i] for i in order]


@dataclass(frozen=True)
class Choice:
    """What the rule decided for a step, and what it expects of it.

    Attributes:
        lengths: Draft tokens of each row.
        tokens: Expected tokens of each row, the target's own included.
        seconds: Expected cost of the step.
    """

    lengths: tuple[int, ...]
    tokens: tuple[float, ...]
    seconds: float


def choose_lengths(reaches: Sequence[Sequence[float]], steps_per_token: Sequence[int], cost: StepCost) -> Choice:
    """The numbers of draft tokens that maximise expected tokens per second of the coming step.

    Free drafts (lookups) and computed ones (a draft model) may have different lengths, because only the latter cost
    forwards of their own. All rows of a kind share a length, as a shorter row is padded to the widest anyway.

    Args:
        reaches: For each row its tokens' chances of being reached, in descending order.
        steps_per_token: For each row the draft forwards that a token costs: 0 or 1.
        cost: What steps cost.

    Returns:
        For each row a length from 0 to `len(reaches[row])`. Of equally good ones the shortest.
    """
    rows = len(reaches)
    free = _expected_gains([r for r, s in zip(reaches, steps_per_token, strict=True) if s == 0])
    computed = _expected_gains([r for r, s in zip(reaches, steps_per_token, strict=True) if s > 0])
    best, best_seconds = (0, 0), cost.verify_seconds(rows, 1)
    best_rate = rows / best_seconds
    for num_computed, computed_gain in enumerate(computed):
        draft_seconds = cost.draft_seconds(num_computed)
        for num_free, free_gain in enumerate(free):
            seconds = cost.verify_seconds(rows, 1 + max(num_free, num_computed)) + draft_seconds
            rate = (rows + free_gain + computed_gain) / seconds
            if rate > best_rate:
                best, best_rate, best_seconds = (num_free, num_computed), rate, seconds
    lengths = [min(best[s > 0], len(r)) for r, s in zip(reaches, steps_per_token, strict=True)]
    tokens = [1.0 + sum(r[:n]) for r, n in zip(reaches, lengths, strict=True)]
    return Choice(tuple(lengths), tuple(tokens), best_seconds)


def _expected_gains(reaches: Sequence[Sequence[float]]) -> list[float]:
    """Expected accepted tokens of all rows together, by draft length from 0."""
    longest = max((len(r) for r in reaches), default=0)
    gains = [0.0] * (longest + 1)
    for row in reaches:
        totals = [0.0, *accumulate(row)]
        for length in range(longest + 1):
            gains[length] += totals[min(length, len(row))]
    return gains
