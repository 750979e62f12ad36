"""Drafts without a draft model: one tree from all that is known about what may follow.

Three sources say what may follow a run of tokens: the request's own text (`prompt_lookup`), the answers of all requests
(`answer_index`) and the target's recent candidates (`recycled_tokens`). The tree grows by the token that is most likely
to be reached, wherever it stands, so every beginning of it is the best tree of that size by the estimates at hand.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from langchain_specdec.drafters.acceptance import FORCED, AcceptanceRates, DraftKind
from langchain_specdec.drafters.answer_index import AnswerIndex
from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.prompt_lookup import NgramIndex, continue_from
from langchain_specdec.drafters.recycled_tokens import RecycledTokens
from langchain_specdec.drafters.token_runs import TOKEN_BITS, mask_of, run_of
from langchain_specdec.grammar.constraint import Constraint
from langchain_specdec.runner.verify import Verdict

_MAX_MATCH = 16
# Successors of a node are looked up by so many tokens before it.
_CONTEXT = 5
_MAX_COUNT = 4
# Children of the root that are at least this likely are in the tree even where they do not pay, to watch their rate: a
# share of what would pay.
_WATCHED_REACH = 0.02
_WATCHED_SHARE = 0.25
_CONTEXT_MASK = mask_of(_CONTEXT)
# Children of a node where width costs more than a little.
_MAX_DEAR_BRANCHES = 3
# Continuations of the answer index that are tried for a node.
_MAX_CONTINUATIONS = 3
# All kinds of guesses, made once. Of what the answer index offers, by the length of its match: the most frequent
# continuation by its count, and the others by rank.
_LOOKUP_KINDS: list[DraftKind] = [("lookup", match) for match in range(_MAX_MATCH + 1)]
_ANSWER_KINDS: dict[int, tuple[list[DraftKind], list[DraftKind]]] = {
    size: (
        [(f"shared-{size}", count) for count in range(_MAX_COUNT + 1)],
        [(f"shared-{size}-other", rank) for rank in range(_MAX_CONTINUATIONS)],
    )
    for size in (2, 4)
}
_NUM_CANDIDATES = 8
_MAX_BRANCHES = 1 + _MAX_CONTINUATIONS + _NUM_CANDIDATES
_RECYCLED_KINDS: dict[str, list[DraftKind]] = {
    source: [(source, rank) for rank in range(_NUM_CANDIDATES)] for source in ("pair", "token")
}


@dataclass
class _Memory:
    """What is remembered for one request, or for all of a namespace."""

    answers: AnswerIndex = field(default_factory=lambda: AnswerIndex(sorted(_ANSWER_KINDS)))
    recycled: RecycledTokens = field(default_factory=RecycledTokens)


@dataclass
class _Text:
    """A request's own text: its index, and how many of its tokens the answer index has counted."""

    index: NgramIndex
    num_counted: int
    memory: _Memory
    # Whether the index has all of it; a long prompt that needed no prefill is taken in over several steps.
    is_current: bool = True


class LookupTreeDrafter(Drafter):
    """Drafts trees, or chains where cost or limits allow no more.

    Args:
        max_ngram: Longest n-gram to look up in the request's own text.
        is_shared: Whether requests of a namespace draft from each other's answers and candidates. The text never
            depends on it, but how long a step takes does.
    """

    num_candidates = _NUM_CANDIDATES

    def __init__(self, max_ngram: int, *, is_shared: bool = True) -> None:
        self._max_ngram = max_ngram
        self._memories: dict[str, _Memory] | None = defaultdict(_Memory) if is_shared else None
        self._texts: dict[int, _Text] = {}

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        """Grow the tree; what is unlikely but costs nothing to watch comes last."""
        # The text is remembered even where no draft is wanted.
        text = self._text(request)
        if limits.max_depth < 1 or not (text.is_current or request.constraint is not None):
            return []
        if limits.max_nodes < 1 and request.constraint is None:
            draft = _chain(text, request.token_ids, request.rates, limits.max_depth)
            reaches = request.rates.chain(draft.kinds)
        else:
            draft, reaches = _Tree(text, request, limits).grow()
        return [Proposal(draft, reaches)] if len(draft) else []

    def observe(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
        """Note the candidates after each token that stands; what was rejected would cost as much and tell less."""
        for row, (request, path) in enumerate(zip(requests, verdict.paths, strict=True)):
            nodes, recycled = verdict.nodes[row], self._known(request).memory.recycled
            run = run_of(request.token_ids[-2:-1])
            for node in path:
                run = run << TOKEN_BITS | nodes[node] + 1
                recycled.update(run, verdict.candidates(row, node))

    def forget(self) -> None:
        """Start anew with what is shared, for requests to come."""
        if self._memories is not None:
            self._memories.clear()

    def release(self, request: DraftingRequest) -> None:
        """Drop what is the request's alone; what nothing was looked up for so far may still help others."""
        text = self._texts.pop(request.request_id, None)
        if text is not None:
            text.memory.answers.add(request.token_ids, text.num_counted)

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stops: Sequence[int]) -> None:
        """Index a prompt chunk by chunk as it is read, not all of it at the first step."""
        for request, stop in zip(requests, stops, strict=True):
            self._known(request).index.extend(request.token_ids, stop)

    def _known(self, request: DraftingRequest) -> _Text:
        text = self._texts.get(request.request_id)
        if text is None:
            memory = _Memory() if self._memories is None else self._memories[request.namespace]
            text = _Text(NgramIndex(self._max_ngram), request.num_prompt_tokens, memory)
            self._texts[request.request_id] = text
        return text

    def _text(self, request: DraftingRequest) -> _Text:
        """What is known of the request's text, taken in as far as it has come."""
        text, tokens = self._known(request), request.token_ids
        text.is_current = text.index.extend(tokens)
        if text.num_counted < len(tokens):
            text.memory.answers.add(tokens, text.num_counted)
            text.num_counted = len(tokens)
        return text


_Successor = tuple[int, DraftKind, int | None, int]
"""A token that may follow a node: its kind, and where and by what match the own text goes on after it."""

_Line = tuple[float, int, int, _Successor, int, int]
"""A node that is lined up: its chance of being reached, negated; a number that tells equals apart; its parent; itself;
the run of tokens that ends with it, and its depth."""


class _Tree:
    """A tree that grows by the likeliest node."""

    def __init__(self, text: _Text, request: DraftingRequest, limits: DraftLimits) -> None:
        self._text = text
        self._tokens = request.token_ids
        # A chain is a tree whose nodes have one child each.
        most = _MAX_DEAR_BRANCHES if limits.min_reach > _WATCHED_REACH else _MAX_BRANCHES
        self._max_branches = most if limits.max_nodes else 1
        self._limits = limits if limits.max_nodes else replace(limits, max_nodes=limits.max_depth)
        self._constraint = request.constraint
        self._rates = request.rates
        self._known_rates: dict[DraftKind, float] = {}
        self._heap: list[_Line] = []
        self._num_pushed = 0
        self._grown: list[int] = []
        self._parents: list[int] = []
        self._repetition: int | None = None

    def grow(self) -> tuple[Draft, tuple[float, ...]]:
        """The tree within the limits, likeliest nodes first, and each node's chance of being reached."""
        match, position = self._text.index.find() or (0, None)
        self._repetition = position
        self._expand(-1, 1.0, run_of(self._tokens[-_CONTEXT:]), 0, position, match)
        heap, grown, parents = self._heap, self._grown, self._parents
        kinds: list[DraftKind] = []
        reaches: list[float] = []
        max_nodes, max_depth, min_reach = self._limits.max_nodes, self._limits.max_depth, self._limits.min_reach
        while heap and len(grown) < max_nodes:
            negative_reach, _, parent, (token, kind, position, match), run, depth = heapq.heappop(heap)
            grown.append(token)
            parents.append(parent)
            kinds.append(kind)
            reaches.append(-negative_reach)
            # What follows a node is no likelier than the node.
            if -negative_reach >= min_reach and depth < max_depth and len(grown) < max_nodes:
                self._expand(len(grown) - 1, -negative_reach, run, depth, position, match)
        return Draft(tuple(grown), tuple(parents), tuple(kinds)), tuple(reaches)

    def _expand(self, place: int, reach: float, run: int, depth: int, position: int | None, match: int) -> None:
        """Line up what may follow the node at a place, whose own text goes on at `position` by a match."""
        least, rest = self._limits.min_reach, reach
        if place < 0:
            # Children of the root are watched: their rate must be known before they can pay. All of them are where
            # width is nearly free.
            least = max(_WATCHED_SHARE * least, _WATCHED_REACH) if least > _WATCHED_REACH else 0.0
        elif position is None:
            match, position = self._text.index.lookup(run) or (0, None)
        successors = self._successors(run, position, match)
        if self._constraint is not None:
            successors = self._narrowed(successors, self._constraint, place)
        known_rates = self._known_rates
        for successor in successors[: self._max_branches]:
            kind = successor[1]
            rate = known_rates.get(kind)
            if rate is None:
                rate = known_rates[kind] = self._rates.rate(kind)
            chance = rest * rate
            rest -= chance
            # The first child is watched even after many failures: a text may turn predictable.
            if chance >= least or not (self._grown or self._heap):
                self._num_pushed += 1
                following = (run << TOKEN_BITS | successor[0] + 1) & _CONTEXT_MASK
                heapq.heappush(self._heap, (-chance, self._num_pushed, place, successor, following, depth + 1))
            elif rest < least:
                break

    def _narrowed(self, successors: list[_Successor], constraint: Constraint, place: int) -> list[_Successor]:
        """What a grammar leaves of the successors of a node, or the one that it forces."""
        path: list[int] = []
        while place >= 0:
            path.append(self._grown[place])
            place = self._parents[place]
        path.reverse()
        if forced := constraint.forced_after(path):
            known = next((s for s in successors if s[0] == forced[0]), None)
            return [(forced[0], FORCED, known[2] if known else None, known[3] if known else 0)]
        allowed = constraint.allowed_after(path, [s[0] for s in successors])
        return [s for s, is_allowed in zip(successors, allowed, strict=True) if is_allowed]

    def _successors(self, run: int, position: int | None, match: int) -> list[_Successor]:
        """Tokens that may follow a run, each once: kind, and where and by what match the own text goes on."""
        memory, tokens = self._text.memory, self._tokens
        # A grammar may leave few of them.
        most = self._max_branches if self._constraint is None else _MAX_BRANCHES
        successors: list[_Successor] = []
        seen = set()
        if position is not None and position >= len(tokens):
            # The path has reached the end of the text: a repetition goes on with what the text's end would bring.
            position = self._repetition
        if position is not None:
            token = tokens[position]
            seen.add(token)
            kind = _LOOKUP_KINDS[min(match, _MAX_MATCH)]
            successors.append((token, kind, position + 1, match + 1))
        if answers := memory.answers.find(run):
            size, continuations = answers
            firsts, others = _ANSWER_KINDS[size]
            for rank, token in enumerate(continuations[: 2 * _MAX_CONTINUATIONS : 2]):
                if token not in seen:
                    seen.add(token)
                    kind = others[rank] if rank else firsts[min(continuations[1], _MAX_COUNT)]
                    successors.append((token, kind, None, 0))
        if len(successors) < most and (recycled := memory.recycled.find(run)):
            source, candidates = recycled
            for token, kind in zip(candidates[:most], _RECYCLED_KINDS[source], strict=False):
                if token not in seen:
                    seen.add(token)
                    successors.append((token, kind, None, 0))
        return successors


def _chain(text: _Text, tokens: Sequence[int], rates: AcceptanceRates, length: int) -> Draft:
    """The continuation of the own text or, where that is likelier to be right, of the answers of all requests."""
    match, position = text.index.find() or (0, None)
    kinds: list[DraftKind] = []
    chain: list[int] = []
    chain_kinds: list[DraftKind] = []
    if position is not None:
        kinds = [("lookup", min(match + i, _MAX_MATCH)) for i in range(length)]
    run = run_of(tokens[-_CONTEXT:])
    while len(chain) < length and (answers := text.memory.answers.find(run)):
        size, continuations = answers
        token, count = continuations[:2]
        kind = _ANSWER_KINDS[size][0][min(count, _MAX_COUNT)]
        if not chain and kinds and rates.rate(kinds[0]) >= rates.rate(kind):
            break
        chain.append(token)
        chain_kinds.append(kind)
        run = (run << TOKEN_BITS | token + 1) & _CONTEXT_MASK
    if chain:
        return Draft.chain(chain, chain_kinds)
    return EMPTY_DRAFT if position is None else Draft.chain(continue_from(tokens, position, length), kinds)
