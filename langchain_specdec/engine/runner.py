"""Runs forwards of one model over its slots: prefill and verification, and no policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.engine.attention import ATTENTION_NAME, additive_mask
from langchain_specdec.engine.compilation import CompiledLayers
from langchain_specdec.engine.compile_costs import GraphKey
from langchain_specdec.engine.kv_cache import ForwardShape, SlotCache
from langchain_specdec.engine.tree import TreeLayout

__all__ = ["ModelRunner", "position_limit"]

# Positions before the tokens of a trial: enough for a mask and a text that means something to it.
_TRIAL_LENGTH = 23


class ModelRunner:
    """One model, its cache, and the two kinds of forward that decoding needs.

    Args:
        model: A Hugging Face causal language model, in eval mode.
        num_slots: Slots of the cache.
        max_length: Positions of a slot that text can use.
        max_width: Most tokens of a row in a verification; the cache has room for its padding.
        compiled: Runs the model's layers compiled, where that pays; None never does.
    """

    def __init__(
        self, model: Any, num_slots: int, max_length: int, max_width: int, compiled: CompiledLayers | None = None
    ) -> None:
        self.model = model
        self.max_length = max_length
        self.max_width = max_width
        self.compiled = compiled
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
    def graphs(self) -> frozenset[GraphKey]:
        """The compiled graphs in use. With them changes what forwards cost."""
        return self.compiled.ready if self.compiled is not None else frozenset()

    def prepare(self) -> None:
        """Make all compiled graphs that forwards over these slots use, before the first forward; nothing without."""
        if self.compiled is not None:
            self.compiled.prepare(self.cache.num_slots, self._trial)

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
        shape, inputs = self._inputs(self.cache, slots, starts, tokens, layout)
        logits: Tensor = self._run(self.model, shape, inputs).logits
        return logits

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int], starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """Take tokens into the slots; the head, whose logits nobody would read, is left out."""
        shape, inputs = self._inputs(self.cache, slots, starts, tokens, None)
        self._run(self.model.base_model, shape, inputs)

    def release(self) -> None:
        """Let go of the model and the slots; only for a runner that runs nothing any more."""
        if self.compiled is not None:
            self.compiled.stop()
        self.model = self.compiled = None
        self.cache.release()

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
    def _trial(self, is_compiled: bool, rows: int, width: int) -> Tensor:
        """Logits of a forward of that shape after a short text, on a cache of its own; runs beside the engine.

        The cache is as long as the real one, because a compiled layer knows its strides. Its memory is taken only where
        it is written.
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
        with layers.applied(cache, shape) if layers else nullcontext():
            logits: Tensor = self.model(**inputs).logits
        return logits

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
        positions = shape.positions
        if layout is not None and not layout.is_chain:
            positions = positions[:, :1] + layout.depths
        inputs = {
            "input_ids": torch.tensor(padded).to(self.device, non_blocking=True),
            "attention_mask": self._mask(shape, positions, layout),
            "position_ids": positions.clamp(max=self._last_position),
            "past_key_values": cache,
            "use_cache": True,
        }
        return shape, inputs

    def _mask(self, shape: ForwardShape, positions: Tensor, layout: TreeLayout | None) -> Any:
        """Masks by the kind of layer, as the model's forward wants them."""
        keys = torch.arange(shape.length, device=self.device)
        if layout is None or layout.is_chain:
            causal = keys <= positions[:, :, None]
        else:
            offsets = keys - shape.positions[:, :1]
            index = offsets.clamp(0, shape.width - 1)
            is_text, is_node = (offsets < 0)[:, None], (offsets < shape.width)[:, None]
            causal = is_text | (layout.ancestors.gather(2, index[:, None].expand(-1, shape.width, -1)) & is_node)
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


def position_limit(config: Any) -> int | None:
    """Positions that a model was made for; None where its configuration does not say.

    Longrope models read texts of more than their original length with other frequencies. Those would not fit the
    keys in the cache, and one long text would change the short ones beside it, so the original length is the limit.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Models with several kinds of layers may have parameters for each kind.
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type", parameters.get("type")) == "longrope":
            original = getattr(config, "original_max_position_embeddings", None)
            limits.append(parameters.get("original_max_position_embeddings") or original)
    return min((int(limit) for limit in limits if limit and limit > 0), default=None)


def _layer_windows(config: Any) -> dict[str, int | None]:
    """The window of each kind of layer that the model has; None is full attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        # Qwen2 names a window even where it is off.
        return {"full_attention": window if getattr(config, "use_sliding_window", True) else None}
    return {kind: (window if kind == "sliding_attention" else None) for kind in sorted(set(kinds))}
