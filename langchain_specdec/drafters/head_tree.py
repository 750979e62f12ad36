"""The tree that a draft head grows for one text: the likeliest tokens go on (EAGLE-2, arXiv 2406.16858).

What a token's chance is, is not what the head says it is: its own probability only sorts tokens into kinds, and the
chance of a kind is as observed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from langchain_specdec.drafters.acceptance import AcceptanceRates, DraftKind
from langchain_specdec.drafters.base import Draft, DraftLimits

NUM_BRANCHES = 8
"""Most tokens that are looked at after one of the tree."""
# Most tokens of a tree that a forward goes on from, beside those that stand before them.
_MAX_GROWN = 8
# Where kinds begin, by the head's probability of a token among those that are left after its likelier siblings.
_BEGINS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_ROOT = -1


@dataclass(frozen=True)
class HeadRow:
    """A row of a head's forward.

    Attributes:
        start: Where its first entry goes.
        tokens: Its tokens; the last ones are those that were asked for.
        parents: See `RowBatch`.
        states: What stands beside each, `[tokens, hidden]`.
    """

    start: int
    tokens: list[int]
    parents: list[int]
    states: Tensor


class HeadTree:
    """A draft that grows by levels: each forward gives what follows its likeliest tokens.

    Args:
        source: Names its kinds.
        rates: How good guesses of each kind were.
        limits: How far it may go; without nodes it is a chain.
        first: The entries up to that of the text's last token, which the first forward runs.
        max_width: Most tokens of a row in a forward.

    Attributes:
        limits: As given.
        tokens: Its tokens.
        parents: See `Draft`.
        hidden: What stands beside a token that follows a node, for nodes that forwards have gone on from; -1 is the
            text's last token.
        asked: The nodes that the coming forward goes on from.
    """

    def __init__(
        self,
        source: str,
        rates: AcceptanceRates,
        limits: DraftLimits,
        first: HeadRow,
        max_width: int,
    ) -> None:
        self._source = source
        self._rates = rates
        self.limits = limits
        self._is_chain = not limits.max_nodes
        self._max_width = max_width
        self._first = first
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._kinds: list[DraftKind] = []
        self._reaches: list[float] = []
        self._depths: list[int] = []
        self.hidden: dict[int, Tensor] = {}
        # Nodes whose entries stand in the slot after that of the text's last token, each following the one before it.
        self._standing: list[int] = []
        self.asked: list[int] = [_ROOT]

    def depth(self, node: int) -> int:
        """Draft tokens on the path to a node, itself included."""
        return 0 if node < 0 else self._depths[node]

    def path_to(self, node: int) -> list[int]:
        """Nodes that lead to a node, itself included."""
        path: list[int] = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def grow(self, candidates: Sequence[Sequence[tuple[int, float]]], hidden: Tensor) -> None:
        """Take in what a forward gave.

        Args:
            candidates: What may follow each of the nodes that were asked for, likeliest first: tokens of the target
                and the head's probabilities.
            hidden: What stands beside a token that follows each, `[asked, hidden]`.
        """
        for node, following, state in zip(self.asked, candidates, hidden, strict=True):
            self.hidden[node] = state
            self._add(node, following)
        self.asked = []

    def _add(self, parent: int, candidates: Sequence[tuple[int, float]]) -> None:
        reach = 1.0 if parent < 0 else self._reaches[parent]
        depth, left = self.depth(parent) + 1, 1.0
        if depth > self.limits.max_depth:
            return
        for rank, (token, probability) in enumerate(candidates[: 1 if self._is_chain else NUM_BRANCHES]):
            kind = (self._source, bisect_right(_BEGINS, probability / max(left, 1e-6)))
            left -= probability
            chance = reach * self._rates.rate(kind)
            reach -= chance
            if rank and chance < self.limits.min_reach:
                break
            self.tokens.append(token)
            self.parents.append(parent)
            self._kinds.append(kind)
            self._reaches.append(chance)
            self._depths.append(depth)

    def go_on(self) -> float:
        """Choose the nodes that the next forward goes on from.

        Returns:
            How many tokens that is expected to bring; 0 where no node is likely enough.
        """
        limits = self.limits
        least = 0.0 if self._is_chain else max(limits.min_reach, self._least_kept())
        open_nodes = [
            node
            for node, reach in enumerate(self._reaches)
            if node not in self.hidden and reach >= least and self._depths[node] < limits.max_depth
        ]
        open_nodes.sort(key=self._reaches.__getitem__, reverse=True)
        self.asked, run = [], {_ROOT}
        for node in open_nodes[:_MAX_GROWN]:
            if len(more := run.union(self.path_to(node))) <= self._max_width:
                self.asked.append(node)
                run = more
        rate = self._rates.rate
        return sum([self._reaches[n] * rate(level_kind(self._source, self._depths[n])) for n in self.asked])

    def _least_kept(self) -> float:
        """The chance of the last node that the draft has room for: what follows a node is no likelier than the node."""
        best = sorted(self._reaches, reverse=True)[: self.limits.max_nodes]
        return best[-1] if len(best) == self.limits.max_nodes else 0.0

    def row(self) -> HeadRow:
        """What the next forward runs: the nodes that were asked for, after those on their paths that stand nowhere."""
        if not self.hidden:
            return self._first
        paths = [self.path_to(node) for node in self.asked]
        shared = takewhile(
            lambda nodes: all(node == nodes[0] for node in nodes), zip(self._standing, *paths, strict=False)
        )
        kept = [nodes[0] for nodes in shared]
        above = {node for path in paths for node in path[:-1]}.difference(kept)
        run = [*sorted(above), *self.asked]
        place, end = self._first.start + len(self._first.tokens) + len(kept), kept[-1] if kept else _ROOT
        follow = [*takewhile(lambda pair: self.parents[pair[0]] == pair[1], zip(run, [end, *run], strict=False))]
        self._standing = [*kept, *(node for node, _ in follow)]
        if len(follow) < len(run):
            # What branches has to begin with one token.
            run, place = [end, *run], place - 1
        order = {node: index for index, node in enumerate(run)}
        tokens = [self._first.tokens[-1] if node < 0 else self.tokens[node] for node in run]
        parents = [-1, *(order[self.parents[node]] for node in run[1:])]
        states = [self._first.states[-1] if node < 0 else self.hidden[self.parents[node]] for node in run]
        return HeadRow(place, tokens, parents, torch.stack(states))

    def draft(self) -> Draft:
        """What has grown."""
        levels = tuple([level_kind(self._source, depth) for depth in range(max(self._depths, default=0))])
        return Draft(tuple(self.tokens), tuple(self.parents), tuple(self._kinds), levels)


def level_kind(source: str, depth: int) -> DraftKind:
    """What is learned of a level of a head's trees: whether one of its tokens is right."""
    return (f"{source}-level", depth)
