"""Which prompts a draft is made from: those of files and those of the model's own, and which of them are held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.progress import Progress
from langchain_specdec.training.own_prompts import write_prompts
from langchain_specdec.training.prompt_files import GivenPrompt, PromptFiles
from langchain_specdec.training.prompt_tokens import PromptFormat
from langchain_specdec.training.settings import DraftSettings
from langchain_specdec.training.work_folder import WorkFolder

_FILE = "prompts.json"
_FEWEST = 4
_HELD_OUT_SHARE = 0.1
_MOST_HELD_OUT = 16


@dataclass(frozen=True)
class ChosenPrompts:
    """The prompts of a draft, as tokens.

    Attributes:
        tokens: Of each.
        held_out: Numbers of those that are not trained on.
        num_own: How many the model wrote.
        num_left_out: How many there were beside them that the model has no room for.
    """

    tokens: Sequence[Sequence[int]]
    held_out: Sequence[int]
    num_own: int
    num_left_out: int

    @property
    def trained(self) -> list[int]:
        """Numbers of those that are trained on."""
        held_out = set(self.held_out)
        return [number for number in range(len(self.tokens)) if number not in held_out]


def choose_prompts(
    backend: LocalBackend,
    files: PromptFiles,
    settings: DraftSettings,
    folder: WorkFolder,
    is_chat: bool | None,
    tell: Progress,
) -> ChosenPrompts:
    """Choose prompts, or read what was chosen before.

    Args:
        backend: The model.
        files: Prompts of files.
        settings: How many, and the seed.
        folder: Keeps the choice.
        is_chat: See `PromptFormat`.
        tell: Told how far the model is with its own.

    Raises:
        InvalidParameterError: There are too few, or the model cannot be given one.
        GenerationError: The model writes none.
    """
    if (known := folder.read(_FILE)) is not None:
        return ChosenPrompts(**known)
    prompt_format = PromptFormat(backend, is_chat)
    drawn = random.Random(settings.seed)
    room = backend.max_length - settings.max_new_tokens
    if room < 1:
        msg = (
            f"max_new_tokens is {settings.max_new_tokens}, and {backend.model_name} has room for {backend.max_length} "
            "tokens of a prompt and its answer. Give a lower --max-new-tokens."
        )
        raise InvalidParameterError(msg)

    num_left_out = 0

    def tokens_of(prompts: Sequence[GivenPrompt], most: int) -> list[list[int]]:
        nonlocal num_left_out
        found = [prompt_format.token_ids(prompt, room) for prompt in prompts]
        fitting = [tokens for tokens in found if tokens is not None]
        num_left_out += len(found) - len(fitting)
        kept = sorted(drawn.sample(range(len(fitting)), min(most, len(fitting))))
        return [fitting[number] for number in kept]

    num_own = settings.num_own(has_files=bool(files.prompts))
    own = write_prompts(backend, prompt_format, folder, num_own, settings.seed, tell)
    given = tokens_of(files.prompts, settings.num_prompts)
    chosen = [*given, *tokens_of([prompt for prompt in own if prompt not in files.prompts], num_own)]
    held = tokens_of(files.eval_prompts, _MOST_HELD_OUT)
    if len(chosen) + len(held) < _FEWEST or not chosen or (files.eval_prompts and not held):
        msg = (
            f"There are {len(chosen)} prompts to train on and {len(held)} to measure on that {backend.model_name} has "
            f"room for, and a draft takes {_FEWEST} at least. Give more by --prompts or --own-prompts, shorter ones, "
            "or a lower --max-new-tokens."
        )
        raise InvalidParameterError(msg)
    if held:
        # None of them is trained on, wherever else it stands.
        chosen = [tokens for tokens in chosen if tokens not in held]
        held_out = [*range(len(chosen), len(chosen) + len(held))]
        chosen += held
    else:
        count = min(max(round(len(chosen) * _HELD_OUT_SHARE), 1), _MOST_HELD_OUT)
        held_out = sorted(drawn.sample(range(len(chosen)), count))
    row: dict[str, Any] = {
        "tokens": chosen,
        "held_out": held_out,
        "num_own": len(own),
        "num_left_out": num_left_out,
    }
    folder.write_json(_FILE, row)
    return ChosenPrompts(**row)
