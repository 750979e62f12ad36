"""How many tokens to draft: the tree that maximises expected tokens per second.

With V(rows, width) the cost of a target forward, D the cost of a draft forward and r_i the chance that the target
reaches draft token i (that it and all its ancestors are accepted), a step whose trees have n tokens a row emits
``rows + sum(r_i)`` tokens in ``V(rows, 1 + n) + g * D`` seconds, where g is the number of draft forwards. A chain is
the simple tree: its r_i are the products a_1...a_i of its tokens' chances, and this is section 3.5 of Leviathan et al.
2023 with measured instead of constant costs. Tokens are taken in order of r_i, so that every number of them is the best
tree of that size. The best n may be 0. V and D are measured, the chances are estimated while running.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from langchain_specdec.drafters.base import Draft, DraftKind, DraftLimits, Rates

__all__ = ["AcceptanceRates", "Choice", "StepCost", "best_first", "choose_lengths", "limits_that_pay"]

# Chance that a token is right, given that its parent is and its earlier siblings are not: counted on 76 greedy answers
# of a 135M chat model to Spec-Bench prompts of all 13 categories. A start only; each request soon follows its own text.
_PRIORS: dict[str, tuple[float, ...]] = {
    # By the length of the match that leads to it.
    "lookup": (0.21, 0.47, 0.63, 0.72, 0.83, 0.86, 0.87, 0.88, 0.92, 0.93, 0.93, 0.93, 0.95, 0.96, 0.96, 0.97),
    # The most frequent continuation of 4 and of 2 tokens, by how often it was seen; the others by rank.
    "shared-4": (0.43, 0.5, 0.5, 0.8),
    "shared-2": (0.21, 0.25, 0.27, 0.33),
    "shared-4-other": (0.2, 0.15),
    "shared-2-other": (0.1, 0.06),
    # By rank among the target's earlier candidates.
    "pair": (0.25, 0.2, 0.11, 0.08, 0.03, 0.02, 0.02, 0.02),
    "token": (0.12, 0.1, 0.07, 0.06, 0.03, 0.03, 0.02, 0.02),
    "model": (0.7,),
    # By a grammar.
    "forced": (1.0,),
}
_OTHER_PRIOR = (0.7,)
# Kinds whose numbers count from 1.
_FROM_ONE = ("lookup", "shared-4", "shared-2", "shared-4-other", "shared-2-other")
_PRIOR_WEIGHT = 4.0
_SHARED_MEMORY = 400.0
_REQUEST_MEMORY = 40.0
# Weights of one observation in the common factor and in the shape of the costs.
_DRIFT_WEIGHT = 0.2
_SHAPE_WEIGHT = 0.05
# Observations after which the costs between the observed ones are drawn anew. One moves them by very little, and
# drawing them takes as long as choosing by them.
_REFRESH_INTERVAL = 16
# No tree is grown by tokens less likely than that, however cheap they are to check: finding them takes time as well.
_MIN_REACH = 0.004


class StepCost:
    """V(rows, width) and D in seconds, from measurements.

    Only their ratios decide, and a machine that gets slower gets slower at every width. So an observation first moves
    one common factor and only slowly the shape, which keeps one noisy step from changing the decision.

    Args:
        verify: Measured seconds by (rows, width); at least one entry with width 1.
        draft: Seconds of one draft forward.
    """

    def __init__(self, verify: Mapping[tuple[int, int], float], draft: float = 0.0) -> None:
        self._table = {key: max(seconds, 1e-9) for key, seconds in verify.items()}
        self._draft = draft
        self._drift = 1.0
        self._num_observed = 0
        self._cache: dict[tuple[int, int], float] = {}

    @classmethod
    def flat(cls) -> StepCost:
        """Every width costs the same, as on a GPU with few rows; drafting is free."""
        return cls({(1, 1): 1.0, (1, 1024): 1.0})

    def verify_seconds(self, rows: int, width: int) -> float:
        """Cost of a target forward of `rows` rows and `width` tokens each."""
        key = (rows, width)
        seconds = self._cache.get(key)
        if seconds is None:
            seconds = self._cache[key] = self._table.get(key) or self._estimate(rows, width)
        return seconds * self._drift

    def draft_seconds(self, steps: int) -> float:
        """Cost of `steps` forwards of the draft model."""
        return self._draft * steps * self._drift

    def observe(self, rows: int, width: int, seconds: float) -> None:
        """Refine by what a target forward took."""
        expected = self.verify_seconds(rows, width)
        ratio = min(max(seconds / expected, 0.5), 2.0)
        self._table[rows, width] = expected / self._drift * ratio**_SHAPE_WEIGHT
        self._drift *= ratio**_DRIFT_WEIGHT
        self._num_observed += 1
        if self._num_observed % _REFRESH_INTERVAL == 0:
            self._cache.clear()
        self._cache[rows, width] = self._table[rows, width]

    def observe_draft(self, steps: int, seconds: float) -> None:
        """Refine by what `steps` forwards of the draft model took."""
        if steps:
            self._draft += 0.1 * (seconds / steps / self._drift - self._draft)

    def _estimate(self, rows: int, width: int) -> float:
        """By what is known of as many rows; else, and for the shape beyond it, by the number of tokens alone."""
        own = sorted(w for r, w in self._table if r == rows)
        if not own:
            return self._interpolate(rows * width)
        if own[0] < width < own[-1]:
            right = bisect_left(own, width)
            low, high = own[right - 1], own[right]
            y0, y1 = self._table[rows, low], self._table[rows, high]
            return y0 + (y1 - y0) * (width - low) / (high - low)
        nearest = own[0] if width < own[0] else own[-1]
        return self._table[rows, nearest] * self._interpolate(rows * width) / self._interpolate(rows * nearest)

    def _interpolate(self, tokens: int) -> float:
        """What a forward of that many tokens costs, by the nearest measured ones; linear between and beyond."""
        points = sorted((rows * width, seconds) for (rows, width), seconds in self._table.items())
        if len(points) == 1 or tokens <= points[0][0]:
            return points[0][1]
        (x0, y0), (x1, y1) = points[0], points[-1]
        if tokens <= x1:
            right = bisect_left(points, (tokens, 0.0))
            (x0, y0), (x1, y1) = points[right - 1], points[right]
        if x1 == x0:
            return y1
        return max(y0 + (y1 - y0) * (tokens - x0) / (x1 - x0), y0)


class AcceptanceRates:
    """Chance of acceptance by kind of draft, for one request, leaning on what all requests of the engine saw."""

    def __init__(self, shared: AcceptanceRates | None = None) -> None:
        self._shared = shared
        self._memory = _REQUEST_MEMORY if shared else _SHARED_MEMORY
        self._counts: dict[DraftKind, tuple[float, float]] = {}

    def rate(self, kind: DraftKind) -> float:
        """Chance that a token of this kind is right, given that its parent is and its earlier siblings are not."""
        accepted, trials = self._counts.get(kind, (0.0, 0.0))
        prior = self._shared.rate(kind) if self._shared else _prior(kind)
        return (accepted + _PRIOR_WEIGHT * prior) / (trials + _PRIOR_WEIGHT)

    def observe(self, outcomes: Iterable[tuple[DraftKind, bool]]) -> None:
        """Count outcomes of guesses whose predecessors were right; old ones fade."""
        outcomes = list(outcomes)
        for kind, is_right in outcomes:
            accepted, trials = self._counts.get(kind, (0.0, 0.0))
            fade = min(1.0, self._memory / (trials + 1.0))
            self._counts[kind] = ((accepted + is_right) * fade, (trials + 1.0) * fade)
        if self._shared:
            self._shared.observe(outcomes)


def _prior(kind: DraftKind) -> float:
    source, number = kind
    chances = _PRIORS.get(source, _OTHER_PRIOR)
    return chances[min(number - (source in _FROM_ONE), len(chances) - 1)]


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
