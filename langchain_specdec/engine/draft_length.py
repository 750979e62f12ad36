"""How many tokens to draft: the length that maximises expected tokens per second.

With V(rows, width) the cost of a target forward, D the cost of a draft forward and a_i the chance that draft token i
is accepted given that those before it were, a step with drafts of length g emits ``E(g) = 1 + sum_{i<=g} a_1...a_i``
tokens in ``V(rows, 1 + g) + g * D`` seconds (Leviathan et al. 2023, section 3.5, with measured instead of constant
costs). The best g may be 0. V and D are measured, the a_i are estimated while running, per request and kind of draft.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import mul

from langchain_specdec.drafters.base import DraftKind

__all__ = ["AcceptanceRates", "StepCost", "choose_lengths"]

# Chance that a looked-up token is right, by the length of the match that leads to it: counted on 65 greedy answers of
# a 135M chat model to Spec-Bench prompts of all 13 categories. A start only; each request soon follows its own text.
_LOOKUP_PRIOR = (0.21, 0.47, 0.63, 0.72, 0.83, 0.86, 0.87, 0.88, 0.92, 0.93, 0.93, 0.93, 0.95, 0.96, 0.96, 0.97)
_MODEL_PRIOR = 0.7
_PRIOR_WEIGHT = 4.0
_SHARED_MEMORY = 400.0
_REQUEST_MEMORY = 40.0


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
        self._cache: dict[tuple[int, int], float] = {}

    @classmethod
    def flat(cls) -> StepCost:
        """Every width costs the same, as on a GPU with few rows; drafting is free."""
        return cls({(1, 1): 1.0, (1, 1024): 1.0})

    def verify_seconds(self, rows: int, width: int) -> float:
        """Cost of a target forward of `rows` rows and `width` tokens each."""
        key = (rows, width)
        if key not in self._cache:
            self._cache[key] = self._table.get(key) or self._interpolate(rows * width)
        return self._cache[key] * self._drift

    def draft_seconds(self, steps: int) -> float:
        """Cost of `steps` forwards of the draft model."""
        return self._draft * steps * self._drift

    def observe(self, rows: int, width: int, seconds: float) -> None:
        """Refine by what a target forward took."""
        expected = self.verify_seconds(rows, width)
        ratio = min(max(seconds / expected, 0.25), 4.0)
        key = (rows, width)
        # What else the machine does can only add to a forward, so one that was faster than expected tells more.
        weight = 0.2 if ratio < 1.0 else 0.05
        self._table[key] = self._table.get(key, expected / self._drift) * ratio**weight
        self._drift *= ratio**0.1
        self._cache.clear()

    def observe_draft(self, steps: int, seconds: float) -> None:
        """Refine by what `steps` forwards of the draft model took."""
        if steps:
            self._draft += 0.1 * (seconds / steps / self._drift - self._draft)

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
        """Estimated chance that a draft token of this kind is accepted, the ones before it being accepted."""
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
    if source == "lookup":
        return _LOOKUP_PRIOR[min(number, len(_LOOKUP_PRIOR)) - 1]
    return _MODEL_PRIOR


def choose_lengths(rates: Sequence[Sequence[float]], steps_per_token: Sequence[int], cost: StepCost) -> list[int]:
    """The draft lengths that maximise expected tokens per second of the coming step.

    Free drafts (lookups) and computed ones (a draft model) may have different lengths, because only the latter cost
    forwards of their own. All rows of a kind share a length, as a shorter row is padded to the widest anyway.

    Args:
        rates: For each row the chances of its draft tokens, each given that those before it were accepted.
        steps_per_token: For each row the draft forwards that a token costs: 0 or 1.
        cost: What steps cost.

    Returns:
        A length for each row, 0 to `len(rates[row])`.
    """
    rows = len(rates)
    free = _expected_gains([r for r, s in zip(rates, steps_per_token, strict=True) if s == 0])
    computed = _expected_gains([r for r, s in zip(rates, steps_per_token, strict=True) if s > 0])
    best, best_rate = (0, 0), rows / cost.verify_seconds(rows, 1)
    for num_free, free_gain in enumerate(free):
        for num_computed, computed_gain in enumerate(computed):
            width = 1 + max(num_free, num_computed)
            seconds = cost.verify_seconds(rows, width) + cost.draft_seconds(num_computed)
            rate = (rows + free_gain + computed_gain) / seconds
            if rate > best_rate:
                best, best_rate = (num_free, num_computed), rate
    return [min(best[s > 0], len(r)) for r, s in zip(rates, steps_per_token, strict=True)]


def _expected_gains(rates: Sequence[Sequence[float]]) -> list[float]:
    """Expected accepted tokens of all rows together, by draft length from 0."""
    longest = max((len(r) for r in rates), default=0)
    gains = [0.0] * (longest + 1)
    for row in rates:
        totals = [0.0, *accumulate(accumulate(row, mul))]
        for length in range(longest + 1):
            gains[length] += totals[min(length, len(row))]
    return gains
