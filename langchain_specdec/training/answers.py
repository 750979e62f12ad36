"""The model's own answers to prompts, written at the engine's speed: what its draft is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest, collect
from langchain_specdec.progress import Progress
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.training.settings import DraftSettings
from langchain_specdec.training.work_folder import WorkFolder

_FILE = "answers.jsonl"


@dataclass(frozen=True)
class Text:
    """A prompt with the answer that the model gave.

    Attributes:
        tokens: Both.
        num_prompt_tokens: How many of them are the prompt's.
    """

    tokens: tuple[int, ...]
    num_prompt_tokens: int


def write_answers(
    backend: LocalBackend,
    prompts: Sequence[Sequence[int]],
    settings: DraftSettings,
    folder: WorkFolder,
    tell: Progress,
) -> list[Text]:
    """Answer all prompts, but for those whose answers are there.

    Args:
        backend: The model.
        prompts: Their tokens.
        settings: How long the answers are, their temperature and seed.
        folder: Keeps each answer as it is done.
        tell: Told how many there are.

    Raises:
        GenerationError: The model fails.
    """
    answers = [row["tokens"] for row in folder.rows(_FILE)]
    chunk = 4 * backend.num_slots
    while len(answers) < len(prompts):
        tell("Answering prompts", len(answers), len(prompts))
        numbers = range(len(answers), min(len(answers) + chunk, len(prompts)))
        streams = backend.start([CompletionRequest(prompts[i], _params(settings, i)) for i in numbers])
        for stream in streams:
            answers.append([token.id for token in collect(stream).tokens])
            folder.append(_FILE, {"tokens": answers[-1]})
            tell("Answering prompts", len(answers), len(prompts))
    return [Text((*prompt, *answer), len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]


def _params(settings: DraftSettings, number: int) -> SamplingParams:
    """Greedy and sampled in turns unless one temperature is asked for: a draft is used for both."""
    temperature = settings.temperature
    if temperature is None:
        temperature = float(number % 2)
    seed = settings.seed * 1_000_003 + number
    return SamplingParams(max_new_tokens=settings.max_new_tokens, temperature=temperature, seed=seed)
