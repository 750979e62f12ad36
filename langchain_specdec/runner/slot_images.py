"""Images of the texts in the slots: what a prefill is given of them, and what they do to its positions and masks."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.completions.prompt_images import PromptImage
from langchain_specdec.runner.step_inputs import RowBatch


@dataclass(frozen=True)
class ForwardImages:
    """What the images in its rows are to one forward.

    Attributes:
        inputs: What the model is given of them.
        blocks: Of each token the index of the image that it stands for, -1 where it stands for none, int64
            `[rows, width]`; None where there is no image.
        ahead: Kinds of layers in which all tokens of an image see each other. In others each sees what stands before
            it, as those of text do.
        positions: Of each token along time, height and width, int64 `[3, rows, width]`; None where they count tokens.
    """

    inputs: dict[str, Tensor]
    blocks: Tensor | None
    ahead: frozenset[str]
    positions: Tensor | None


@dataclass(frozen=True)
class _Placed:
    """The images of one text, and the positions of its prompt, int64 `[3, tokens]`, where they do not count tokens."""

    images: Sequence[PromptImage] = ()
    positions: Tensor | None = None


_NONE = _Placed()


class SlotImages:
    """The images of the text in each slot of a model that reads images.

    Args:
        model: The model, with its vision tower.
        num_slots: Slots of its cache.
    """

    def __init__(self, model: Any, num_slots: int) -> None:
        config = model.config
        self._device: torch.device = model.get_input_embeddings().weight.device
        self._ahead = frozenset(_kinds_ahead(config))
        self._find_positions = getattr(model.base_model, "get_rope_index", None)
        self._of_slot: dict[int, _Placed] = {}
        self.offsets: Tensor | None = None
        """What is added to the index of a token after the prompt to get its position, int64 `[slots]`; None where
        positions count tokens."""
        if self._find_positions is not None:
            self.offsets = torch.zeros(num_slots, dtype=torch.int64, device=self._device)

    def put(self, slot: int, prompt_ids: Sequence[int], images: Sequence[PromptImage]) -> None:
        """Say what images the prompt of the text in a slot has from now on."""
        self._of_slot.pop(slot, None)
        offset = 0
        if images:
            positions = None
            if self._find_positions is not None:
                positions = _positions(self._find_positions, prompt_ids, images)
                # Text after an image goes on after its largest position; each image takes fewer than it has tokens.
                offset = int(positions[0, -1]) + 1 - len(prompt_ids)
            self._of_slot[slot] = _Placed(images, positions)
        if self.offsets is not None:
            self.offsets[slot] = offset

    def forget(self, slot: int) -> None:
        """Keep nothing of the images in a slot any more; its text has ended."""
        self._of_slot.pop(slot, None)

    def release(self) -> None:
        """Let go of the model and all images; only where nothing runs any more."""
        self._find_positions = None
        self._of_slot.clear()

    def of(self, batch: RowBatch) -> ForwardImages | None:
        """What the images in pieces of prompts are to the forward that reads them; None where nothing of them matters.

        No piece cuts an image.
        """
        placed = [self._of_slot.get(slot, _NONE) for slot in batch.slots]
        if all(each is _NONE for each in placed):
            return None
        pieces = [range(start, start + len(row)) for start, row in zip(batch.starts, batch.tokens, strict=True)]
        images = [
            [image for image in each.images if image.start in piece] for each, piece in zip(placed, pieces, strict=True)
        ]
        flat = [image for row in images for image in row]
        names = flat[0].inputs if flat else ()
        inputs = {name: torch.cat([image.inputs[name] for image in flat]).to(self._device) for name in names}
        blocks = self._blocks(images, batch) if flat and self._ahead else None
        return ForwardImages(inputs, blocks, self._ahead, self._positions_of(placed, pieces, batch.width))

    def _blocks(self, images: Sequence[Sequence[PromptImage]], batch: RowBatch) -> Tensor:
        blocks = torch.full((len(images), batch.width), -1)
        for row, (start, own) in enumerate(zip(batch.starts, images, strict=True)):
            for index, image in enumerate(own):
                blocks[row, image.start - start : image.stop - start] = index
        return blocks.to(self._device)

    def _positions_of(self, placed: Sequence[_Placed], pieces: Sequence[range], width: int) -> Tensor | None:
        if self._find_positions is None:
            return None
        positions = torch.arange(width).repeat(3, len(placed), 1)
        for row, (each, piece) in enumerate(zip(placed, pieces, strict=True)):
            positions[:, row] += piece.start
            if each.positions is not None:
                positions[:, row, : len(piece)] = each.positions[:, piece.start : piece.stop]
        return positions.to(self._device)


def _kinds_ahead(config: Any) -> tuple[str, ...]:
    """See `ForwardImages.ahead`. Smaller models of Gemma 4 have none."""
    if config.model_type == "gemma3":
        return "full_attention", "sliding_attention"
    ahead = getattr(config.get_text_config(), "use_bidirectional_attention", None)
    return ("sliding_attention",) if ahead == "vision" else ()


def _positions(find: Any, prompt_ids: Sequence[int], images: Sequence[PromptImage]) -> Tensor:
    """Positions of a prompt along time, height and width (M-RoPE, Wang et al. 2024), int64 `[3, tokens]`."""
    given: dict[str, Any] = {"image_grid_thw": torch.cat([image.inputs["image_grid_thw"] for image in images])}
    if "mm_token_type_ids" in inspect.signature(find).parameters:
        kinds = torch.zeros(1, len(prompt_ids), dtype=torch.int64)
        for image in images:
            kinds[0, image.start : image.stop] = 1
        given["mm_token_type_ids"] = kinds
    positions: Tensor = find(torch.tensor([list(prompt_ids)]), **given)[0][:, 0]
    return positions
