"""What a constrained text is by the rule alone, without an engine, a cache or drafts."""

from __future__ import annotations

from typing import Any

import torch

from langchain_specdec.grammar.constraint import Constraint
from langchain_specdec.grammar.token_masks import allowed_tensor
from langchain_specdec.sampling.choice import SamplingTable, pick_tokens
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import EOS, VOCAB


def constrained_text(model: Any, prompt: list[int], params: SamplingParams, constraint: Constraint) -> list[int]:
    """The tokens that the model's uncached forward and the mask of the text so far give, one at a time.

    Args:
        model: It has the vocabulary of `tiny_models`.
        prompt: Its tokens.
        params: How it is to go on. Without a grammar no token is masked; what may not come is replaced.
        constraint: At the beginning of the text.
    """
    table = SamplingTable([params], [params.seed or 0], [0], VOCAB, torch.device("cpu"))
    tokens = list(prompt)
    while (remaining := params.max_new_tokens - len(tokens) + len(prompt)) > 0:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[:, -1:]
        masks = constraint.masks([], []) if params.grammar is not None else [None]
        allowed = allowed_tensor([masks], 1, VOCAB, torch.device("cpu"))
        pick = int(pick_tokens(logits, table, torch.tensor([[len(tokens)]]), allowed=allowed))
        (token,) = constraint.in_time([pick], remaining)
        tokens.append(token)
        if token == EOS and not params.ignore_eos:
            break
        constraint.advance([token])
    return tokens[len(prompt) :]
