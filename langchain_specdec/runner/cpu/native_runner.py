"""Runs the forwards of a native decoder over its slots, as `ModelRunner` does those of PyTorch's modules.

A step takes one call of C++, and some microseconds of Python. PyTorch is asked only where more than logits and noise
decides on a token: penalties, grammars, top-p.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights
from langchain_specdec.runner.cpu.native_decoder import MAX_TAPS, NativeDecoder, NativeLibrary
from langchain_specdec.runner.cpu.native_step import NativeStep
from langchain_specdec.runner.cpu.work_memory import work_bytes
from langchain_specdec.runner.model_config import max_positions
from langchain_specdec.runner.model_state import WeightsState, is_private, modules_of
from langchain_specdec.runner.row_adapters import RowAdapters
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.runner.tap_points import LateStates, check_points
from langchain_specdec.runner.verify import UNSOUND, Verification, accept_rows, score_of

if TYPE_CHECKING:
    from langchain_specdec.runner.model_runner import PickDraft
    from langchain_specdec.runner.slot_images import SlotImages

_CPU = torch.device("cpu")
# What nobody was going to read was not kept.
_NO_LOGITS = np.empty((0, 0, 0), np.float32)

Reread = Callable[[Any], "DecoderWeights | None"]
"""Reads what a decoder runs of a module; None where it is not what a native decoder runs any more."""


def decoder_of(runner: object) -> NativeDecoder | None:
    """The native decoder of a runner; None where it has none."""
    return runner.decoder if isinstance(runner, NativeRunner) else None


class NativeRunner:
    """One decoder, its slots, and the kinds of forward that decoding needs; see `ModelRunner`.

    Args:
        model: What the weights are of: it has a `config` and a `dtype`, and is not run.
        weights: What is run. Runners may share them.
        library: See `decoder_trial.native_library`.
        num_slots: Slots of the cache.
        max_length: Positions of a slot that text can use.
        max_width: Most tokens of a row in a verification.
        num_threads: Threads that share a forward, the calling one included.
        beside: See `NativeDecoder`.
        reread: What read the weights of a module, which others may change once it is handed out; None where there is
            none.

    Raises:
        MemoryError: There is no memory for it.
    """

    def __init__(
        self,
        model: Any,
        weights: DecoderWeights,
        library: NativeLibrary,
        num_slots: int,
        max_length: int,
        max_width: int,
        num_threads: int,
        beside: NativeDecoder | None = None,
        reread: Reread | None = None,
    ) -> None:
        self.model = model
        self._reread = reread
        self._weights: DecoderWeights | None = weights
        self._state = None if reread is None else WeightsState.of(modules_of(model))
        self._unfit: str | None = None
        self.max_length = max_length
        self.max_width = max_width
        self.vocab_size = weights.vocab
        self.max_positions = max_positions(model.config.get_text_config())
        """The most that `max_length` could be; None where the model does not say."""
        self.device = _CPU
        self.num_forwards = 0
        self._library = library
        self.decoder = NativeDecoder(library, weights, num_slots, max_length + max_width, num_threads, beside)
        self.cache = self.decoder.cache
        self.bytes_per_token = self.cache.bytes_per_token
        self.num_threads = self.decoder.num_threads
        self.work_bytes = work_bytes(weights, self.num_threads)
        """Most memory that its forwards take as they come."""
        self._step = NativeStep(weights.vocab, weights.hidden)

    adapters: RowAdapters | None = None
    images: SlotImages | None = None
    takes_trees = True
    is_width_free = False
    pads_rows = False
    awaits_graphs = False
    has_own_threads = True
    graphs: frozenset[Any] = frozenset()
    clock = staticmethod(time.perf_counter)

    def prepare(self, rows: int, lengths: range, *, is_sampled: bool, num_candidates: int) -> None:
        """There are no graphs to make."""

    def prepare_drafts(self, rows: int, lengths: range, vocab_size: int, *, is_sampled: bool) -> None:
        """There are no graphs to make."""

    def begin_turn(self, *, may_capture: bool = True) -> None:
        """There are no graphs to make."""

    def make_next_graph(self, batch: RowBatch) -> None:
        """There are no graphs to make."""

    def tap(self, points: Sequence[int]) -> None:
        """See `ModelRunner.tap`."""
        check_points(points, len(self.cache), MAX_TAPS)
        self._step.tap(points)

    @property
    def tapped(self) -> LateStates:
        """See `ModelRunner.tapped`."""
        return partial(torch.from_numpy, self._step.states)

    def note_weights(self) -> bool:
        """Whether weights have changed since this was last asked, as those of a module may; they are read anew then."""
        model, reread = self.model, self._reread  # another thread may release them meanwhile
        if model is None or reread is None or is_private(model):
            return False
        state = WeightsState.of(modules_of(model))
        if state == self._state:
            return False
        self._state = state
        weights = reread(model)
        before = self._weights
        if weights is None or before is None or weights.num_bytes != before.num_bytes:
            self._unfit = "it is not what a native decoder runs any more"
        else:
            self._unfit, self._weights = None, weights
            self.decoder.replace(weights)
        return True

    @property
    def why_unfit(self) -> str | None:
        """Why the model can run no more here: it was moved, resized or given other modules. None where it can."""
        model = self.model  # another thread may release it meanwhile
        if self._reread is None or model is None:
            return None
        weight, dtype = model.get_input_embeddings().weight, model.dtype
        if weight.device != _CPU or dtype != torch.float32:
            now = f"{str(dtype).removeprefix('torch.')} on {weight.device}"
            return f"it was float32 on cpu when it was given its slots, and is {now} now"
        if len(weight) != self.vocab_size:
            return f"it had {self.vocab_size} tokens when it was given its slots, and has {len(weight)} now"
        return self._unfit

    def make_noise(self, seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
        """See `sampling.noise.gumbel_noise`: the very numbers that the decoder picks by."""
        return torch.from_numpy(self._library.noise(seeds.numpy(), positions.numpy(), vocab_size))

    def verify(self, batch: RowBatch) -> Verification:
        """See `ModelRunner.verify`."""
        self.num_forwards += 1
        picks_too = batch.noise is not None
        has_logits = batch.keeps_logits or not picks_too
        self._run(batch, has_logits=has_logits, picks=picks_too)
        rows, width = len(batch.slots), batch.width
        logits = StepLogits(self._step.logits(rows, width) if has_logits else _NO_LOGITS, self)
        if not picks_too:
            return Verification(logits, None, batch)
        picks = self._step.picks(rows, width)
        if width > 1:
            for row, tokens in enumerate(batch.tokens):
                picks[row, len(tokens) :] = 0
        best = self._step.best(rows, width)
        verdict = np.empty((2 + len(best), rows, width), np.int64)
        verdict[0] = picks
        verdict[1] = accept_rows(batch.tokens, batch.parents, picks.tolist(), width) if width > 1 else 1
        verdict[2:] = best
        return Verification(logits, verdict, batch)

    def chain(self, batch: RowBatch, steps: int, vocab_size: int, pick: PickDraft | None = None) -> list[list[int]]:
        """See `ModelRunner.chain`."""
        if pick is not None or vocab_size < self.vocab_size:
            return self._picked_chain(batch, steps, vocab_size, pick)
        rows = len(batch.slots)
        chains: list[list[int]] = [[] for _ in range(rows)]
        for _ in range(steps):
            self.num_forwards += 1
            self._run(batch, last_only=True, picks=True)
            picks = self._step.picks(rows, batch.width)
            picked = [int(picks[row, len(tokens) - 1]) for row, tokens in enumerate(batch.tokens)]
            for chain, token in zip(chains, picked, strict=True):
                chain.append(token)
            batch = _following(batch, [max(token, 0) for token in picked])
        return [[] if UNSOUND in chain else chain for chain in chains]

    @torch.inference_mode()
    def _picked_chain(self, batch: RowBatch, steps: int, vocab_size: int, pick: PickDraft | None) -> list[list[int]]:
        """Where it takes PyTorch to pick."""
        inputs = RowInputs.from_batch(batch, _CPU)
        chains = inputs.tokens[:, :0]
        is_sound = [True] * len(batch.slots)
        for _ in range(steps):
            self.num_forwards += 1
            logits = self.last_logits(batch)[..., :vocab_size]
            positions = (inputs.starts + inputs.num_nodes)[:, None]
            if pick is not None:
                picked = pick(logits, positions, chains)
            else:
                picked = inputs.pick(logits, positions, is_sampled=batch.is_sampled, make_noise=self.make_noise)
            scores = score_of(logits, picked).flatten().tolist()
            is_sound = [old and math.isfinite(score) for old, score in zip(is_sound, scores, strict=True)]
            chains = torch.cat([chains, picked], 1)
            batch = _following(batch, picked[:, 0].tolist())
            inputs = inputs.following(picked)
        return [chain if sound else [] for chain, sound in zip(chains.tolist(), is_sound, strict=True)]

    def last_logits(self, batch: RowBatch) -> Tensor:
        """See `ModelRunner.last_logits`."""
        self._run(batch, has_logits=True, last_only=True, picks=False)
        logits = self._step.logits(len(batch.slots), batch.width)
        rows = [logits[row, len(tokens) - 1] for row, tokens in enumerate(batch.tokens)]
        return torch.from_numpy(np.stack(rows))[:, None]

    def prefill(self, batch: RowBatch) -> None:
        """See `ModelRunner.prefill`."""
        self._run(batch)

    def release(self) -> None:
        """See `ModelRunner.release`."""
        self.model = self._reread = self._weights = None
        self.decoder.close()
        self.cache.release()

    def _run(self, batch: RowBatch, *, has_logits: bool = False, last_only: bool = False, picks: bool = False) -> None:
        if self._unfit is not None:
            raise RuntimeError(self._unfit)
        step = self._step.fill(batch, has_logits=has_logits, last_only=last_only, picks=picks)
        note = self.cache.note
        for slot, start, tokens in zip(batch.slots, batch.starts, batch.tokens, strict=True):
            note(slot, start + len(tokens))
        self.decoder.run(step)


def _following(batch: RowBatch, picked: list[int]) -> RowBatch:
    """What comes after these rows: one token for each."""
    starts = [start + len(tokens) for start, tokens in zip(batch.starts, batch.tokens, strict=True)]
    return RowBatch(batch.slots, starts, [[token] for token in picked], None, batch.noise)
