"""Which prompts a draft is made from: those of files and those of the model's own, and which of them are held out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
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
        turns: What the person says in each, where there are later turns and a chat format for them; else nothing.
        held_out: Numbers of those that are not trained on.
        num_own: How many the model wrote.
        left_out: How many there were beside them that the model cannot be given, by the reason, of the first that
            it refuses.
    """

    tokens: Sequence[Sequence[int]]
    turns: Sequence[Sequence[str]]
    held_out: Sequence[int]
    num_own: int
    left_out: Mapping[str, int]

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
    prompt_format: PromptFormat,
    tell: Progress,
) -> ChosenPrompts:
    """Choose prompts, or read what was chosen before.

    Args:
        backend: The model.
        files: Prompts of files.
        settings: How many, and the seed.
        folder: Keeps the choice.
        prompt_format: How prompts for the model are written.
        tell: Told how far the model is with its own.

    Raises:
        InvalidParameterError: There are too few, or the model cannot be given one.
        GenerationError: The model writes none.
    """
    if (known := folder.read(_FILE)) is not None:
        return ChosenPrompts(**known)
    drawn = random.Random(settings.seed)
    room = backend.max_length - settings.max_new_tokens
    if room < 1:
        msg = (
            f"max_new_tokens is {settings.max_new_tokens}, and {backend.model_name} has room for {backend.max_length} "
            "tokens of a prompt and its answer. Give a lower --max-new-tokens."
        )
        raise InvalidParameterError(msg)

    left_out: Counter[str] = Counter()
    refusals: list[InvalidParameterError] = []

    def fitting_of(prompts: Sequence[GivenPrompt], most: int) -> list[tuple[list[int], list[str]]]:
        fitting = []
        for prompt in prompts:
            try:
                tokens = prompt_format.token_ids(prompt, room)
            except InvalidParameterError as error:
                refusals.append(error)
                left_out[str(refusals[0])] += 1
                continue
            if tokens is None:
                left_out[f"{backend.model_name} has no room for them and an answer."] += 1
            else:
                has_later = prompt.later_turns and prompt_format.template is not None
                fitting.append((tokens, [prompt.text, *prompt.later_turns] if has_later else []))
        kept = sorted(drawn.sample(range(len(fitting)), min(most, len(fitting))))
        return [fitting[number] for number in kept]

    num_own = settings.num_own(has_files=bool(files.prompts))
    own = write_prompts(backend, prompt_format, folder, num_own, settings.seed, tell)
    asked = {prompt.text for prompt in files.prompts}
    given = fitting_of(files.prompts, settings.num_prompts)
    chosen = [*given, *fitting_of([prompt for prompt in own if prompt.text not in asked], num_own)]
    held = fitting_of(files.eval_prompts, _MOST_HELD_OUT)
    # None of them is trained on, wherever else it stands.
    measured = [tokens for tokens, _ in held]
    chosen = [each for each in chosen if each[0] not in measured]
    no_use = (files.prompts and not given) or (files.eval_prompts and not held)
    if len(chosen) + len(held) < _FEWEST or not chosen or no_use:
        if refusals:
            raise refusals[0]
        msg = (
            f"{backend.model_name} has room for {len(chosen)} prompts to train on and {len(held)} others to measure "
            f"on, and a draft takes {_FEWEST} in all, one of them to train on. Give more by --prompts or "
            "--own-prompts, shorter ones, or a lower --max-new-tokens."
        )
        raise InvalidParameterError(msg)
    if held:
        held_out = [*range(len(chosen), len(chosen) + len(held))]
        chosen += held
    else:
        count = min(max(round(len(chosen) * _HELD_OUT_SHARE), 1), _MOST_HELD_OUT)
        held_out = sorted(drawn.sample(range(len(chosen)), count))
    row: dict[str, Any] = {
        "tokens": [tokens for tokens, _ in chosen],
        "turns": [turns for _, turns in chosen],
        "held_out": held_out,
        "num_own": len(own),
        "left_out": left_out,
    }
    folder.write_json(_FILE, row)
    return ChosenPrompts(**row)
