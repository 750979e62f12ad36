"""Which texts share a forward that takes in what slots lack of them."""

from __future__ import annotations

from collections.abc import Sequence


def next_chunks(starts: Sequence[int], lacking: Sequence[int], budget: int, max_length: int) -> dict[int, int]:
    """How many tokens of which rows the next forward takes in; none once nothing is lacking.

    Those that lack least share it as long as, padded to the widest, they fit the budget and their slots. More than the
    budget is taken in alone, one chunk at a time.

    Args:
        starts: Tokens that each row's slot holds.
        lacking: Tokens that it lacks.
        budget: Most tokens of the forward, padding included.
        max_length: Positions of a slot.
    """
    chunks: dict[int, int] = {}
    start = 0
    for row in sorted((row for row, count in enumerate(lacking) if count > 0), key=lacking.__getitem__):
        # The widest so far, as rows come by what they lack.
        width, start = min(lacking[row], budget), max(start, starts[row])
        if chunks and (width * (len(chunks) + 1) > budget or start + width > max_length):
            break
        chunks[row] = width
    return {row: chunks[row] for row in sorted(chunks)}
