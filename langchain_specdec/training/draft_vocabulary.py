"""The tokens that a draft can propose: those that the model's answers are made of, the most frequent first.

A head over the whole vocabulary would take most of a small draft's time. (FR-Spec, Zhao et al. 2025,
https://arxiv.org/abs/2502.14856)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from langchain_specdec.training.answers import Text

_LARGE_VOCABULARY = 65536
_MOST = {False: 8192, True: 32768}


def draft_token_ids(texts: Sequence[Text], vocab_size: int, size: int | None, ends: Sequence[int]) -> Tensor:
    """The target's ids of the tokens that a draft proposes, int64 `[size]`, ascending.

    Args:
        texts: What is trained on.
        vocab_size: Tokens of the target.
        size: How many; None: as many as the answers have, up to what is usual.
        ends: Tokens that end a text, which are among them.
    """
    counts = Counter(chain.from_iterable(text.tokens[text.num_prompt_tokens :] for text in texts))
    ranked = dict.fromkeys([*ends, *_by_frequency(counts)])
    if size is None:
        size = min(_MOST[vocab_size > _LARGE_VOCABULARY], len(ranked))
    elif size > len(ranked):
        # Behind all that was answered come the prompts' tokens, and the lowest ids, as a rule those of short texts.
        asked = Counter(chain.from_iterable(text.tokens[: text.num_prompt_tokens] for text in texts))
        ranked |= dict.fromkeys([*_by_frequency(asked), *range(vocab_size)])
    chosen = list(ranked)[: min(size, vocab_size)]
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def _by_frequency(counts: Counter[int]) -> list[int]:
    return sorted(counts, key=lambda token: (-counts[token], token))


def share_covered(texts: Sequence[Text], ids: Tensor) -> float:
    """The share of the answers' tokens that a draft with these tokens can propose."""
    known = set(ids.tolist())
    tokens = [token for text in texts for token in text.tokens[text.num_prompt_tokens :]]
    return sum(token in known for token in tokens) / max(len(tokens), 1)
