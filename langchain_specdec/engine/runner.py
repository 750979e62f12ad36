"""Runs forwards of one model over its slots: prefill and verification, and no policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.engine.attention import ATTENTION_NAME, additive_mask
from langchain_specdec.engine.kv_cache import ForwardShape, SlotCache
from langchain_specdec.engine.tree import TreeLayout

__all__ = ["ModelRunner"]


class ModelRunner:
    """One model, its cache, and the two kinds of forward that decoding needs.

    Args:
        model: A Hugging Face causal language model, in eval mode.
        num_slots: Slots of the cache.
        max_length: Positions of a slot that text can use.
        max_width: Most tokens of a row in a verification; the cache has room for its padding.
    """

    def __init__(self, model: Any, num_slots: int, max_length: int, max_width: int) -> None:
        self.model = model
        self.max_length = max_length
        self.max_width = max_width
        config = model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.cache = SlotCache(config.num_hidden_layers, num_slots, max_length + max_width)
        self.num_forwards = 0
        self._windows = _layer_windows(config)
        self._attention = config._attn_implementation
        self._dtype: torch.dtype = model.dtype
        # Padding may lie past the last position that the model knows; with learned positions that would be an error.
        self._last_position = (getattr(config, "max_position_embeddings", None) or 2**31) - 1

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
        shape, inputs = self._inputs(slots, starts, tokens, layout)
        self.cache.begin(shape)
        self.num_forwards += 1
        logits: Tensor = self.model(**inputs).logits
        return logits

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int], starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """Take tokens into the slots; the head, whose logits nobody would read, is left out."""
        shape, inputs = self._inputs(slots, starts, tokens, None)
        self.cache.begin(shape)
        self.model.base_model(**inputs)

    def _inputs(
        self,
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
            "past_key_values": self.cache,
            "use_cache": True,
        }
        return shape, inputs

    def _mask(self, shape: ForwardShape, positions: Tensor, layout: TreeLayout | None) -> Any:
        """Masks by the kind of layer, as the model's forward wants them."""
        keys = torch.arange(shape.length, device=self.device)
        if layout is None or layout.is_chain:
            causal = keys <= positions[:, :, None]
        else:
            offsets = (keys - shape.positions[:, :1]).clamp(min=-1)[:, None, :]
            index = offsets.clamp(0, shape.width - 1).expand(-1, shape.width, -1)
            causal = (offsets < 0) | (layout.ancestors.gather(2, index) & (offsets < shape.width))

        def windowed(window: int | None) -> Tensor:
            mask = causal if window is None else causal & (keys > positions[:, :, None] - window)
            mask = mask[:, None]
            return mask if self._attention in (ATTENTION_NAME, "sdpa") else additive_mask(mask, self._dtype)

        if len(self._windows) == 1:
            return windowed(next(iter(self._windows.values())))
        return {kind: windowed(window) for kind, window in self._windows.items()}


def _layer_windows(config: Any) -> dict[str, int | None]:
    """The window of each kind of layer that the model has; None is full attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        # Qwen2 names a window even where it is off.
        return {"full_attention": window if getattr(config, "use_sliding_window", True) else None}
    return {kind: (window if kind == "sliding_attention" else None) for kind in sorted(set(kinds))}
