"""The model's own answers to prompts, written at the engine's speed: what its draft is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest, collect
from langchain_specdec.progress import Progress
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.training.conversations import Conversation, Conversations
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
    begun: Sequence[Conversation],
    asked: Conversations,
    settings: DraftSettings,
    folder: WorkFolder,
    tell: Progress,
) -> list[Text]:
    """Answer all prompts, but for those whose answers are there: all first turns, then all second ones, and so on.

    Args:
        backend: The model.
        begun: The prompts, before their first answers.
        asked: Says how they go on.
        settings: How long the answers are, their temperature and seed.
        folder: Keeps each answer as it is done, in the order of the rounds.
        tell: Told how many there are.

    Raises:
        GenerationError: The model fails.
    """
    rows, texts = folder.rows(_FILE), list[Text]()
    chunk, turn = 4 * backend.num_slots, begun
    while turn:
        first, end = len(texts), len(texts) + len(turn)
        # It gets less where conversations end early.
        total = end + sum(each.num_later for each in turn)
        while len(rows) < end:
            tell("Answering prompts", len(rows), total)
            numbers = range(len(rows), min(len(rows) + chunk, end))
            requests = [
                CompletionRequest(turn[i - first].tokens, _params(settings, i), continues_prompt=not asked.is_chat)
                for i in numbers
            ]
            for stream in backend.start(requests):
                answer = collect(stream)
                rows.append({"tokens": [token.id for token in answer.tokens], "text": answer.text})
                folder.append(_FILE, rows[-1])
                tell("Answering prompts", len(rows), total)
        answered = list(zip(turn, rows[first:end], strict=True))
        texts += [Text((*each.tokens, *row["tokens"]), len(each.tokens)) for each, row in answered]
        gone_on = [asked.next(each, row["text"]) for each, row in answered]
        turn = [each for each in gone_on if each is not None]
    return texts


def _params(settings: DraftSettings, number: int) -> SamplingParams:
    """Greedy and sampled in turns unless one temperature is asked for: a draft is used for both."""
    temperature = settings.temperature
    if temperature is None:
        temperature = float(number % 2)
    seed = settings.seed * 1_000_003 + number
    return SamplingParams(max_new_tokens=settings.max_new_tokens, temperature=temperature, seed=seed)
