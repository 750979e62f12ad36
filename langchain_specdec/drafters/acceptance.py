"""How often draft tokens of each kind are accepted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

DraftKind = tuple[str, int]
"""What kind of guess a draft token is: its source and a number that tells good guesses of it from bad ones."""

FORCED: DraftKind = ("forced", 0)
"""A token that is no guess, because a grammar allows no other."""

# Draft heads, by what their drafts are called, and the kinds of their levels.
_HEADS = ("eagle3", "mtp", "assistant")
_LEVELS = tuple([f"{name}-level" for name in _HEADS])
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
    # By how sure a draft head is of the token, see `head_tree`; and whether any token of a level is right.
    **dict.fromkeys(_HEADS, (0.01, 0.03, 0.07, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93)),
    **dict.fromkeys(_LEVELS, (0.6, 0.4, 0.3)),
    # By a grammar.
    "forced": (1.0,),
}
_OTHER_PRIOR = (0.7,)
# Where guesses come from, by the source of their kind; other sources go by their own name.
_SOURCE_NAMES = {
    "shared-4": "answers",
    "shared-2": "answers",
    "shared-4-other": "answers",
    "shared-2-other": "answers",
    "pair": "recycled",
    "token": "recycled",
    "model": "draft_model",
    "forced": "grammar",
}
# Sources whose guesses take no time to make.
_FREE = frozenset(_PRIORS).difference(("model",), _HEADS, _LEVELS)
# Kinds whose numbers count from 1.
_FROM_ONE = ("lookup", "shared-4", "shared-2", "shared-4-other", "shared-2-other")
_PRIOR_WEIGHT = 8.0
# Guesses that take time to make are tried less on trust: until a prior is refuted each of them costs that time.
_COMPUTED_PRIOR_WEIGHT = 2.0
_SHARED_MEMORY = 400.0
_REQUEST_MEMORY = 40.0
# A request whose likely guesses of all kinds fail has its others trusted less. So many right ones are taken as seen.
_LIKELY = 0.3
_TRUST_WEIGHT = 12.0
_TRUST_FADE = 0.95


class AcceptanceRates:
    """Chance of acceptance by kind of draft, for one request, leaning on what all requests of the engine saw.

    A kind that the request has seldom seen is taken to be as good as in the others, or, where the request's likely
    guesses have been right less often than in the others, as much worse as those.
    """

    def __init__(self, shared: AcceptanceRates | None = None) -> None:
        self._shared = shared
        self._memory = _REQUEST_MEMORY if shared else _SHARED_MEMORY
        self._counts: dict[DraftKind, tuple[float, float]] = {}
        # Likely guesses of the request that were right, and that would have been in the others.
        self._num_right = self._num_expected = 0.0
        self._trust = 1.0

    def rate(self, kind: DraftKind) -> float:
        """Chance that a token of this kind is right, given that its parent is and its earlier siblings are not."""
        if self._shared is None:
            prior, weight = _prior(kind)
        else:
            prior, weight = self._shared.rate(kind) * self._trust, _PRIOR_WEIGHT
        counts = self._counts.get(kind)
        return prior if counts is None else (counts[0] + weight * prior) / (counts[1] + weight)

    def chain(self, kinds: Sequence[DraftKind]) -> tuple[float, ...]:
        """Chance that each token of a chain is reached: that it and all before it are right."""
        reaches, reach = [], 1.0
        for kind in kinds:
            reach *= self.rate(kind)
            reaches.append(reach)
        return tuple(reaches)

    def observe(self, outcomes: Iterable[tuple[DraftKind, bool]]) -> None:
        """Count outcomes of guesses whose predecessors were right; old ones fade."""
        outcomes, shared = list(outcomes), self._shared
        for kind, is_right in outcomes:
            accepted, trials = self._counts.get(kind, (0.0, 0.0))
            fade = min(1.0, self._memory / (trials + 1.0))
            self._counts[kind] = ((accepted + is_right) * fade, (trials + 1.0) * fade)
            if shared is not None and (expected := shared.rate(kind)) >= _LIKELY:
                self._num_right = (self._num_right + is_right) * _TRUST_FADE
                self._num_expected = (self._num_expected + expected) * _TRUST_FADE
        if shared is not None:
            trust = (self._num_right + _TRUST_WEIGHT) / (self._num_expected + _TRUST_WEIGHT)
            self._trust = min(trust, 1.0)
            shared.observe(outcomes)


@cache
def source_of(kind: DraftKind) -> str:
    """A plain name for where a guess of this kind comes from, as counts are told by."""
    return _SOURCE_NAMES.get(kind[0], kind[0])


@cache
def _prior(kind: DraftKind) -> tuple[float, float]:
    """What is taken to be the chance before the first guess, and how many guesses that counts as."""
    source, number = kind
    chances = _PRIORS.get(source, _OTHER_PRIOR)
    chance = chances[min(number - (source in _FROM_ONE), len(chances) - 1)]
    return chance, _PRIOR_WEIGHT if source in _FREE else _COMPUTED_PRIOR_WEIGHT
