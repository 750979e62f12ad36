"""Prompt lookup: propose what followed the last time the text ended like this.

The n-gram at the end of the text is looked up among all earlier ones of the prompt and the output, longest first, and
of equals the most recent; what followed there is the draft (Saxena 2023, "Prompt Lookup Decoding"). An index makes
each new token cost one dictionary entry per n-gram size, whatever the length of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_specdec.drafters.acceptance import FORCED, DraftKind
from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.token_runs import TOKEN_BITS, mask_of, run_of
from langchain_specdec.grammar.constraint import Constraint

_MAX_KIND = 16


# Tokens that one step indexes at most, so that a long text which was not read just now holds up nobody.
_MOST_INDEXED = 2048


class NgramIndex:
    """Where each n-gram of a growing text was last seen, for n from 1 to `max_ngram`.

    Args:
        max_ngram: Longest n-gram that is indexed.
    """

    def __init__(self, max_ngram: int) -> None:
        # What the n-grams of each n are of a run, and where they were seen.
        self._masked_tables: list[tuple[int, dict[int, int]]] = [(mask_of(n), {}) for n in range(1, max_ngram + 1)]
        # For each n: where the text went on after the last earlier occurrence of its final n-gram.
        self._continuations: list[int | None] = [None] * max_ngram
        self._run = 0
        self.num_indexed = 0
        """Tokens of the text that are in the index."""

    def extend(self, tokens: Sequence[int], stop: int | None = None) -> bool:
        """Index what `tokens` has up to `stop`, beyond what is indexed; one dictionary entry per n-gram size and token.

        At most 2048 tokens are taken at once.

        Returns:
            Whether all of them are indexed.
        """
        stop = len(tokens) if stop is None else stop
        first, last = self.num_indexed, min(stop, self.num_indexed + _MOST_INDEXED)
        if first >= last:
            return first >= stop
        run, masked_tables = self._run, self._masked_tables
        longest = masked_tables[-1][0]
        for end, token in enumerate(tokens[first : last - 1], start=first + 1):
            run = (run << TOKEN_BITS | token + 1) & longest
            # The first tokens of a text end no longer n-grams.
            for mask, table in masked_tables if end >= len(masked_tables) else masked_tables[:end]:
                table[run & mask] = end
        self._run = run = (run << TOKEN_BITS | tokens[last - 1] + 1) & longest
        for n, (mask, table) in enumerate(masked_tables[:last]):
            key = run & mask
            self._continuations[n] = table.get(key)
            table[key] = last
        self.num_indexed = last
        return last >= stop

    def find(self) -> tuple[int, int] | None:
        """The longest n-gram at the end of the text that was seen before.

        Returns:
            Its length and the index of the token that followed its most recent earlier occurrence; None if even the
            last token is new.
        """
        continuations = self._continuations
        for n in range(len(continuations), 0, -1):
            position = continuations[n - 1]
            if position is not None:
                return n, position
        return None

    def lookup(self, run: int) -> tuple[int, int] | None:
        """The longest n-gram at the end of a run that stands in the text, and where it last continued.

        Unlike `find` this takes tokens that are no part of the text yet. What the text ends with has no continuation.
        """
        n = len(self._masked_tables)
        for mask, table in reversed(self._masked_tables):
            position = table.get(run & mask)
            if position is not None and position < self.num_indexed:
                return n, position
            n -= 1
        return None


def continue_from(tokens: Sequence[int], position: int, count: int) -> list[int]:
    """What follows from `position` on; a match that overlaps the end of the text is a repetition and goes on so."""
    continuation = list(tokens[position : position + count])
    period = len(tokens) - position
    while len(continuation) < count:
        continuation.append(continuation[len(continuation) - period])
    return continuation


class PromptLookupDrafter(Drafter):
    """Drafts by n-gram lookup in the prompt and the output.

    A draft token's kind is the length of the match that leads to it: the looked-up n-gram plus the draft tokens before
    it, since those have matched too by the time it is reached.

    Args:
        max_ngram: Longest n-gram to look up; 1 to this are tried, longest first.
    """

    def __init__(self, max_ngram: int) -> None:
        self._max_ngram = max_ngram
        self._indexes: dict[int, NgramIndex] = {}

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        """The continuation found by looking up the end of the text."""
        index = self._index(request)
        # Indexed even where no draft is wanted, so that no later step has to index the whole text at once.
        if not index.extend(request.token_ids) and request.constraint is None:
            return []
        draft = _follow(index, request, limits.max_depth)
        return [Proposal(draft, request.rates.chain(draft.kinds))] if len(draft) else []

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stops: Sequence[int]) -> None:
        """Index a prompt chunk by chunk as it is read, not all of it at the first step."""
        for request, stop in zip(requests, stops, strict=True):
            self._index(request).extend(request.token_ids, stop)

    def _index(self, request: DraftingRequest) -> NgramIndex:
        index = self._indexes.get(request.request_id)
        if index is None:
            index = self._indexes[request.request_id] = NgramIndex(self._max_ngram)
        return index

    def release(self, request: DraftingRequest) -> None:
        """Drop the request's index."""
        self._indexes.pop(request.request_id, None)


def _follow(index: NgramIndex, request: DraftingRequest, length: int) -> Draft:
    """The chain that followed earlier; under a grammar what that forces, and what followed as long as it fits."""
    if request.constraint is not None:
        return _follow_grammar(index, request.token_ids, request.constraint, length)
    match = index.find()
    if match is None or length < 1:
        return EMPTY_DRAFT
    size, position = match
    chain = continue_from(request.token_ids, position, length)
    return Draft.chain(chain, [("lookup", min(size + i, _MAX_KIND)) for i in range(length)])


def _follow_grammar(index: NgramIndex, tokens: Sequence[int], constraint: Constraint, length: int) -> Draft:
    """A chain that a grammar allows: what it forces, and what followed earlier, as long as that fits."""
    chain: list[int] = []
    kinds: list[DraftKind] = []
    match = index.find()
    while len(chain) < length:
        if forced := constraint.forced_after(chain)[: length - len(chain)]:
            chain += forced
            kinds += [FORCED] * len(forced)
            match = None
            continue
        if match is None:
            match = index.lookup(run_of((*tokens[-_MAX_KIND:], *chain)[-_MAX_KIND:]))
        # A match at the end of the text would have to repeat, which the grammar need not allow.
        if match is None or match[1] >= len(tokens):
            break
        size, position = match
        if not constraint.allowed_after(chain, tokens[position : position + 1])[0]:
            break
        chain.append(tokens[position])
        kinds.append(("lookup", min(size, _MAX_KIND)))
        match = size + 1, position + 1
    return Draft.chain(chain, kinds)
