"""Runs the forwards of a draft head (EAGLE-3) in the native decoder, over slots of its own.

A forward costs the bytes of its matrices and some microseconds, and one that only reads a text those of keys and
values alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights, Floats
from langchain_specdec.runner.cpu.native_decoder import NativeDecoder, NativeLibrary
from langchain_specdec.runner.cpu.native_step import NativeStep
from langchain_specdec.runner.cpu.work_memory import work_bytes
from langchain_specdec.runner.head_runner import Candidates, candidates
from langchain_specdec.runner.step_inputs import RowBatch


@dataclass(frozen=True)
class HeadWeights:
    """A draft head as plain arrays.

    Attributes:
        decoder: All of it but what follows; its `state` is there.
        tap_points: Layers of the target whose incoming states it reads.
        target_ids: The target's number of each draft token, int64 `[draft_vocab]`; None: the same numbers.
        is_output_normed: Whether the next draft token reads the normed output, and not what the final norm reads.
        point_norms: RMSNorm weights of each tapped state by itself, `[points, target_hidden]`; None: none.
        joint_norm: RMSNorm weight of all of them together, `[points * target_hidden]`, after these; None: none.
    """

    decoder: DecoderWeights
    tap_points: tuple[int, ...]
    target_ids: Tensor | None = None
    is_output_normed: bool = False
    point_norms: Floats | None = None
    joint_norm: Floats | None = None


class NativeHeadRunner:
    """One draft head and its slots.

    Args:
        weights: What is run.
        library: See `decoder_trial.native_library`.
        num_slots: Slots of its cache.
        max_length: Positions of a slot that text can use.
        max_width: Most tokens of a row of a draft.
        num_threads: Threads that share a forward, the calling one included.
        beside: See `NativeDecoder`.

    Raises:
        MemoryError: There is no memory for it.

    Attributes:
        tap_points: See `HeadWeights`.
        target_ids: See `HeadWeights`.
        vocab_size: Tokens that it drafts.
        hidden_size: Numbers of its states.
        num_layers: Its layers.
        max_length: As given.
        max_width: As given.
        num_threads: Threads that it has.
        num_forwards: Drafts that were computed; reading texts is not counted.
        cache: Its slots.
        bytes_per_token: What a token takes in them.
        work_bytes: Most memory that its forwards take as they come.
    """

    device = torch.device("cpu")
    has_own_threads = True
    clock = staticmethod(time.perf_counter)

    def __init__(
        self,
        weights: HeadWeights,
        library: NativeLibrary,
        num_slots: int,
        max_length: int,
        max_width: int,
        num_threads: int,
        beside: NativeDecoder | None = None,
    ) -> None:
        decoder = weights.decoder
        self._weights = weights
        self._has_fc = decoder.state is not None and decoder.state.fc is not None
        self.tap_points, self.target_ids = weights.tap_points, weights.target_ids
        self.vocab_size, self.hidden_size, self.num_layers = decoder.vocab, decoder.hidden, len(decoder.layers)
        self.max_length = max_length
        self.max_width = max_width
        self.num_forwards = 0
        self._decoder = NativeDecoder(library, decoder, num_slots, max_length + max_width, num_threads, beside)
        self.cache = self._decoder.cache
        self.bytes_per_token = self.cache.bytes_per_token
        self.num_threads = self._decoder.num_threads
        self.work_bytes = work_bytes(decoder, self.num_threads)
        # Where states are tapped the last layer has to be computed, which reading a text does not need.
        self._reading, self._drafting = (NativeStep(self.vocab_size, self.hidden_size) for _ in range(2))
        self._drafting.tap([self.num_layers + (not weights.is_output_normed)])

    def note_weights(self) -> bool:
        """Whether weights have changed since this was last asked: nobody else has them."""
        return False

    def condense(self, states: Tensor) -> Tensor:
        """States that stand for those of the target at its tap points, as a forward takes them.

        Args:
            states: `[count, points, target_hidden]`.

        Returns:
            float32 `[count, hidden]`.

        Raises:
            ValueError: They are not of its tap points, or of another size.
        """
        weights, numbers = self._weights, states.float().numpy()
        eps = weights.decoder.norm_eps
        if weights.point_norms is not None:
            numbers = _normed(numbers, weights.point_norms, eps)
        count, points, size = numbers.shape
        numbers = numbers.reshape(count, points * size)
        if weights.joint_norm is not None:
            numbers = _normed(numbers, weights.joint_norm, eps)
        if not self._has_fc:
            return torch.from_numpy(np.array(numbers))  # what was tapped is only good until the target's next forward
        return torch.from_numpy(self._decoder.condense(np.ascontiguousarray(numbers)))

    def extend(self, batch: RowBatch, hidden: Sequence[Tensor]) -> None:
        """Keep the keys and values of what follows in some texts.

        Args:
            batch: Row i's tokens are `batch.tokens[i]`, whose entries stand at `batch.starts[i]` on of its slot.
            hidden: The state that each token is read with, `[tokens of the row, hidden]` for each row.
        """
        self._run(self._reading, batch, hidden)

    def run(
        self, batch: RowBatch, hidden: Sequence[Tensor], wanted: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `extend`, and draft what comes after each token.

        Args:
            batch: See `extend`. Its rows may branch: a token sees those that lead to it, and stands as many positions
                after the first as there are. Entries stand one by one.
            hidden: See `extend`.
            wanted: Of how many of its last tokens logits are wanted, for each row; None: of all. The output layer is
                about half of a head's work, and the others' places hold nothing.

        Returns:
            Logits of the draft tokens `[rows, width, vocab_size]`, and the state that each next token is to be read
            with `[rows, width, hidden]`, both float32 and good until the next call. Padding holds nothing.
        """
        self.num_forwards += 1
        self._run(self._drafting, batch, hidden, has_logits=True, wanted=wanted)
        rows, width = len(batch.slots), batch.width
        logits, states = self._drafting.logits(rows, width), self._drafting.states
        return torch.from_numpy(logits), torch.from_numpy(states)[:, :, 0]

    def likeliest(
        self, batch: RowBatch, hidden: Sequence[Tensor], wanted: Sequence[int]
    ) -> tuple[list[Candidates | None], Tensor]:
        """See `HeadRunner.likeliest`."""
        self.num_forwards += 1
        self._run(self._drafting, batch, hidden, has_best=True, wanted=wanted)
        rows, width = len(batch.slots), batch.width
        best, chances = self._drafting.best(rows, width), self._drafting.chances(rows, width)
        if self.target_ids is not None:
            best = self.target_ids.numpy()[best]
        told = [
            candidates(best[:, row, node].tolist(), chances[:, row, node].tolist())
            for row, (tokens, count) in enumerate(zip(batch.tokens, wanted, strict=True))
            for node in range(len(tokens) - count, len(tokens))
        ]
        return told, torch.from_numpy(self._drafting.states)[:, :, 0]

    def release(self) -> None:
        """Let go of the head and the slots; only for a runner that runs nothing any more."""
        self._decoder.close()
        self.cache.release()

    def _run(
        self,
        step: NativeStep,
        batch: RowBatch,
        hidden: Sequence[Tensor],
        *,
        has_logits: bool = False,
        has_best: bool = False,
        wanted: Sequence[int] | None = None,
    ) -> None:
        given = [states.numpy() for states in hidden]
        filled = step.fill(batch, has_logits=has_logits, picks=has_best, chances=has_best, hidden=given, wanted=wanted)
        for slot, start, tokens in zip(batch.slots, batch.starts, batch.tokens, strict=True):
            self.cache.note(slot, start + len(tokens))
        self._decoder.run(filled)


def _normed(states: Floats, weight: Floats, eps: float) -> Floats:
    """RMSNorm (arXiv 1910.07467) over the last dimension."""
    mean_square: NDArray[np.float32] = np.square(states).mean(-1, keepdims=True)
    normed: Floats = states / np.sqrt(mean_square + np.float32(eps)) * weight
    return normed
