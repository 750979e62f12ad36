"""How much each layer of a model changes what goes through it: which of them a smaller model can do without.

Block influence: 1 minus the cosine of the states that enter a layer and those that leave it, in the mean. (ShortGPT,
Men et al. 2024, https://arxiv.org/abs/2403.03853)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cpu.native_decoder import MAX_TAPS
from langchain_specdec.runner.runner import Runner
from langchain_specdec.training.answers import Text
from langchain_specdec.training.states import states_of

# Texts that are looked at, and tokens of each.
_MOST_TEXTS = 32
_MOST_TOKENS = 256


def influences(target: LoadedModel, texts: Sequence[Text], num_threads: int | None, tell: Progress) -> dict[int, float]:
    """The influence of each layer but the first and the last, where answers are written.

    Args:
        target: The model, which runs nothing meanwhile.
        texts: Prompts with answers, of which some are taken.
        num_threads: See `make_runner`.
        tell: Told how far it is.

    Raises:
        UnsupportedModelError: The model shows no states of its layers.
    """
    texts = texts[:_MOST_TEXTS]
    last = target.model.config.get_text_config().num_hidden_layers - 1
    found: dict[int, float] = {}
    # A native decoder is tapped at so many points, and what enters a layer is what leaves the one before.
    firsts = range(1, last, MAX_TAPS - 1)
    for part, first in enumerate(firsts):
        points = range(first, min(first + MAX_TAPS, last + 1))
        runner = _tapped(target, points, max(len(_read(text)) for text in texts), num_threads)
        try:
            total, count = torch.zeros(len(points) - 1, dtype=torch.float64), 0
            for number, text in enumerate(texts):
                states = states_of(runner, _read(text))[text.num_prompt_tokens - 1 :].float()
                total += (1 - F.cosine_similarity(states[:, :-1], states[:, 1:], dim=-1)).double().sum(0)
                count += len(states)
                tell("Measuring layers, texts", part * len(texts) + number + 1, len(firsts) * len(texts))
        finally:
            # The model is still of use.
            runner.release()
        found |= zip(points, (total / count).tolist(), strict=False)
    return found


def _read(text: Text) -> Sequence[int]:
    """What is read of a text: up to where there is an answer to look at."""
    return text.tokens[: max(_MOST_TOKENS, text.num_prompt_tokens + 1)]


def _tapped(target: LoadedModel, points: Sequence[int], max_length: int, num_threads: int | None) -> Runner:
    runner = make_runner(target, num_slots=1, max_length=max_length, max_width=1, num_threads=num_threads)
    try:
        runner.tap(points)
    except ValueError as error:
        runner.release()
        raise UnsupportedModelError(f"{target.name} shows no states of its layers: {error}.") from error
    return runner


def most_influential(found: dict[int, float], num_layers: int, count: int) -> list[int]:
    """The numbers of `count` layers to keep, ascending: the first, the last, and those with the most influence."""
    ranked = sorted(found, key=lambda layer: (-found[layer], layer))
    return sorted([0, num_layers - 1, *ranked[: count - 2]])
