"""Prompt lookup: propose what followed the last time the text ended like this.

The n-gram at the end of the text is looked up among all earlier ones of the prompt and the output, longest first, and
of equals the most recent; what followed there is the draft (Saxena 2023, "Prompt Lookup Decoding"). An index makes
each new token cost one dictionary entry per n-gram size, whatever the length of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_specdec.drafters.acceptance import FORCED, DraftKind
from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.grammar.constraint import Constraint

_MAX_KIND = 16


class NgramIndex:
    """Where each n-gram of a growing text was last seen, for n from 1 to `max_ngram`.

    Args:
        max_ngram: Longest n-gram that is indexed.
    """

    def __init__(self, max_ngram: int) -> None:
        self._tables: list[dict[object, int]] = [{} for _ in range(max_ngram)]
        # For each n: where the text went on after the last earlier occurrence of its final n-gram.
        self._continuations: list[int | None] = [None] * max_ngram
        self._num_indexed = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Index what `tokens` has beyond what is indexed; one dictionary entry per n-gram size and token."""
        for end in range(self._num_indexed + 1, len(tokens) + 1):
            for n, table in enumerate(self._tables, start=1):
                if n > end:
                    break
                key: object = tokens[end - 1] if n == 1 else tuple(tokens[end - n : end])
                self._continuations[n - 1] = table.get(key)
                table[key] = end
        self._num_indexed = max(self._num_indexed, len(tokens))

    def find(self) -> tuple[int, int] | None:
        """The longest n-gram at the end of the text that was seen before.

        Returns:
            Its length and the index of the token that followed its most recent earlier occurrence; None if even the
            last token is new.
        """
        for n in range(len(self._continuations), 0, -1):
            position = self._continuations[n - 1]
            if position is not None:
                return n, position
        return None

    def lookup(self, context: tuple[int, ...]) -> tuple[int, int] | None:
        """The longest n-gram at the end of `context` that stands in the text, and where it last continued.

        Unlike `find` this takes tokens that are no part of the text yet. What the text ends with has no continuation.
        """
        for n in range(min(len(context), len(self._tables)), 0, -1):
            position = self._tables[n - 1].get(context[-1] if n == 1 else context[-n:])
            if position is not None and position < self._num_indexed:
                return n, position
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
        index = self._indexes.setdefault(request.request_id, NgramIndex(self._max_ngram))
        # Indexed even where no draft is wanted, so that no later step has to index the whole text at once.
        index.extend(request.token_ids)
        draft = _follow(index, request, limits.max_depth)
        return [Proposal(draft, request.rates.chain(draft.kinds))] if len(draft) else []

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
            match = index.lookup((*tokens[-_MAX_KIND:], *chain)[-_MAX_KIND:])
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
