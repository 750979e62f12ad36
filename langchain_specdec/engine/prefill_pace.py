"""How many prompt tokens one forward takes, so that texts that go on meanwhile do not stand still."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# A chunk may take the time of so many decoding steps while texts go on.
_STEPS_PER_CHUNK = 4.0
# Fewer tokens cost about as much: reading the weights, or far along in a prompt its keys, bounds the forward.
_LEAST_CHUNK = 8
# Taken before costs are known.
_FIRST_CHUNK = 32
# Where nobody waits, a chunk may take so many seconds: whoever comes meanwhile, or closes the engine, waits for it.
_ALONE_SECONDS = 1.0
# Fewer tokens would read slower by reading the weights more often.
_LEAST_ALONE = 128
# How much one forward moves an estimate, and by what factor at most: the machine may have been elsewhere meanwhile.
_WEIGHT = 0.5
_MOST_CHANGE = 2.0


class PrefillPace:
    """The size of chunks, by what forwards have cost.

    Args:
        prefill_chunk: Most tokens of a chunk.
        is_adaptive: Whether chunks shrink while texts go on, and where one would take long; not on a GPU, where a whole
            chunk is short and the host does not see what it takes.
    """

    def __init__(self, prefill_chunk: int, *, is_adaptive: bool) -> None:
        self._prefill_chunk = prefill_chunk
        self._is_adaptive = is_adaptive
        self._seconds_per_token = 0.0
        self._seconds_per_step = 0.0

    def chunk(self, num_decoding: int, num_reading: int) -> int:
        """Most tokens, padding included, of the next prefill forward.

        Args:
            num_decoding: Texts that go on, and wait for it.
            num_reading: Prompts that are to be read. While they are more, a chunk may take as much longer.
        """
        if not self._is_adaptive:
            return self._prefill_chunk
        if not num_decoding:
            return self._within(_ALONE_SECONDS, _LEAST_ALONE) if self._seconds_per_token else self._prefill_chunk
        if not (self._seconds_per_token and self._seconds_per_step):
            return min(_FIRST_CHUNK, self._prefill_chunk)
        seconds = _STEPS_PER_CHUNK * self._seconds_per_step * max(1.0, num_reading / num_decoding)
        return self._within(seconds, _LEAST_CHUNK)

    def _within(self, seconds: float, least: int) -> int:
        return min(max(int(seconds / self._seconds_per_token), least), self._prefill_chunk)

    @contextmanager
    def reading(self, num_tokens: int) -> Iterator[None]:
        """Learn what the prefill forward within takes."""
        started = time.perf_counter()
        yield
        self.observe_prefill(num_tokens, time.perf_counter() - started)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Learn what the decoding step within takes."""
        started = time.perf_counter()
        yield
        self.observe_step(time.perf_counter() - started)

    def observe_prefill(self, num_tokens: int, seconds: float) -> None:
        """Learn what a prefill forward of so many tokens, padding included, took."""
        self._seconds_per_token = _moved(self._seconds_per_token, seconds / num_tokens)

    def observe_step(self, seconds: float) -> None:
        """Learn what a decoding step took."""
        self._seconds_per_step = _moved(self._seconds_per_step, seconds)


def _moved(estimate: float, seen: float) -> float:
    if not estimate:
        return seen
    return estimate + _WEIGHT * (min(max(seen, estimate / _MOST_CHANGE), estimate * _MOST_CHANGE) - estimate)
