"""Batches of every shape that decoding certain texts will have: what to make graphs with before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from langchain_specdec.runner.cuda.buckets import Buckets
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.noise import Noise


def likely_batches(
    buckets: Buckets,
    rows: int,
    starts: range,
    widths: Sequence[int],
    *,
    is_sampled: bool,
    num_candidates: int = 0,
) -> Iterator[RowBatch]:
    """One row first, then as many as there can be, since that is where requests spend their time; then the others.

    Args:
        buckets: How shapes are rounded up.
        rows: Most rows at a time.
        starts: Positions where rows may start.
        widths: How many tokens rows may have.
        is_sampled: Whether noise picks tokens.
        num_candidates: See `RowBatch`.
    """
    counts = sorted({min(count, rows) for count in buckets.all_rows}, key=lambda count: (count > 1, -count))
    all_slots = [list(range(count)) for count in counts]
    if 1 < buckets.num_slots <= rows:
        # All slots, but not in order.
        all_slots.insert(2, all_slots[1][::-1])
    for slots, length, width in product(all_slots, buckets.all_lengths, widths):
        # As far back as a row of this length can start: it has the longest text behind it.
        start = min(length - width, starts[-1])
        if start >= starts[0]:
            noise = Noise(slots, [float(is_sampled)] * len(slots))
            yield RowBatch(slots, [start] * len(slots), [[0] * width] * len(slots), None, noise, num_candidates)
