"""How a draft is made: declared settings, which a work folder is bound to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import option_field, options_of

KINDS = ("head", "pruned")
"""Kinds of drafts that are made."""
MOST_TEXT_TOKENS = 4096
"""Tokens of a text that are trained on; what is longer loses its end."""


@dataclass(frozen=True)
class DraftSettings:
    """What a draft is made from, and how. Each is declared with its default, what it is, and what it may be.

    Raises:
        InvalidParameterError: A value is out of its range.
    """

    # fmt: off
    kind: str = option_field(
        "head", "What is made: `head`, an EAGLE-3 head, or `pruned`, a small model of some of the model's own layers.",
        str, words=KINDS)
    keep_layers: int | None = option_field(
        None, "Layers of a pruned model: the first, the last, and those that change the most.", int, 2, 10_000,
        unset="as many as read at most a fifth of the model's weights, and 2 at least")
    num_prompts: int = option_field(
        800, "Most prompts that are taken from files; of more, so many are drawn by the seed.", int, 1, 10_000_000)
    own_prompts: int | None = option_field(
        None, "Prompts that the model writes itself, beside those of files.", int, 0, 10_000_000,
        unset="800 where there are no files, else none")
    max_new_tokens: int = option_field(128, "Most tokens of an answer.", int, 2, 1_000_000)
    temperature: float | None = option_field(
        None, "Temperature of the answers.", float, 0, 100, range="a number from 0 to 100",
        unset="0 and 1 in turns")
    draft_vocab_size: int | None = option_field(
        None, "Tokens that a head can propose: the most frequent of the answers.", int, 2, 1_000_000,
        unset="8192, and 32768 for models with more than 65536 tokens, or as many as the answers have")
    unroll: int = option_field(
        4, "Tokens in a row that training has a head propose, each from its own state for the one before.",
        int, 1, 16)
    epochs: int = option_field(10, "How often training goes through the answers.", int, 1, 10_000)
    learning_rate: float | None = option_field(
        None, "Highest learning rate.", float, 1e-9, 1, range="a number above 0, up to 1",
        unset="for a head 0.003, or 0.001 where it is trained by AdamW alone, 0.0003 for a pruned model, and less for "
        "models with wide states")
    batch_tokens: int = option_field(
        1024, "Tokens of whole texts in a training step, padding included, which bounds its memory; a longer text is a "
        "batch of its own.", int, 16, 1 << 20)
    checkpoint_steps: int = option_field(
        100, "Training steps between checkpoints.", int, 1, 1_000_000)
    seed: int = option_field(
        0, "Of prompts, answers and training: the same seed gives the same weights.", int, 0, 2**31 - 1)
    # fmt: on

    def __post_init__(self) -> None:
        for name, option in SETTINGS.items():
            option.check(name, getattr(self, name))
        is_head = self.kind == "head"
        if is_head and self.keep_layers is not None:
            msg = "keep_layers is for kind='pruned': a head has one layer, and none of the model's. Leave it out."
            raise InvalidParameterError(msg)
        if not is_head and self.draft_vocab_size is not None:
            msg = (
                "draft_vocab_size is for kind='head': a pruned model keeps the model's own output head, so that it "
                "runs wherever models do. Leave it out."
            )
            raise InvalidParameterError(msg)
        if not is_head and self.unroll != SETTINGS["unroll"].default:
            msg = "unroll is for kind='head': a pruned model drafts by its own tokens alone. Leave it out."
            raise InvalidParameterError(msg)

    def num_own(self, *, has_files: bool) -> int:
        """Prompts that the model is to write."""
        if self.own_prompts is not None:
            return self.own_prompts
        return 0 if has_files else SETTINGS["num_prompts"].default

    def as_dict(self) -> dict[str, Any]:
        """Its values by name."""
        return asdict(self)


SETTINGS = options_of(DraftSettings)
"""Every setting by its name."""
