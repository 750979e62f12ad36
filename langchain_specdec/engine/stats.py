"""Counts of what speculation did, each figure with its definition."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SpeculationStats"]


@dataclass
class SpeculationStats:
    """Counts of one request, or their sum over several.

    Attributes:
        drafted_tokens: Tokens proposed and checked by the target.
        accepted_tokens: Drafted tokens that became part of the text.
        num_steps: Target forwards that decoded for the request; prefill apart.
        emitted_tokens: Tokens of the text, those that the target wrote itself included.
        decode_seconds: Wall time from the start of the first decoding step to the end of the last. Of a server: from
            the first token's arrival to the last one's.
        is_reported: Whether the counts are known. A server that keeps them to itself leaves them at 0, and `as_dict`
            gives None for them.
    """

    drafted_tokens: int = 0
    accepted_tokens: int = 0
    num_steps: int = 0
    emitted_tokens: int = 0
    decode_seconds: float = 0.0
    is_reported: bool = True

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 where nothing was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Emitted tokens over target forwards, the bonus token included; 1 is plain decoding."""
        return self.emitted_tokens / self.num_steps if self.num_steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Emitted tokens over decode time."""
        return self.emitted_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def __add__(self, other: SpeculationStats) -> SpeculationStats:
        return SpeculationStats(
            self.drafted_tokens + other.drafted_tokens,
            self.accepted_tokens + other.accepted_tokens,
            self.num_steps + other.num_steps,
            self.emitted_tokens + other.emitted_tokens,
            self.decode_seconds + other.decode_seconds,
            self.is_reported and other.is_reported,
        )

    def as_dict(self) -> dict[str, int | float | str | None]:
        """Counts and rates as plain values, for `generation_info` and JSON."""
        if not self.is_reported:
            unknown = ("drafted_tokens", "accepted_tokens", "num_steps", "acceptance_rate", "tokens_per_step")
            return {
                **dict.fromkeys(unknown),
                "decode_seconds": round(self.decode_seconds, 6),
                "note": "the server does not report speculation per request",
            }
        return {
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "num_steps": self.num_steps,
            "acceptance_rate": round(self.acceptance_rate, 4),
            "tokens_per_step": round(self.tokens_per_step, 4),
            "decode_seconds": round(self.decode_seconds, 6),
        }
