"""A target whose next token depends on its last one alone, and heads that know, or take wrongly, what that is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from tests.support.tiny_models import tiny_model

SIZE = 264
"""Tokens, and numbers of a state: a token's embedding has a place of its own."""


def successors(seed: int = 0) -> Tensor:
    """A permutation of the tokens: what the target writes after each, int64 `[SIZE]`."""
    return torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed))


def chained_model(following: Tensor) -> Any:
    """A Llama that writes after each token the one that follows it."""
    model: Any = tiny_model(
        vocab_size=SIZE, hidden_size=SIZE, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(SIZE))
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.copy_(_output(following))
    return model


def chained_head(following: Tensor, draft_vocab: Tensor | None = None) -> Eagle3Head:
    """A head that takes this to follow each token: the target's oracle, if that is so.

    What it is given is the embedding of the token before the last. Its MLP moves that one on, a token a step.

    Args:
        following: What follows each token.
        draft_vocab: The tokens that it drafts; None: all.
    """
    config = Eagle3Config(
        tap_points=(0, 1, 2),
        hidden_size=SIZE,
        target_hidden_size=SIZE,
        embedding_size=SIZE,
        intermediate_size=SIZE,
        num_heads=4,
        num_kv_heads=2,
        head_dim=SIZE // 4,
        vocab_size=SIZE,
        draft_vocab_size=SIZE if draft_vocab is None else len(draft_vocab),
        has_embedding=True,
    )
    head = Eagle3Head(config, draft_vocab)
    eye = torch.eye(SIZE)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(1.0 if parameter.dim() == 1 else 0.0)
        head.fc.weight[:, :SIZE] = eye
        head.embed_tokens.weight.copy_(eye)
        layer: Any = head.layers[0]
        # A one, normed to SIZE ** 0.5, becomes 10 * SIZE in the gate, and that times SIZE ** 0.5 in the product.
        layer.mlp.gate_proj.weight.copy_(10.0 * SIZE**0.5 * eye)
        layer.mlp.up_proj.weight.copy_(eye)
        moved = _output(following)
        layer.mlp.down_proj.weight.copy_((moved - eye) / (10.0 * SIZE**1.5))
        rows = moved if draft_vocab is None else moved[draft_vocab]
        head.lm_head.weight.copy_(10 * rows)
    return head.eval().requires_grad_(False)


def _output(following: Tensor) -> Tensor:
    """Rows of an output layer: that of what follows a token looks for the token."""
    weight = torch.zeros(SIZE, SIZE)
    weight[following, torch.arange(SIZE)] = 1.0
    return weight
