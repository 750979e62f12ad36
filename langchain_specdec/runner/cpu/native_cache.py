"""The native decoder's keys and values: one map of memory, of which only what is written takes any.

The map is made without reservation, so slots may be as long as a model allows: a page of it exists from the first token
that is written there until its slot is wiped. How it is laid out is the decoder's own affair (`decoder.h`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from langchain_specdec.runner.lazy_memory import LazyZeros

BLOCK = 16
"""Slots are a multiple of so many positions long."""


class _Mover(Protocol):
    """What knows how a slot is laid out; see `NativeDecoder`."""

    def keep(self, slot: int, start: int, offsets: Sequence[int]) -> None: ...

    def wipe(self, slot: int, start: int, stop: int) -> None: ...


class NativeCache:
    """Slots for all layers of a decoder.

    Args:
        num_layers: Layers of the decoder.
        num_slots: Completions that can be held at a time.
        max_length: Positions of a slot, a multiple of `BLOCK`.
        position_bytes: What a position takes in one layer.

    Raises:
        MemoryError: There is no room for so many addresses.

    Attributes:
        num_slots: As given.
        max_length: As given.
        bytes_per_token: What a token takes in all layers.
        decoder: What moves and wipes; set by the decoder itself.
        states: None: no layer of a decoder keeps a state.
    """

    decoder: _Mover
    states: None = None

    def __init__(self, num_layers: int, num_slots: int, max_length: int, position_bytes: int) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self._num_layers = num_layers
        self.bytes_per_token = num_layers * position_bytes
        size = self.bytes_per_token * num_slots * max_length
        try:
            pages = LazyZeros(size)
        except (OSError, OverflowError) as error:
            msg = f"{num_slots} slots of {max_length} positions take {size / 1e9:.1f} GB of addresses"
            raise MemoryError(msg) from error
        # The map goes with the last array that looks at it.
        self._memory: NDArray[np.uint8] | None = pages.array
        # Positions of each slot that may hold something since it was wiped.
        self._written = [0] * num_slots

    def __len__(self) -> int:
        """Layers."""
        return self._num_layers

    @property
    def memory(self) -> NDArray[np.uint8]:
        """All of it.

        Raises:
            RuntimeError: It was let go of.
        """
        if self._memory is None:
            msg = "these slots were let go of"
            raise RuntimeError(msg)
        return self._memory

    @property
    def num_bytes(self) -> int:
        """Memory that is in use, in bytes: that of the positions written and not wiped."""
        return self.bytes_per_token * sum(self._written)

    def note(self, slot: int, stop: int) -> None:
        """Say that a forward writes to a slot up to a position."""
        if stop > self._written[slot]:
            self._written[slot] = stop

    def keep(self, slot: int, start: int, offsets: Sequence[int], index: object = None) -> None:
        """Close the gaps that a tree's rejected branches left: what is at `start + offsets` moves to `start` on.

        Args:
            slot: The slot.
            start: Position of the first node.
            offsets: The nodes that stand, in order.
            index: Not used; see `SlotCache.keep`.
        """
        del index
        # Those in front of the first gap stand where they belong.
        gap = next((place for place, offset in enumerate(offsets) if place != offset), len(offsets))
        if gap < len(offsets):
            self.decoder.keep(slot, start + gap, [offset - gap for offset in offsets[gap:]])

    def wipe(self, slot: int, start: int = 0) -> None:
        """Have zeros in a slot from a position on, and give back its pages there.

        What is masked counts as 0 times its value, and so does no harm unless it is NaN or infinite.
        """
        stop = self._written[slot]
        if start < stop:
            self.decoder.wipe(slot, start, stop)
            self._written[slot] = start

    def resumable(self, slot: int, length: int) -> int:
        """Of the first so many tokens of a slot's text, how many can stay: all of them."""
        return length

    def release(self) -> None:
        """Let go of the memory; the decoder has to be closed by then."""
        self._memory = None
        self._written = [0] * self.num_slots
