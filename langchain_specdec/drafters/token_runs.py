"""Runs of tokens as single numbers, which cost less to make, to look up and to keep than tuples.

The last token has the lowest bits, so a run goes on by a shift, and its last n tokens are a mask of it.
"""

from __future__ import annotations

from collections.abc import Sequence

# More tokens than any vocabulary has. With others, two runs may be taken for one, which only makes a worse draft.
TOKEN_BITS = 21


def run_of(tokens: Sequence[int]) -> int:
    """Tokens as a run. Each counts from 1, so runs of different lengths differ."""
    run = 0
    for token in tokens:
        run = run << TOKEN_BITS | token + 1
    return run


def mask_of(count: int) -> int:
    """What is left of a run by this mask are its last `count` tokens."""
    return (1 << TOKEN_BITS * count) - 1
