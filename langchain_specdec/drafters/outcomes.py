"""Which guesses of a draft a text proved right."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_specdec.drafters.acceptance import DraftKind
from langchain_specdec.drafters.base import Draft


def outcomes(draft: Draft, tokens: Sequence[int]) -> list[tuple[DraftKind, bool]]:
    """Which guesses along the text were right, those of whole levels too.

    Siblings after the right one, and all below them, count as not tried; so does what the text has not come to yet.

    Args:
        draft: As its source proposed it, whatever of it was checked.
        tokens: What the text went on with.
    """
    outcomes: list[tuple[DraftKind, bool]] = []
    parent, depth = -1, 0
    for node, (token, above, kind) in enumerate(zip(draft.tokens, draft.parents, draft.kinds, strict=True)):
        # Parents stand before children, and earlier siblings were tried first.
        if above == parent and depth < len(tokens):
            is_right = token == tokens[depth]
            outcomes.append((kind, is_right))
            if is_right:
                parent, depth = node, depth + 1
    tried = draft.levels[: min(depth + 1, len(tokens))]
    return outcomes + [(kind, level < depth) for level, kind in enumerate(tried)]


def num_right(draft: Draft, tokens: Sequence[int]) -> int:
    """Tokens of a draft that a text went on with, one after the other."""
    parent, depth = -1, 0
    for node, (token, above) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        if above == parent and depth < len(tokens) and token == tokens[depth]:
            parent, depth = node, depth + 1
    return depth
