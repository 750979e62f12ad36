"""What a model's forward is called with."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.runner.attention import ATTENTION_NAME, additive_mask
from langchain_specdec.runner.kv_cache import SlotCache
from langchain_specdec.runner.model_config import layer_configs, max_positions, num_key_value_heads
from langchain_specdec.runner.slot_images import ForwardImages
from langchain_specdec.runner.step_inputs import RowInputs


class ModelInputs:
    """Makes what a model is called with.

    Args:
        model: A Hugging Face causal language model.
        offsets: What is added to the positions of the text in each slot, int64 `[slots]`; None: nothing.

    Attributes:
        is_for_gpu: Whether masks have the form that attention on a GPU takes without another copy of them.
    """

    def __init__(self, model: Any, offsets: Tensor | None = None) -> None:
        self._config = model.config.get_text_config()
        self._dtype: torch.dtype = model.dtype
        self.is_for_gpu: bool = model.get_input_embeddings().weight.device.type == "cuda"
        self._offsets = offsets
        self._kinds = _layer_kinds(self._config)
        # Renamed in transformers 5.24, which warns of the old name at each forward.
        names = inspect.signature(model.base_model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        # Padding may lie past the last position that the model knows. Learned positions end there with an error, and
        # some rotary ones change for the whole batch.
        self._last_position = (max_positions(self._config) or 2**31) - 1

    def make(
        self,
        cache: SlotCache,
        inputs: RowInputs,
        length: int,
        *,
        is_prompt: bool = False,
        images: ForwardImages | None = None,
    ) -> dict[str, Any]:
        """The arguments of a forward.

        Args:
            cache: Where the tokens go.
            inputs: The rows.
            length: Positions that they can see.
            is_prompt: Whether they are a piece of one prompt that ends there, which a GPU needs no mask for.
            images: What the images in the rows are to it.
        """
        positions = inputs.starts[:, None] + inputs.depths
        mask = self._mask(inputs, positions, length, images, is_prompt=is_prompt)
        if images is not None and images.positions is not None:
            positions = images.positions
        elif self._offsets is not None:
            positions = positions + self._offsets[inputs.slots][:, None]
        return {
            "input_ids": inputs.tokens,
            "attention_mask": mask,
            "position_ids": positions.clamp(max=self._last_position),
            self._cache_name: cache,
            "use_cache": True,
            **(images.inputs if images is not None else {}),
        }

    def _mask(
        self, inputs: RowInputs, positions: Tensor, length: int, images: ForwardImages | None, *, is_prompt: bool
    ) -> Any:
        """Masks by the kind of layer, as the model's forward wants them."""
        device = inputs.tokens.device
        # Asked anew each time: whoever else holds the model may have changed it.
        is_own = self._config._attn_implementation == ATTENTION_NAME
        blocks = images.blocks if images is not None else None
        needs_none = is_prompt and is_own and self.is_for_gpu and blocks is None
        if needs_none and all(window is None or window >= length for window, _ in self._kinds.values()):
            return self._by_kind(lambda *_: torch.empty(1, 1, 1, 0, dtype=self._dtype, device=device))
        causal, keys = visible_keys(inputs, positions, length)
        seen = dict.fromkeys(self._kinds, causal)
        if images is not None and blocks is not None:
            ahead = causal | _same_block(blocks, keys - inputs.starts[:, None])
            seen |= {kind: ahead for kind in self._kinds if kind in images.ahead}

        def windowed(kind: str, window: int | None, groups: int) -> Tensor:
            mask = seen[kind] if window is None else seen[kind] & (keys > positions[:, :, None] - window)
            if not self.is_for_gpu:
                # Attention would turn a bool mask into numbers once a layer.
                return additive_mask(mask[:, None], self._dtype)
            return gpu_mask(mask, self._dtype, groups if is_own else 1)

        return self._by_kind(windowed)

    def _by_kind(self, make: Callable[[str, int | None, int], Tensor]) -> Any:
        masks = {kind: make(kind, *sizes) for kind, sizes in self._kinds.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))


def visible_keys(inputs: RowInputs, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Which keys of its slot each token sees, and the keys' positions in the text.

    Args:
        inputs: The rows.
        positions: Position of each of their tokens in its text, int64 `[rows, width]`.
        length: Positions of the slots that are looked at.

    Returns:
        bool `[rows, width, length]`; and int64 `[length]` or, where drafts branch, `[rows, 1, length]`.
    """
    keys = torch.arange(length, device=positions.device)
    if inputs.is_chain:
        return keys <= positions[:, :, None], keys
    width = positions.shape[1]
    offsets = keys - inputs.starts[:, None]
    index = offsets.clamp(0, width - 1)
    is_text, is_node = (offsets < 0)[:, None], (offsets < width)[:, None]
    causal = is_text | (inputs.ancestors.gather(2, index[:, None].expand(-1, width, -1)) & is_node)
    # A node stands in its slot after its siblings, but in the text right after its parent.
    return causal, torch.where(offsets < 0, keys, positions.gather(1, index))[:, None]


def _same_block(blocks: Tensor, offsets: Tensor) -> Tensor:
    """Whether a token stands for the same image as a key, by the keys' places in the rows, `[rows, length]`."""
    width = blocks.shape[1]
    of_keys = blocks.gather(1, offsets.clamp(0, width - 1))
    is_within = (offsets >= 0) & (offsets < width) & (of_keys >= 0)
    return (blocks[:, :, None] == of_keys[:, None]) & is_within[:, None]


def gpu_mask(mask: Tensor, dtype: torch.dtype, groups: int) -> Tensor:
    """A bool mask `[rows, width, length]` as numbers to add to scores, `[rows, 1, groups * width, length]`.

    Its rows begin at multiples of 16 numbers; else the memory-efficient backend copies it once a layer.
    """
    rows, width, length = mask.shape
    numbers = torch.zeros(rows, 1, groups * width, -(-length // 16) * 16, dtype=dtype, device=mask.device)
    by_group = numbers.view(rows, groups, width, numbers.shape[3])[..., :length]
    by_group.masked_fill_(~mask[:, None], torch.finfo(dtype).min)
    return numbers[..., :length]


def _layer_kinds(config: Any) -> dict[str, tuple[int | None, int]]:
    """Of each kind of layer that the model has, the window, None for full attention, and how many heads share keys."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    layers = layer_configs(config)
    if kinds is None:
        # Qwen2 names a window even where it is off.
        window = window if getattr(config, "use_sliding_window", True) else None
        return {"full_attention": (window, _num_groups(layers[0]))}
    groups = {kind: _num_groups(layer) for kind, layer in zip(kinds, itertools.cycle(layers), strict=False)}
    return {kind: (window if kind == "sliding_attention" else None, groups[kind]) for kind in sorted(groups)}


def _num_groups(layer: Any) -> int:
    return int(layer.num_attention_heads) // num_key_value_heads(layer)
