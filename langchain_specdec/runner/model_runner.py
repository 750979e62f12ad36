"""Runs forwards of one model over its slots: prefill and verification, and no policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.runner.attention import ATTENTION_NAME, additive_mask
from langchain_specdec.runner.cpu.compiled_layers import CompiledLayers
from langchain_specdec.runner.cuda.captured_runner import CapturedSteps
from langchain_specdec.runner.kv_cache import ForwardShape, SlotCache, StaticShape
from langchain_specdec.runner.model_inputs import _layer_windows, position_limit
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs, TreeLayout, to_device
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.runner.trials import making_seconds
from langchain_specdec.runner.verify import Verification, pick_and_accept
from langchain_specdec.sampling.noise import Noise

__all__ = ["ModelRunner", "PickDraft"]

PickDraft = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Chooses draft tokens, int64 `[rows, 1]`, by logits `[rows, 1, vocab]`, the positions that the tokens will have
`[rows, 1]`, and the tokens drafted before `[rows, count]`."""

# Positions before the tokens of a trial: enough for a mask and a text that means something to it.
_TRIAL_LENGTH = 23


class ModelRunner:
    """One model, its cache, and the kinds of forward that decoding needs.

    Args:
        model: A Hugging Face causal language model, in eval mode.
        num_slots: Slots of the cache.
        max_length: Positions of a slot that text can use.
        max_width: Most tokens of a row in a verification; the cache has room for its padding.
        compiled: Runs the model's layers compiled, where that pays; None never does.
        captured: Runs steps as captured graphs, where that pays; None never does.
    """

    def __init__(
        self,
        model: Any,
        num_slots: int,
        max_length: int,
        max_width: int,
        compiled: CompiledLayers | None = None,
        captured: CapturedSteps | None = None,
    ) -> None:
        self.model = model
        self.max_length = max_length
        self.max_width = max_width
        self.compiled = compiled
        self.captured = captured
        config = model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.cache = SlotCache(config.num_hidden_layers, num_slots, max_length + max_width)
        self.num_forwards = 0
        self._windows = _layer_windows(config)
        self._config = config
        self._dtype: torch.dtype = model.dtype
        # Padding may lie past the last position that the model knows. Learned positions end there with an error, and
        # some rotary ones change for the whole batch.
        self._last_position = (position_limit(config) or 2**31) - 1

    @property
    def graphs(self) -> frozenset[Any]:
        """Changes with what forwards cost, when graphs take over or fail."""
        if self.captured is not None:
            return self.captured.ready
        return self.compiled.ready if self.compiled is not None else frozenset()

    def prepare(self, *, is_sampled: bool = False) -> None:
        """Make all graphs that forwards over these slots are likely to use, before the first forward; nothing without.

        Args:
            is_sampled: Whether tokens will be chosen with noise.
        """
        if self.compiled is not None:
            self.compiled.prepare(self.cache.num_slots, self._trial)
        if self.captured is not None:
            with torch.inference_mode():
                self.captured.prepare(self, is_sampled=is_sampled)

    @staticmethod
    def clock() -> float:
        """Seconds, but for those in which this thread made graphs: they are no part of what steps cost."""
        return time.perf_counter() - making_seconds()

    def begin_turn(self) -> None:
        """Say that a turn of the engine begins. At most one graph is captured in it."""
        if self.captured is not None:
            self.captured.store.begin_turn()

    @torch.inference_mode()
    def make_next_graph(self, batch: RowBatch) -> None:
        """Capture the next graph that drafts of other sizes need at the end of a text, if one may be in this turn.

        Args:
            batch: One row of one token, the last one of the text.
        """
        if self.captured is not None:
            self.captured.make_next(self, batch)

    @torch.inference_mode()
    def forward(
        self,
        slots: Sequence[int],
        starts: Sequence[int],
        tokens: Sequence[Sequence[int]],
        layout: TreeLayout | None = None,
    ) -> Tensor:
        """Logits after every given token.

        Args:
            slots: Slot of each row.
            starts: Position of each row's first token; what the slot holds before it is seen.
            tokens: The rows' tokens; rows may differ in length.
            layout: How the rows' tokens hang together; None: each follows the one before it.

        Returns:
            `[rows, width, vocab]`; positions past a row's own length hold nothing of use.
        """
        self.num_forwards += 1
        shape, arguments = self._inputs(self.cache, slots, starts, tokens, layout)
        logits: Tensor = self._run(self.model, shape, arguments).logits
        return logits

    @torch.inference_mode()
    def verify(self, batch: RowBatch) -> Verification:
        """Run the last token of each text and its draft, and choose what follows each where noise is all it takes."""
        self.num_forwards += 1
        return self.captured.verify(self, batch) if self.captured is not None else self.verify_plainly(batch)

    def verify_plainly(self, batch: RowBatch) -> Verification:
        """`verify` without captured graphs."""
        has_tree = not batch.is_chain
        packed = to_device(batch.pack(has_tree=has_tree), self.device)
        inputs = RowInputs.of(packed, len(batch.slots), batch.width, has_tree=has_tree)
        logits = self._logits(batch.slots, batch.starts, inputs)
        noise = batch.noise
        verdict = pick_and_accept(logits, inputs, is_sampled=noise.is_sampled) if noise is not None else None
        return Verification(StepLogits(logits, self), verdict, inputs)

    @torch.inference_mode()
    def chain(
        self,
        slots: Sequence[int],
        starts: Sequence[int],
        tokens: Sequence[Sequence[int]],
        steps: int,
        vocab_size: int,
        noise: Noise | None = None,
        pick: PickDraft | None = None,
    ) -> list[list[int]]:
        """Decode `steps` tokens after each row, each from the one before it, without waiting for the device between.

        Args:
            slots: Slot of each row.
            starts: Position of each row's first token; what the slot holds before it is seen.
            tokens: What the slots lack of each text.
            steps: Tokens to decode, one forward each.
            vocab_size: Tokens that may be chosen: so many of the first.
            noise: What chooses them, together with the logits.
            pick: Chooses where that takes more than noise.
        """
        batch = RowBatch(slots, starts, tokens, noise=noise)
        if self.captured is not None:
            return self.captured.chain(self, batch, steps, vocab_size, pick)
        return self.chain_plainly(batch, steps, vocab_size, pick).tolist()

    def chain_plainly(self, batch: RowBatch, steps: int, vocab_size: int, pick: PickDraft | None = None) -> Tensor:
        """`chain` without captured graphs; int64 `[rows, steps]`."""
        inputs = self._chain_inputs(batch)
        starts, lengths = list(batch.starts), [len(tokens) for tokens in batch.tokens]
        is_sampled = batch.noise is not None and batch.noise.is_sampled
        chains = inputs.tokens[:, :0]
        for _ in range(steps):
            self.num_forwards += 1
            logits = self._last_logits(batch.slots, starts, inputs)[..., :vocab_size]
            positions = (inputs.starts + inputs.num_nodes)[:, None]
            if pick is not None:
                chosen = pick(logits, positions, chains)
            else:
                chosen = inputs.pick(logits, positions, is_sampled=is_sampled)
            chains = torch.cat([chains, chosen], 1)
            starts = [start + length for start, length in zip(starts, lengths, strict=True)]
            lengths = [1] * len(starts)
            inputs = inputs.following(chosen)
        return chains

    @torch.inference_mode()
    def last_logits(self, batch: RowBatch) -> Tensor:
        """Logits after the last token of each row, `[rows, 1, vocab]`, without captured graphs."""
        return self._last_logits(batch.slots, batch.starts, self._chain_inputs(batch))

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int], starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """Take tokens into the slots; the head, whose logits nobody would read, is left out."""
        shape, arguments = self._inputs(self.cache, slots, starts, tokens, None)
        self._run(self.model.base_model, shape, arguments)

    def forward_static(self, inputs: RowInputs, shape: StaticShape) -> Tensor:
        """Logits after every token, by tensors alone: the same launches whatever the tensors hold, and no waiting."""
        self.cache.begin(shape)
        arguments = self._arguments(self.cache, inputs.tokens, inputs.starts[:, None], shape.length, inputs.layout)
        logits: Tensor = self.model(**arguments).logits
        return logits

    def release(self) -> None:
        """Let go of the model and the slots; only for a runner that runs nothing any more."""
        if self.compiled is not None:
            self.compiled.stop()
        if self.captured is not None:
            self.captured.release()
        self.model = self.compiled = self.captured = None
        self.cache.release()

    def _chain_inputs(self, batch: RowBatch) -> RowInputs:
        return RowInputs.of(to_device(batch.pack(), self.device), len(batch.slots), batch.width, has_tree=False)

    def _last_logits(self, slots: Sequence[int], starts: Sequence[int], inputs: RowInputs) -> Tensor:
        logits = self._logits(slots, starts, inputs)
        if logits.shape[1] == 1:
            return logits
        rows = torch.arange(len(slots), device=logits.device)
        return logits[rows, inputs.num_nodes - 1][:, None]

    def _logits(self, slots: Sequence[int], starts: Sequence[int], inputs: RowInputs) -> Tensor:
        width = inputs.tokens.shape[1]
        first = inputs.starts[:, None]
        positions = first + torch.arange(width, device=first.device) if width > 1 else first
        index = inputs.slots[:, None]
        shape = ForwardShape(tuple(slots), tuple(starts), width, max(starts) + width, index, positions)
        arguments = self._arguments(self.cache, inputs.tokens, first, shape.length, inputs.layout)
        logits: Tensor = self._run(self.model, shape, arguments).logits
        return logits

    def _run(self, module: Any, shape: ForwardShape, inputs: dict[str, Any]) -> Any:
        self.cache.begin(shape)
        compiled = self.compiled
        if compiled is None:
            return module(**inputs)
        # The first forward allocates the cache's buffers, which compiled layers are given.
        if self.cache.is_initialized and compiled.is_ready(shape):
            try:
                with compiled.applied(self.cache, shape):
                    return module(**inputs)
            except Exception as error:
                # What it wrote lies beyond the rows' lengths; running it again as it is is safe.
                compiled.fail(error)
        started = time.perf_counter()
        outputs = module(**inputs)
        compiled.observe(shape, time.perf_counter() - started, self._trial)
        return outputs

    @torch.inference_mode()
    def _trial(self, is_compiled: bool, rows: int, width: int) -> tuple[Tensor, float]:
        """A forward of that shape after a short text, on a cache of its own; runs beside the engine.

        The cache is as long as the real one, because a compiled layer knows its strides. Its memory is taken only where
        it is written.

        Returns:
            Its logits, and the seconds that it took, without the text before it.
        """
        cache = SlotCache(len(self.cache), rows, self.cache.max_length)
        room = self.max_length - width
        start = min(_TRIAL_LENGTH, room)
        tokens = [[(7 * row + 13 * i) % self.vocab_size for i in range(start + width)] for row in range(rows)]
        slots = list(range(rows))
        if start:
            shape, inputs = self._inputs(cache, slots, [0] * rows, [row[:start] for row in tokens], None)
            cache.begin(shape)
            self.model.base_model(**inputs)
        shape, inputs = self._inputs(cache, slots, [start] * rows, [row[start:] for row in tokens], None)
        cache.begin(shape)
        layers = self.compiled if is_compiled else None
        started = time.perf_counter()
        with layers.applied(cache, shape) if layers else nullcontext():
            logits: Tensor = self.model(**inputs).logits
        return logits, time.perf_counter() - started

    def _inputs(
        self,
        cache: SlotCache,
        slots: Sequence[int],
        starts: Sequence[int],
        tokens: Sequence[Sequence[int]],
        layout: TreeLayout | None,
    ) -> tuple[ForwardShape, dict[str, Any]]:
        width = max(len(row) for row in tokens)
        shape = ForwardShape.of(slots, starts, width, self.device)
        padded = [list(row) + [0] * (width - len(row)) for row in tokens]
        layout = layout or TreeLayout.chain(len(padded), width, self.device)
        ids = torch.tensor(padded).to(self.device, non_blocking=True)
        return shape, self._arguments(cache, ids, shape.positions[:, :1], shape.length, layout)

    def _arguments(
        self, cache: SlotCache, ids: Tensor, starts: Tensor, length: int, layout: TreeLayout
    ) -> dict[str, Any]:
        """What the model is called with.

        Args:
            cache: Where the tokens go.
            ids: The tokens, `[rows, width]`.
            starts: Position of each row's first token, `[rows, 1]`.
            length: Positions that the rows can see.
            layout: How the tokens hang together.
        """
        positions = starts + layout.depths
        return {
            "input_ids": ids,
            "attention_mask": self._mask(starts, length, positions, layout),
            "position_ids": positions.clamp(max=self._last_position),
            "past_key_values": cache,
            "use_cache": True,
        }

    def _mask(self, starts: Tensor, length: int, positions: Tensor, layout: TreeLayout) -> Any:
        """Masks by the kind of layer, as the model's forward wants them."""
        keys = torch.arange(length, device=self.device)
        if layout.is_chain:
            causal = keys <= positions[:, :, None]
        else:
            width = positions.shape[1]
            offsets = keys - starts
            index = offsets.clamp(0, width - 1)
            is_text, is_node = (offsets < 0)[:, None], (offsets < width)[:, None]
            causal = is_text | (layout.ancestors.gather(2, index[:, None].expand(-1, width, -1)) & is_node)
            # A node stands in its slot after its siblings, but in the text right after its parent.
            keys = torch.where(offsets < 0, keys, positions.gather(1, index))[:, None]

        def windowed(window: int | None) -> Tensor:
            mask = causal if window is None else causal & (keys > positions[:, :, None] - window)
            mask = mask[:, None]
            # Asked anew each time: whoever else holds the model may have changed it. On a CPU, attention would turn a
            # bool mask into numbers once a layer.
            takes_bool = self._config._attn_implementation in (ATTENTION_NAME, "sdpa")
            takes_bool = takes_bool and self.device.type != "cpu"
            return mask if takes_bool else additive_mask(mask, self._dtype)

        if len(self._windows) == 1:
            return windowed(next(iter(self._windows.values())))
        return {kind: windowed(window) for kind, window in self._windows.items()}
