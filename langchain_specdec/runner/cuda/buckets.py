"""The shapes that graphs are captured for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_specdec.runner.step_inputs import WIDTHS

_MIN_LENGTH = 256


@dataclass(frozen=True)
class Bucket:
    """The shape of what a graph runs.

    Attributes:
        kind: `"verify"`: a target forward with the acceptance; `"draft"`: a draft forward that feeds the next.
        rows: Rows, padding included.
        width: Tokens per row, padding included.
        length: Positions that attention reads.
        is_sampled: Whether tokens are picked with noise.
        is_whole: Whether the rows are all slots in order.
        num_candidates: See `RowBatch`.
    """

    kind: Literal["verify", "draft"]
    rows: int
    width: int
    length: int
    is_sampled: bool
    is_whole: bool
    num_candidates: int = 0


@dataclass(frozen=True)
class Buckets:
    """How shapes are rounded up.

    Attributes:
        num_slots: Most rows.
        max_width: Most tokens of a row.
        max_length: Positions of a slot.
        is_exact: Whether rows and tokens are not rounded.
    """

    num_slots: int
    max_width: int
    max_length: int
    is_exact: bool

    @property
    def all_rows(self) -> list[int]:
        """Numbers of rows, ascending."""
        if self.is_exact:
            return list(range(1, self.num_slots + 1))
        powers = [2**i for i in range(self.num_slots.bit_length())]
        return [*(p for p in powers if p < self.num_slots), self.num_slots]

    @property
    def all_widths(self) -> list[int]:
        """Numbers of tokens, ascending."""
        return [*(w for w in WIDTHS if w < self.max_width), self.max_width]

    @property
    def all_lengths(self) -> list[int]:
        """Numbers of positions, ascending."""
        lengths = []
        length = _MIN_LENGTH
        while length < self.max_length:
            lengths.append(length)
            length *= 2
        return [*lengths, self.max_length]

    def fit(
        self,
        kind: Literal["verify", "draft"],
        slots: Sequence[int],
        start: int,
        width: int,
        *,
        is_sampled: bool,
        num_candidates: int = 0,
    ) -> Bucket | None:
        """The bucket for rows in these slots, of so many tokens from `start` on or before; None: it fits in none."""
        rows = _round_up(len(slots), self.all_rows)
        width = width if self.is_exact else _round_up(width, self.all_widths)
        length = _round_up(start + width, self.all_lengths)
        if rows > self.num_slots or width > self.max_width or length > self.max_length:
            return None
        is_whole = list(slots) == list(range(self.num_slots))
        return Bucket(kind, rows, width, length, is_sampled, is_whole, num_candidates)


def _round_up(number: int, steps: Sequence[int]) -> int:
    return next((step for step in steps if step >= number), number)
