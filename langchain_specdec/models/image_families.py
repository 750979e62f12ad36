"""Families of models that read images: their classes, their image processors, and how images stand in their prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from langchain_specdec.models.image_reader import ImageReader, ImageTokens, Made
from tgi_launcher.extras import install_command


@dataclass(frozen=True)
class _Family:
    """What is particular to a family.

    Attributes:
        given: Names of what its image processor makes that the model's forward takes.
        ids: Names of the configuration's tokens that begin an image, stand for its parts, and end it.
        text: What stands for an image, of the texts of these tokens; as many parts as the image has.
        num_parts: How many, by the configuration, the processor, and what it has made of the image.
        is_begun_by_placeholder: Whether chat templates write the token that begins an image for it, not that of a part.
        options: What the image processor is told.
    """

    given: tuple[str, ...]
    ids: tuple[str, str, str]
    text: str
    num_parts: Callable[[Any, Any, Made], int]
    is_begun_by_placeholder: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def _as_configured(config: Any, _processor: Any, _made: Made) -> int:
    return int(config.mm_tokens_per_image)


def _as_told(_config: Any, _processor: Any, made: Made) -> int:
    return int(made["num_soft_tokens_per_image"][0])


def _by_grid(_config: Any, processor: Any, made: Made) -> int:
    return int(made["image_grid_thw"][0].prod()) // int(processor.merge_size) ** 2


# As the processors of transformers have it in version 5.24.
_GEMMA3 = _Family(
    ("pixel_values",),
    ("boi_token_index", "image_token_index", "eoi_token_index"),
    "\n\n{begin}{parts}{end}\n\n",
    _as_configured,
    is_begun_by_placeholder=True,
    # Crops would be further images, with text of their own between them.
    options={"do_pan_and_scan": False},
)
_GEMMA4 = _Family(
    ("pixel_values", "image_position_ids"),
    ("boi_token_id", "image_token_id", "eoi_token_id"),
    "{begin}{parts}{end}",
    _as_told,
)
_QWEN = _Family(
    ("pixel_values", "image_grid_thw"),
    ("vision_start_token_id", "image_token_id", "vision_end_token_id"),
    "{parts}",
    _by_grid,
)
_QWEN_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
_FAMILIES = {
    "gemma3": _GEMMA3,
    "gemma4": _GEMMA4,
    **dict.fromkeys(_QWEN_TYPES, _QWEN),
}


def auto_class(config: Any) -> Any:
    """The class of transformers that makes a model of this configuration, with its vision tower where it has one."""
    return AutoModelForImageTextToText if config.model_type in _FAMILIES else AutoModelForCausalLM


def make_image_reader(
    model: Any, tokenizer: Any, processor: Any, source: str, **hub: Any
) -> tuple[ImageReader | None, str]:
    """What reads images for a model, or why it is given none, as the end of a sentence.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        processor: Its image processor; None loads that of its files.
        source: Model id or folder; "" where it has none.
        hub: Options of loading from the Hub.
    """
    config = model.config
    family = _FAMILIES.get(config.model_type)
    if family is None or getattr(config, "vision_config", None) is None:
        return None, "it reads text only"
    if processor is None:
        if not source:
            return None, "it was loaded elsewhere, without its processor: give that as tokenizer="
        if find_spec("PIL") is None:
            return None, f"Pillow is missing ({install_command('images')})"
        # Pillow comes with an extra, and is imported with it.
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(source, **hub)
        except Exception as error:  # whatever it is, text goes on without
            told = str(error).strip().partition("\n")[0]
            return None, f"its image processor cannot be loaded ({type(error).__name__}: {told})"
    ids = [getattr(config, name) for name in family.ids]
    begin, part, end = tokenizer.convert_ids_to_tokens(ids)
    placeholder = begin if family.is_begun_by_placeholder else part
    if not isinstance(part, str) or not isinstance(placeholder, str):
        return None, f"its tokenizer lacks token {ids[1]}, which stands for images"

    def num_parts(made: Made) -> int:
        return family.num_parts(config, processor, made)

    def text(made: Made) -> str:
        return family.text.format(begin=begin, parts=part * num_parts(made), end=end)

    tokens = ImageTokens(placeholder, ids[1], text, num_parts)
    return ImageReader(partial(processor, **family.options), tokens, family.given), ""
