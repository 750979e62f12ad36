"""Which texts of a step may draft, and how far."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_specdec.engine.request import Request
from langchain_specdec.engine.step_cost import StepCost

# So many rows that are not padded draft in turn.
_FEW = 2
# All of them draft where a token more in each costs less than this share of the step.
_DEAR_TOKENS = 0.6


def depths_of_all(requests: Sequence[Request], most: int) -> dict[int, int]:
    """How far each row may draft: the target always adds a token of its own, so the last one need not be drafted."""
    return {row: min(most, request.num_remaining - 1) for row, request in enumerate(requests)}


def depths_unpadded(requests: Sequence[Request], most: int, cost: StepCost | None) -> dict[int, int]:
    """How far the rows may draft that may: all, or where nearly all of a step is for its tokens, the last to end.

    There a token costs its row as much as the place in a later step that it may save. What a step costs beside its
    rows is saved only where the text that ends last gets on, and until another one ends last.
    """
    depths = depths_of_all(requests, most)
    if len(requests) == 1:
        return depths
    if cost is not None:
        plain, wide = (cost.verify_seconds(len(requests), width) for width in (1, 2))
        if wide < (1 + _DEAR_TOKENS) * plain:
            return depths
    remaining = [request.num_remaining for request in requests]
    last, *others = sorted(remaining, reverse=True)
    leader = remaining.index(last)
    if len(requests) > _FEW and requests[leader].constraint is None:
        # Of few, another one soon gets on by drafts of its own.
        depths[leader] = min(depths[leader], last - others[0])
    # What a grammar forces is never passed over.
    return {row: depth for row, depth in depths.items() if (row == leader and depth) or requests[row].constraint}
