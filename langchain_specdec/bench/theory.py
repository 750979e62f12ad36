"""What speculation can bring, by acceptance, draft length and cost (Leviathan, Kalman and Matias 2023).

``acceptance`` is the chance that a draft token is accepted, those before it being accepted; it is taken to be the same
at every position. It is not accepted over drafted tokens, which is lower: a draft ends at its first wrong token, but
the tokens after it were drafted too.
"""

from __future__ import annotations

__all__ = ["accepted_over_drafted", "best_draft_length", "speed_up", "tokens_per_step"]


def tokens_per_step(acceptance: float, draft_length: int) -> float:
    """Expected tokens per target forward, the bonus token included: ``1 + a + a² + ... + a^g`` (their equation 1)."""
    return sum(acceptance**i for i in range(draft_length + 1))


def speed_up(acceptance: float, draft_length: int, draft_cost: float, width_cost: float = 0.0) -> float:
    """Expected speed-up over plain decoding (their theorem 3.8, with verification that may cost by width).

    Args:
        acceptance: Chance of acceptance of a draft token, from 0 to 1.
        draft_length: Tokens of a draft.
        draft_cost: Cost of a draft token, in plain target steps.
        width_cost: What each further token adds to a target forward, in plain target steps.
    """
    return tokens_per_step(acceptance, draft_length) / (1 + draft_length * (draft_cost + width_cost))


def best_draft_length(acceptance: float, draft_cost: float, width_cost: float = 0.0, longest: int = 64) -> int:
    """The draft length with the highest speed-up; 0 where none gains."""
    return max(range(longest + 1), key=lambda length: speed_up(acceptance, length, draft_cost, width_cost))


def accepted_over_drafted(acceptance: float, draft_length: int) -> float:
    """Expected share of the drafted tokens that is accepted."""
    return (tokens_per_step(acceptance, draft_length) - 1) / draft_length
