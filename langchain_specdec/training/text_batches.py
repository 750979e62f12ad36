"""Batches of whole texts with their states, each a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from langchain_specdec.training.answers import Text
from langchain_specdec.training.states import RecordedStates


class TextBatch(TypedDict):
    """Texts side by side, padded at their ends.

    Attributes:
        states: float32 `[texts, width, points, hidden]`; the last point is what the output head reads.
        tokens: int64 `[texts, width]`.
        is_answered: Positions whose next token is of the answer and there, bool `[texts, width]`.
    """

    states: Tensor
    tokens: Tensor
    is_answered: Tensor


class TextBatches(Dataset[TextBatch]):
    """Batches of texts of about one length; the same texts always make the same batches.

    Args:
        texts: All that states were recorded of.
        numbers: Those to take.
        states: Their states.
        batch_tokens: Most tokens of a batch, padding included, but for one that is a single text.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        numbers: Sequence[int],
        states: RecordedStates | Mapping[int, Tensor],
        batch_tokens: int,
    ) -> None:
        self._texts, self._states = texts, states
        self._batches: list[list[int]] = []
        batch: list[int] = []
        for number in sorted(numbers, key=lambda each: (-len(texts[each].tokens), each)):
            # The first is the longest.
            if batch and (len(batch) + 1) * len(texts[batch[0]].tokens) > batch_tokens:
                self._batches.append(batch)
                batch = []
            batch.append(number)
        if batch:
            self._batches.append(batch)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> TextBatch:
        numbers = self._batches[index]
        texts = [self._texts[number] for number in numbers]
        width = max(len(text.tokens) for text in texts)
        tokens = torch.zeros(len(texts), width, dtype=torch.int64)
        is_answered = torch.zeros(len(texts), width, dtype=torch.bool)
        recorded = [self._states[number] for number in numbers]
        states = torch.zeros(len(texts), width, *recorded[0].shape[1:])
        for row, text in enumerate(texts):
            length = len(text.tokens)
            tokens[row, :length] = torch.tensor(text.tokens)
            is_answered[row, text.num_prompt_tokens - 1 : length - 1] = True
            states[row, :length] = recorded[row].float()
        return {"states": states, "tokens": tokens, "is_answered": is_answered}
