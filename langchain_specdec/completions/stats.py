"""Counts of what speculation did, each figure with its definition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import Any


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
        plain_seconds: Time that plain decoding would have needed for the same tokens. Each token counts as one plain
            step, V(rows, 1), with as many rows as its own step had. 0 where costs were not measured.
        predicted_seconds: Time that the steps were expected to take when their drafts were chosen, drafting included.
        predicted_plain_seconds: Time that plain decoding would need, at V(rows, 1) a token, for the tokens that these
            steps were expected to bring.
        forced_tokens: Accepted tokens that were no guess, because the grammar of the text allowed no other.
        is_reported: Whether the counts are known. A server that keeps them to itself leaves them at 0, and `as_dict`
            gives None for them.
        drafted_per_position: Steps whose draft had a token at the first place after the text, the second, and so on; of
            a tree, however many tokens it had there.
        accepted_per_position: Steps whose draft token at that place became part of the text; they sum up to
            `accepted_tokens`.
        drafted_by_source: Drafted tokens by where they came from: "lookup" (the text itself), "answers" (earlier ones),
            "recycled" (the target's earlier candidates), "draft_model", "eagle3", "mtp" and "assistant" (trained
            heads), "grammar" (forced). A token that several had is counted where it was likeliest.
        accepted_by_source: Those of them that became part of the text.
    """

    drafted_tokens: int = 0
    accepted_tokens: int = 0
    num_steps: int = 0
    emitted_tokens: int = 0
    decode_seconds: float = 0.0
    plain_seconds: float = 0.0
    predicted_seconds: float = 0.0
    predicted_plain_seconds: float = 0.0
    forced_tokens: int = 0
    is_reported: bool = True
    drafted_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)
    drafted_by_source: dict[str, int] = field(default_factory=dict)
    accepted_by_source: dict[str, int] = field(default_factory=dict)

    def add_positions(self, drafted: int, accepted: int) -> None:
        """Count a step by place in the draft.

        Args:
            drafted: Places that its draft reached.
            accepted: Places whose token became part of the text.
        """
        for counts, reached in (self.drafted_per_position, drafted), (self.accepted_per_position, accepted):
            counts.extend([0] * (drafted - len(counts)))
            for place in range(reached):
                counts[place] += 1

    def add_sources(self, drafted: Iterable[str], accepted: Iterable[str]) -> None:
        """Count the tokens of a step's draft, and those that became part of the text, each by where it came from."""
        for counts, sources in (self.drafted_by_source, drafted), (self.accepted_by_source, accepted):
            for source in sources:
                counts[source] = counts.get(source, 0) + 1

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

    @property
    def predicted_gain(self) -> float:
        """Tokens per second that the choice of drafts promised, over those of plain decoding by the same costs.

        `predicted_plain_seconds / predicted_seconds`; 0 where no choice was made by cost.
        """
        return self.predicted_plain_seconds / self.predicted_seconds if self.predicted_seconds else 0.0

    @property
    def observed_gain(self) -> float:
        """Tokens per second over those of plain decoding, by the clock: `plain_seconds / decode_seconds`.

        Only the cost of a plain step is measured apart; the time is this run's. Other work of the engine in between,
        such as reading other prompts, lowers the figure. 0 where costs were not measured.
        """
        return self.plain_seconds / self.decode_seconds if self.decode_seconds else 0.0

    def __add__(self, other: SpeculationStats) -> SpeculationStats:
        names = [f.name for f in fields(self) if f.name != "is_reported"]
        sums: dict[str, Any] = {name: _sum(getattr(self, name), getattr(other, name)) for name in names}
        return SpeculationStats(**sums, is_reported=self.is_reported and other.is_reported)

    def as_dict(self) -> dict[str, int | float | str | list[int] | dict[str, int] | None]:
        """Counts and rates as plain values, for `generation_info` and JSON."""
        info: dict[str, int | float | str | list[int] | dict[str, int] | None] = {
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "forced_tokens": self.forced_tokens,
            "num_steps": self.num_steps,
            "acceptance_rate": round(self.acceptance_rate, 4),
            "tokens_per_step": round(self.tokens_per_step, 4),
            "drafted_per_position": list(self.drafted_per_position),
            "accepted_per_position": list(self.accepted_per_position),
            "drafted_by_source": dict(self.drafted_by_source),
            "accepted_by_source": dict(self.accepted_by_source),
        }
        seconds = {"decode_seconds": round(self.decode_seconds, 6)}
        if not self.is_reported:
            return {**dict.fromkeys(info), **seconds, "note": "the server does not report speculation per request"}
        gains = {"predicted_gain": round(self.predicted_gain, 4), "observed_gain": round(self.observed_gain, 4)}
        return {**info, **seconds, **gains}


def _sum(mine: Any, theirs: Any) -> Any:
    """The sum of two counts, or of two lists or dictionaries of them."""
    if isinstance(mine, list):
        return [a + b for a, b in zip_longest(mine, theirs, fillvalue=0)]
    if isinstance(mine, dict):
        return {name: mine.get(name, 0) + theirs.get(name, 0) for name in {**mine, **theirs}}
    return mine + theirs
