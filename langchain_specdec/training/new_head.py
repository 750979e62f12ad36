"""A head that knows nothing yet, of the size that fits a target."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.training.output_head import OutputHead

_STD = 0.02
_FEWEST_LAYERS, _MANY_LAYERS = 2, 8


def tap_points(num_layers: int) -> tuple[int, int, int]:
    """Where a head reads the target: early, in the middle and late, as EAGLE-3's published heads do.

    Raises:
        UnsupportedModelError: The target has too few layers to gain anything from a head.
    """
    if num_layers < _FEWEST_LAYERS:
        msg = f"A head is as large as a layer, and this model has {num_layers}. It gains nothing from one."
        raise UnsupportedModelError(msg)
    if num_layers < _MANY_LAYERS:
        return num_layers // 4, num_layers // 2, num_layers - 1
    return 2, num_layers // 2, num_layers - 3


def head_config(target: LoadedModel, ids: Tensor) -> Eagle3Config:
    """What a head for a target is made of: one layer, of the target's sizes.

    Args:
        target: The target.
        ids: The tokens that it drafts, int64 `[draft_vocab_size]`.
    """
    config = target.model.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    inner = getattr(config, "intermediate_size", None)
    return Eagle3Config(
        tap_points=tap_points(config.num_hidden_layers),
        hidden_size=hidden,
        target_hidden_size=hidden,
        embedding_size=hidden,
        intermediate_size=inner if isinstance(inner, int) else 4 * hidden,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        vocab_size=config.vocab_size,
        draft_vocab_size=len(ids),
        max_positions=target.max_positions or 2048,
    )


def new_head(
    config: Eagle3Config,
    ids: Tensor,
    embedding: Callable[[Tensor], Tensor],
    output: OutputHead,
    scale: Tensor,
    seed: int,
) -> Eagle3Head:
    """A head with random weights, but for its output layer, which begins as the target's.

    Args:
        config: See `head_config`.
        ids: See `head_config`.
        embedding: The target's embeddings.
        output: The target's output head, of these tokens.
        scale: How large each number is of the states that the target's output head reads, `[hidden]`: so large are
            those that the head's output layer reads at first.
        seed: Of the weights.
    """
    head = Eagle3Head(config, ids, embedding=torch.no_grad()(embedding))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, _STD, generator=generator)
        head.norm.weight.copy_(scale)
        head.lm_head.weight.copy_(output.rows)
    return head.train()
