"""What a native forward reads of its rows and writes, in arrays that stay, but for tapped states."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import numpy as np
from numpy.typing import NDArray

from langchain_specdec.runner.cpu.decoder_weights import Floats
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.noise import seed_halves

Counts = NDArray[np.int64]


class Step(ctypes.Structure):
    """The rows of a forward, as `decoder.h` has them; None is a null pointer."""

    _fields_ = (
        ("rows", c_int64),
        ("width", c_int64),
        *((name, c_void_p) for name in ("tokens", "counts", "slots", "starts", "depths", "ancestors", "logits")),
        *((name, c_void_p) for name in ("wanted", "temperatures", "seeds", "picks", "scores")),
        ("candidates", c_int64),
        ("best", c_void_p),
        ("chances", c_void_p),
        ("taps", c_int64),
        ("points", c_void_p),
        ("states", c_void_p),
        ("hidden", c_void_p),
    )


class NativeStep:
    """The rows of one forward after the other.

    Args:
        vocab_size: Of the model.
        hidden: Numbers of a state.
    """

    def __init__(self, vocab_size: int, hidden: int) -> None:
        self._vocab_size = vocab_size
        self._hidden = hidden
        self._points = np.empty(0, np.int64)
        self._step = Step()
        self._num_tokens = self._num_rows = self._num_pairs = self._num_best = self._num_logits = 0
        self._best, self._chances = np.empty(0, np.int64), np.empty(0, np.float32)
        self._logits: Floats = np.empty((0, vocab_size), np.float32)
        self._states: Floats = np.empty((0, 0, 0, hidden), np.float32)
        self._given: Floats = np.empty((0, hidden), np.float32)
        self._reserve_rows(8)
        self._reserve_tokens(64)

    def tap(self, points: Sequence[int]) -> None:
        """Have the states that enter these layers; see `taps`."""
        self._points = np.array(points, np.int64)
        self._step.taps, self._step.points = len(points), self._points.ctypes.data

    def _reserve_rows(self, count: int) -> None:
        self._num_rows = count
        self._counts, self._slots, self._starts, self._wanted = (np.zeros(count, np.int64) for _ in range(4))
        self._ones = np.ones(count, np.int64)
        self._temperatures, self._seeds = np.zeros(count, np.float32), np.zeros((count, 2), np.int32)
        step = self._step
        step.counts, step.slots, step.starts = (a.ctypes.data for a in (self._counts, self._slots, self._starts))
        self._wanted_address, self._ones_address = self._wanted.ctypes.data, self._ones.ctypes.data

    def _reserve_tokens(self, count: int) -> None:
        self._num_tokens = count
        self._tokens, self._depths, self._picks = (np.zeros(count, np.int64) for _ in range(3))
        self._step.tokens, self._picks_address = self._tokens.ctypes.data, self._picks.ctypes.data

    def fill(
        self,
        batch: RowBatch,
        *,
        has_logits: bool = False,
        last_only: bool = False,
        picks: bool = False,
        chances: bool = False,
        hidden: Sequence[Floats] | None = None,
        wanted: Sequence[int] | None = None,
    ) -> Step:
        """Take a batch in.

        Args:
            batch: The rows; their noise and candidates count where picks are wanted.
            has_logits: Whether logits are wanted; without, only keys and values are kept.
            last_only: Whether results are wanted of the last token of each row alone; they stand at its place.
            picks: Whether what is picked after each token is wanted, and the best tokens.
            chances: Whether the chances of the best tokens are wanted beside them.
            hidden: States that a draft head is given with each row's tokens, `[tokens of the row, hidden]`; None for
                other decoders.
            wanted: Of how many of its last tokens results are wanted, for each row; None: of all.

        Returns:
            What the decoder is run with. Results stand in these arrays until the next call.
        """
        rows, width, step = len(batch.slots), batch.width, self._step
        if rows > self._num_rows:
            self._reserve_rows(rows)
        if rows * width > self._num_tokens:
            self._reserve_tokens(max(rows * width, 2 * self._num_tokens))
        step.rows, step.width = rows, width
        if width == 1:
            self._tokens[:rows], self._counts[:rows] = [tokens[0] for tokens in batch.tokens], 1
        else:
            for row, tokens in enumerate(batch.tokens):
                begin = row * width
                self._tokens[begin : begin + len(tokens)] = tokens
                self._counts[row] = len(tokens)
        self._slots[:rows], self._starts[:rows] = batch.slots, batch.starts
        if batch.is_chain:
            step.depths = step.ancestors = None
        else:
            self._fill_trees(batch.parents or (), rows, width)
        if points := len(self._points):
            self._states = np.empty((rows, width, points, self._hidden), np.float32)
            step.states = self._states.ctypes.data
        step.hidden = None if hidden is None else self._fill_hidden(hidden, rows, width)
        step.wanted = self._ones_address if last_only else None
        if wanted is not None:
            self._wanted[:rows], step.wanted = wanted, self._wanted_address
        step.logits = self._room_for_logits(rows * width) if has_logits else None
        # Nobody asks for the logits of picks, which stay a null pointer.
        step.picks = self._picks_address if picks else None
        noise = batch.noise if picks else None
        if noise is not None and noise.is_sampled:
            self._temperatures[:rows], self._seeds[:rows] = noise.temperatures, seed_halves(noise.seeds)
            step.temperatures, step.seeds = self._temperatures.ctypes.data, self._seeds.ctypes.data
        else:
            step.temperatures = step.seeds = None
        step.candidates = min(batch.num_candidates, self._vocab_size) if picks else 0
        if step.candidates:
            if (size := step.candidates * rows * width) > self._num_best:
                self._num_best, self._best, self._chances = size, np.zeros(size, np.int64), np.zeros(size, np.float32)
            step.best = self._best.ctypes.data
            step.chances = self._chances.ctypes.data if chances else None
        else:
            step.best = step.chances = None
        return step

    def _fill_hidden(self, hidden: Sequence[Floats], rows: int, width: int) -> int:
        if (count := rows * width) > len(self._given):
            self._given = np.empty((max(count, 2 * len(self._given)), self._hidden), np.float32)
        for row, states in enumerate(hidden):
            self._given[row * width : row * width + len(states)] = states
        return int(self._given.ctypes.data)

    def _fill_trees(self, parents: Sequence[Sequence[int]], rows: int, width: int) -> None:
        if rows * width * width > self._num_pairs:
            self._num_pairs = rows * width * width
            self._ancestors = np.zeros(self._num_pairs, np.uint8)
        depths = self._depths[: rows * width]
        row_bytes = (width + 7) // 8
        bits = bytearray()
        for row, row_parents in enumerate(parents):
            seen, depth = [1], [0]
            for node in range(1, len(row_parents)):
                parent = row_parents[node]
                seen.append(seen[parent] | 1 << node)
                depth.append(depth[parent] + 1)
            begin = row * width
            depths[begin : begin + len(depth)] = depth
            bits += b"".join([sight.to_bytes(row_bytes, "little") for sight in seen])
            bits += bytes((width - len(seen)) * row_bytes)
        packed = np.frombuffer(bits, np.uint8).reshape(rows * width, row_bytes)
        ancestors = self._ancestors[: rows * width * width].reshape(rows * width, width)
        ancestors[:] = np.unpackbits(packed, axis=1, count=width, bitorder="little")
        self._step.depths, self._step.ancestors = self._depths.ctypes.data, self._ancestors.ctypes.data

    def _room_for_logits(self, count: int) -> int:
        """Where they go. Pages of it exist once something was written there."""
        if count > len(self._logits):
            self._logits = np.empty((max(count, 2 * len(self._logits)), self._vocab_size), np.float32)
        return int(self._logits.ctypes.data)

    def logits(self, rows: int, width: int) -> Floats:
        """Logits of the latest forward, `[rows, width, vocab]`; a view. Padding holds nothing of use."""
        return self._logits[: rows * width].reshape(rows, width, self._vocab_size)

    @property
    def states(self) -> Floats:
        """Tapped states of the latest forward, `[rows, width, points, hidden]`, which stay. Padding holds nothing."""
        return self._states

    def picks(self, rows: int, width: int) -> Counts:
        """What was picked after each token, int64 `[rows, width]`; a view."""
        return self._picks[: rows * width].reshape(rows, width)

    def best(self, rows: int, width: int) -> Counts:
        """The best tokens after each token, int64 `[candidates, rows, width]`; a view."""
        count = self._step.candidates
        return self._best[: count * rows * width].reshape(count, rows, width)

    def chances(self, rows: int, width: int) -> Floats:
        """The chances of the best tokens after each token, float32 `[candidates, rows, width]`; a view.

        They are of all tokens, the softmax of the logits; NaN after a token whose logits are not sound.
        """
        count = self._step.candidates
        return self._chances[: count * rows * width].reshape(count, rows, width)
