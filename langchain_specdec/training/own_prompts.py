"""Prompts that the model writes itself: it knows best what it was trained to be asked.

Behind the beginning of a person's turn, a chat model writes what a person might. (Magpie, Xu et al. 2024,
https://arxiv.org/abs/2406.08464)
"""

from __future__ import annotations

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest, collect
from langchain_specdec.errors import GenerationError
from langchain_specdec.progress import Progress
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.training.prompt_files import GivenPrompt
from langchain_specdec.training.prompt_tokens import PromptFormat
from langchain_specdec.training.work_folder import WorkFolder

_FILE = "own-prompts.jsonl"
_MOST_TOKENS = 96
# Tries for each prompt that is wanted; small models write some again and again.
_TRIES = 4
# Seeds of answers are others.
_FIRST_SEED = 1 << 40


def write_prompts(
    backend: LocalBackend, prompt_format: PromptFormat, folder: WorkFolder, count: int, seed: int, tell: Progress
) -> list[GivenPrompt]:
    """Have the model write prompts, each with a seed of its own, until there are enough different ones.

    Args:
        backend: The model.
        prompt_format: How prompts for it are written.
        folder: Keeps each try, so that none is made twice.
        count: Prompts that are wanted. There may be fewer, where the model keeps writing the same.
        seed: Of all of them.
        tell: Told how many there are.

    Raises:
        GenerationError: It writes nothing.
    """
    if not count:
        return []
    begin, stop = prompt_format.opened_turn
    texts = [row["text"] for row in folder.rows(_FILE)]
    kept = dict.fromkeys(filter(None, texts))
    most = min(_MOST_TOKENS, backend.max_length - len(begin) - 1)
    while len(kept) < count and len(texts) < count * _TRIES:
        tell("Writing prompts", len(kept), count)
        tries = min(2 * backend.num_slots, count * _TRIES - len(texts))
        requests = [
            CompletionRequest(begin, _sampled(_FIRST_SEED + seed * 1_000_003 + number, most, stop))
            for number in range(len(texts), len(texts) + tries)
        ]
        for stream in backend.start(requests):
            text = collect(stream).text.strip()
            folder.append(_FILE, {"text": text})
            texts.append(text)
            if text:
                kept[text] = None
    if not kept:
        msg = f"{backend.model_name} writes no prompts of its own. Give some in a file: --prompts."
        raise GenerationError(msg).for_good()
    return [GivenPrompt(text) for text in list(kept)[:count]]


def _sampled(seed: int, most: int, stop: tuple[str, ...]) -> SamplingParams:
    return SamplingParams(max_new_tokens=most, temperature=1.0, seed=seed, stop=stop)
