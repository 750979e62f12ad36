"""Images that stand in a prompt: which of its tokens each stands for, and what the model is given of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class PromptImage:
    """An image in a prompt.

    Attributes:
        start: Index of the first token that stands for it, in the prompt.
        stop: Index after the last.
        digest: Tells it from other images; negative, as no token is.
        inputs: What the model's forward is given of it, tensors by name; those of several images are joined along
            their first dimension.
    """

    start: int
    stop: int
    digest: int
    inputs: Mapping[str, Any]


def keyed(prompt_ids: Sequence[int], images: Sequence[PromptImage]) -> Sequence[int]:
    """A prompt's tokens, with what tells an image from others in place of the tokens that stand for it."""
    keys = list(prompt_ids)
    for image in images:
        keys[image.start : image.stop] = [image.digest] * (image.stop - image.start)
    return keys


def image_around(images: Sequence[PromptImage], position: int) -> PromptImage | None:
    """The image that a piece of the prompt which ends before `position` would cut; None where it cuts none."""
    return next((image for image in images if image.start < position < image.stop), None)
