"""Drafts without a draft model: one tree from all that is known about what may follow.

Three sources say what may follow a run of tokens: the request's own text (`prompt_lookup`), the answers of all requests
(`shared_index`) and the target's recent candidates (`candidates`). The tree grows by the token that is most likely to
be reached, wherever it stands, so that every size of it is the best of that size by the estimates at hand.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from langchain_specdec.drafters.answer_index import SharedIndex
from langchain_specdec.drafters.base import (
    EMPTY_DRAFT,
    FORCED,
    Draft,
    DraftConstraint,
    DraftingRequest,
    DraftKind,
    DraftLimits,
    Proposal,
    Rates,
)
from langchain_specdec.drafters.prompt_lookup import NgramIndex, continue_from
from langchain_specdec.drafters.recycled_tokens import CandidateTable
from langchain_specdec.sampling.choice import TokenHistory
from langchain_specdec.sampling.top_tokens import top_tokens

__all__ = ["TreeDrafter"]

_MAX_MATCH = 16
# Tokens before a node that its successors are looked up by.
_CONTEXT = 5
_MAX_COUNT = 4
# Tokens next to the text that are at least that likely are in the tree even where they would not pay.
_WATCHED_REACH = 0.02
_NUM_CANDIDATES = 8
# The names of the shared index's kinds: of the most frequent continuation, and of the others.
_SHARED_KINDS = {2: ("shared-2", "shared-2-other"), 4: ("shared-4", "shared-4-other")}
# Continuations of the shared index that are tried for a node.
_NUM_SHARED = 3


@dataclass
class _Memory:
    """What is remembered for one request, or for all of them."""

    shared: SharedIndex = field(default_factory=lambda: SharedIndex(sorted(_SHARED_KINDS)))
    candidates: CandidateTable = field(default_factory=CandidateTable)


@dataclass
class _Text:
    """A request's own text: its index, and how much of it stands in the shared one."""

    index: NgramIndex
    num_shared: int
    memory: _Memory


class TreeDrafter:
    """Drafts trees, or chains where cost or limits allow no more.

    Args:
        max_ngram: Longest n-gram to look up in the request's own text.
        is_shared: Whether requests draft from each other's answers and candidates. The text never depends on it, but
            how long a step takes does.
    """

    def __init__(self, max_ngram: int, *, is_shared: bool = True) -> None:
        self._max_ngram = max_ngram
        self._memory = _Memory() if is_shared else None
        self._texts: dict[int, _Text] = {}

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stop: Sequence[int]) -> None:
        """Nothing: the whole prompt is indexed when the first draft is asked for."""

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Proposal:
        """Grow the tree; what is unlikely but costs nothing to watch comes last."""
        text = self._text(request)
        if limits.max_depth < 1:
            return Proposal()
        constraint = request.constraint
        if limits.max_nodes < 1 and constraint is None:
            draft = _chain(text, request.token_ids, request.rates, limits.max_depth)
        else:
            draft = _Tree(text, request.token_ids, request.rates, limits, constraint).grow()
        return Proposal(draft, draft.kinds)

    def propose(
        self,
        requests: Sequence[DraftingRequest],
        proposals: Sequence[Proposal],
        lengths: Sequence[int],
        history: TokenHistory | None,
    ) -> list[Draft]:
        """The trees, cut to the lengths."""
        return [p.draft.cut(n) if n else EMPTY_DRAFT for p, n in zip(proposals, lengths, strict=True)]

    def observe(
        self,
        requests: Sequence[DraftingRequest],
        nodes: Sequence[Sequence[int]],
        paths: Sequence[Sequence[int]],
        logits: Tensor,
    ) -> None:
        """Note the candidates after each token that stands; what was rejected would cost as much and tell less."""
        rows = [row for row, path in enumerate(paths) for _ in path]
        places = [node for path in paths for node in path]
        best = iter(top_tokens(logits[rows, places], _NUM_CANDIDATES).tolist())
        for request, row_nodes, path in zip(requests, nodes, paths, strict=True):
            candidates = self._text(request).memory.candidates
            before = request.token_ids[-2] if len(request.token_ids) > 1 else None
            for node in path:
                candidates.update(before, row_nodes[node], next(best))
                before = row_nodes[node]

    def measure_step(self, request: DraftingRequest) -> float:
        """Free."""
        return 0.0

    def forget(self) -> None:
        """Start anew with what is shared, for requests to come."""
        if self._memory is not None:
            self._memory = _Memory()

    def release(self, request: DraftingRequest) -> None:
        """Drop what is the request's alone."""
        self._texts.pop(request.request_id, None)

    def _text(self, request: DraftingRequest) -> _Text:
        text = self._texts.get(request.request_id)
        if text is None:
            text = _Text(NgramIndex(self._max_ngram), request.num_prompt_tokens, self._memory or _Memory())
            self._texts[request.request_id] = text
        text.index.extend(request.token_ids)
        text.memory.shared.add(request.token_ids, text.num_shared)
        text.num_shared = len(request.token_ids)
        return text


_Successor = tuple[int, DraftKind, int | None, int]
"""A token that may follow a node: its kind, and where and by what match the own text goes on after it."""


@dataclass(slots=True)
class _Node:
    """A token that may be drafted: where it would stand and what is known of what follows it.

    `position` is where the own text goes on after it, if it was found there, by a match of `match` tokens.
    """

    parent: int
    token: int
    kind: DraftKind
    depth: int
    context: tuple[int, ...]
    position: int | None
    match: int


class _Tree:
    """A tree that grows by the likeliest node."""

    def __init__(
        self, text: _Text, tokens: Sequence[int], rates: Rates, limits: DraftLimits, constraint: DraftConstraint | None
    ) -> None:
        self._text = text
        self._tokens = tokens
        # A chain is grown as a tree whose nodes have one successor each.
        self._max_branches = None if limits.max_nodes else 1
        self._limits = limits if limits.max_nodes else replace(limits, max_nodes=limits.max_depth)
        self._constraint = constraint
        self._rates = rates
        self._known_rates: dict[DraftKind, float] = {}
        self._heap: list[tuple[float, int, _Node]] = []
        self._num_pushed = 0
        self._grown: list[_Node] = []
        self._repetition: int | None = None

    def grow(self) -> Draft:
        """The tree within the limits, likeliest nodes first."""
        match, position = self._text.index.find() or (0, None)
        self._repetition = position
        self._expand(-1, 1.0, _Node(-2, -1, ("", 0), 0, tuple(self._tokens[-_CONTEXT:]), position, match))
        grown, max_nodes, max_depth = self._grown, self._limits.max_nodes, self._limits.max_depth
        while self._heap and len(grown) < max_nodes:
            negative_reach, _, node = heapq.heappop(self._heap)
            grown.append(node)
            if node.depth < max_depth and len(grown) < max_nodes:
                self._expand(len(grown) - 1, -negative_reach, node)
        return Draft(tuple(n.token for n in grown), tuple(n.parent for n in grown), tuple(n.kind for n in grown))

    def _expand(self, place: int, reach: float, node: _Node) -> None:
        """Line up what may follow the node."""
        least, rest, context = self._limits.min_reach, reach, node.context
        if place < 0:
            # The root's successors are watched: how good they are has to be known before they can pay. Where width is
            # nearly free all of them may.
            least = _WATCHED_REACH if least > _WATCHED_REACH else 0.0
        successors = self._successors(place, node)
        if self._constraint is not None:
            successors = self._narrowed(successors, self._constraint, place)
        for token, kind, position, match in successors[: self._max_branches]:
            rate = self._known_rates.get(kind)
            if rate is None:
                rate = self._known_rates[kind] = self._rates.rate(kind)
            chance = rest * rate
            rest -= chance
            # The first one is watched even where it was wrong so often that it seems hopeless: texts change.
            if chance >= least or not (self._grown or self._heap):
                self._num_pushed += 1
                following = (*context[1 - _CONTEXT :], token)
                child = _Node(place, token, kind, node.depth + 1, following, position, match)
                heapq.heappush(self._heap, (-chance, self._num_pushed, child))
            elif rest < least:
                break

    def _narrowed(self, successors: list[_Successor], constraint: DraftConstraint, place: int) -> list[_Successor]:
        """What a grammar leaves of the successors of a node, or the one that it forces."""
        path: list[int] = []
        while place >= 0:
            path.append(self._grown[place].token)
            place = self._grown[place].parent
        path.reverse()
        if forced := constraint.forced_after(path):
            known = next((s for s in successors if s[0] == forced[0]), None)
            return [(forced[0], FORCED, known[2] if known else None, known[3] if known else 0)]
        allowed = constraint.allowed_after(path, [s[0] for s in successors])
        return [s for s, is_allowed in zip(successors, allowed, strict=True) if is_allowed]

    def _successors(self, place: int, node: _Node) -> list[_Successor]:
        """Tokens that may follow the node, each once: kind, and where and by what match the own text goes on."""
        context, position, match = node.context, node.position, node.match
        memory = self._text.memory
        if position is None and place >= 0:
            match, position = self._text.index.lookup(context) or (0, None)
        successors: list[_Successor] = []
        seen = set()
        if position is not None and position >= len(self._tokens):
            # The path ends as the text does, so it goes on as the text would: a repetition goes on as one.
            position = self._repetition
        if position is not None:
            token = self._tokens[position]
            seen.add(token)
            successors.append((token, ("lookup", min(match, _MAX_MATCH)), position + 1, match + 1))
        if found := memory.shared.find(context):
            size, continuations = found
            first, others = _SHARED_KINDS[size]
            for rank, (token, count) in enumerate(continuations[:_NUM_SHARED]):
                if token not in seen:
                    seen.add(token)
                    kind = (others, rank) if rank else (first, min(count, _MAX_COUNT))
                    successors.append((token, kind, None, 0))
        if candidates := memory.candidates.find(context):
            source, tokens = candidates
            for rank, token in enumerate(tokens):
                if token not in seen:
                    seen.add(token)
                    successors.append((token, (source, rank), None, 0))
        return successors


def _chain(text: _Text, tokens: Sequence[int], rates: Rates, length: int) -> Draft:
    """The continuation of the own text or, where that is likelier to be right, of the answers of all requests."""
    match, position = text.index.find() or (0, None)
    kinds: list[DraftKind] = []
    chain: list[int] = []
    shared_kinds: list[DraftKind] = []
    if position is not None:
        kinds = [("lookup", min(match + i, _MAX_MATCH)) for i in range(length)]
    context = tuple(tokens[-_CONTEXT:])
    while len(chain) < length and (found := text.memory.shared.find(context)):
        size, continuations = found
        token, count = continuations[0]
        kind = (_SHARED_KINDS[size][0], min(count, _MAX_COUNT))
        if not chain and kinds and rates.rate(kinds[0]) >= rates.rate(kind):
            break
        chain.append(token)
        shared_kinds.append(kind)
        context = (*context[1 - _CONTEXT :], token)
    if chain:
        return Draft.chain(chain, shared_kinds)
    return EMPTY_DRAFT if position is None else Draft.chain(continue_from(tokens, position, length), kinds)
