"""One tree of what several sources propose.

A token that several of them propose after the same path is one node. Which of two sources is right is not known, so
what they propose after a path stands beside each other, the likelier first, and each has the chance that those before
it leave. The tree grows by the node that is most likely to be reached, wherever it stands, so every beginning of it is
the best tree of that size by the estimates at hand.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from langchain_specdec.drafters.acceptance import FORCED, AcceptanceRates, DraftKind
from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, DraftLimits

_Place = tuple[int, int]
"""A node of a source: whose it is, and which."""

_Line = tuple[float, int, int, int, DraftKind, list[_Place]]
"""A node that is lined up: its chance of being reached, negated; a number that tells equals apart; its parent, token
and kind, and where it stands in the sources."""


def merge(drafts: Sequence[Draft], rates: AcceptanceRates, limits: DraftLimits) -> tuple[Draft, tuple[float, ...]]:
    """The tree of all drafts, likeliest nodes first; of chains, where a tree is not wanted, the most promising one.

    Args:
        drafts: What each source proposes; its siblings stand in the order in which it would try them.
        rates: How good guesses of each kind were.
        limits: How many nodes it may have, and how unlikely they may be.

    Returns:
        The tree, and each node's chance of being reached.
    """
    drafts = [draft for draft in drafts if draft.tokens]
    if not drafts:
        return EMPTY_DRAFT, ()
    if limits.max_nodes < 1:
        chains = [(draft, rates.chain(draft.kinds)) for draft in drafts]
        return max(chains, key=lambda chain: sum(chain[1]))
    return _Merger(drafts, rates, limits).grow()


class _Merger:
    """A tree that grows by the likeliest node of its sources."""

    def __init__(self, drafts: Sequence[Draft], rates: AcceptanceRates, limits: DraftLimits) -> None:
        self._drafts = drafts
        self._limits = limits
        # What follows each node of a source; the last is what follows the text, whose number is -1.
        self._children: list[list[list[int]]] = []
        for draft in drafts:
            children: list[list[int]] = [[] for _ in range(len(draft) + 1)]
            for node, parent in enumerate(draft.parents):
                children[parent].append(node)
            self._children.append(children)
        kinds = {kind for draft in drafts for kind in draft.kinds}
        self._rates = {kind: rates.rate(kind) for kind in kinds}
        self._heap: list[_Line] = []
        self._num_pushed = 0

    def grow(self) -> tuple[Draft, tuple[float, ...]]:
        """See `merge`."""
        tokens: list[int] = []
        parents: list[int] = []
        kinds: list[DraftKind] = []
        reaches: list[float] = []
        self._expand(-1, 1.0, [(source, -1) for source in range(len(self._drafts))])
        while self._heap and len(tokens) < self._limits.max_nodes:
            negative_reach, _, parent, token, kind, places = heapq.heappop(self._heap)
            tokens.append(token)
            parents.append(parent)
            kinds.append(kind)
            reaches.append(-negative_reach)
            self._expand(len(tokens) - 1, -negative_reach, places)
        return Draft(tuple(tokens), tuple(parents), tuple(kinds)), tuple(reaches)

    def _expand(self, place: int, reach: float, above: Sequence[_Place]) -> None:
        """Line up what the sources have after a node, which stands in them at the places `above`."""
        queues = [[(s, node) for node in self._children[s][parent]] for s, parent in above]
        queues = [queue for queue in queues if queue]
        rest = reach
        while queues:
            # A source's own order stays: a rate holds where those before it are wrong.
            token = self._token(max((queue[0] for queue in queues), key=self._rank))
            places = [p for queue in queues for p in queue if self._token(p) == token]
            queues = [left for queue in queues if (left := [p for p in queue if self._token(p) != token])]
            source, node = max(places, key=self._rank)
            kind = self._drafts[source].kinds[node]
            chance = rest * self._rates[kind]
            rest -= chance
            if chance >= self._limits.min_reach:
                self._num_pushed += 1
                heapq.heappush(self._heap, (-chance, self._num_pushed, place, token, kind, places))
            if kind == FORCED or rest < self._limits.min_reach:
                break

    def _token(self, place: _Place) -> int:
        return self._drafts[place[0]].tokens[place[1]]

    def _rank(self, place: _Place) -> tuple[bool, float]:
        """What is forced comes first, and is no guess whoever else guesses it."""
        kind = self._drafts[place[0]].kinds[place[1]]
        return kind == FORCED, self._rates[kind]
