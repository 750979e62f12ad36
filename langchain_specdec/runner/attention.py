"""The attention function that Hugging Face models call while the engine runs them.

It is registered under a name of its own through transformers' public `AttentionInterface`. Outside the engine it
behaves as scaled dot product attention does, so a model that a user handed over still works for them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from langchain_specdec.runner.cpu.kernel_attention import can_decode_attention, decode_attention
from langchain_specdec.runner.model_config import ATTENTION_NAME as ATTENTION_NAME

# Arguments of attention modules that change the result and that this function would have to honour.
_UNSUPPORTED = ("position_bias", "head_mask")


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention of ragged rows over their slots.

    Args:
        module: The attention module that calls.
        query: `[rows, heads, width, head_dim]`.
        key: `[rows, kv_heads, length, head_dim]`; fewer heads than the query's are shared by groups of them.
        value: `[rows, kv_heads, length, head_dim]`.
        attention_mask: `[rows, 1, width, length]`, True where a query sees a key, or numbers to add to the scores. As
            `ModelInputs` makes it for a GPU it is `[rows, 1, groups * width, length]` where groups of heads share keys,
            and `[1, 1, 1, 0]` for queries that end where the keys do and each see all before them. None is what
            `is_causal` says.
        dropout: Must be 0; the engine never trains.
        scaling: Factor of the scores; None is `head_dim ** -0.5`.
        softcap: Scores are squashed to `softcap * tanh(scores / softcap)` (Gemma 2).
        is_causal: Whether a query sees only what stands before it, where there is no mask; None asks the module. The
            image encoders of models that also read images are not causal.
        s_aux: Attention sinks `[heads]`: each head's scores have this one more, of a key whose value is zero (gpt-oss).
        kwargs: What else the module passes; ignored unless it would change the result.

    Returns:
        `[rows, width, heads, head_dim]` and None in place of the weights.

    Raises:
        NotImplementedError: The module asks for something that is not supported, a bias by position for example.
    """
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            msg = f"the engine's attention does not support {name!r}, which {type(module).__name__} passes"
            raise NotImplementedError(msg)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    is_causal = is_causal and attention_mask is None and query.shape[2] > 1
    width, groups = query.shape[2], query.shape[1] // key.shape[1]
    is_fused = softcap is None and s_aux is None
    if attention_mask is not None and not attention_mask.shape[3]:
        if is_fused:
            return _causal_attention(query, key, value, scaling), None
        attention_mask, is_causal = None, True
    elif attention_mask is not None and attention_mask.shape[2] > width:
        if is_fused and attention_mask.shape[2] == groups * width:
            return _folded_attention(query, key, value, attention_mask, scaling), None
        attention_mask = attention_mask[:, :, :width]
    if is_fused and attention_mask is not None and can_decode_attention(query, key, value, attention_mask):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return decode_attention(query, key, value, attention_mask, scaling), None
    if not is_fused:
        causal = _causal_mask(width, key.shape[2], query.device) if is_causal else None
        seen = causal if attention_mask is None else attention_mask
        output = _unfused_attention(query, key, value, seen, scaling, softcap, s_aux)
    else:
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            dropout_p=dropout,
            is_causal=is_causal,
            scale=scaling,
            enable_gqa=groups > 1,
        )
    return output.transpose(1, 2).contiguous(), None


def _folded_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Queries that share keys as more queries of one head: no backend has to know of groups, and no key is copied."""
    rows, heads, width, head_dim = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], groups * width, head_dim)
    output = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    output = output.reshape(rows, key.shape[1], groups, width, value.shape[3])
    return output.permute(0, 3, 1, 2, 4).reshape(rows, width, heads, value.shape[3])


def _causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Queries that end where the keys do, each of which sees all before it, which flash takes without a mask."""
    groups = query.shape[1] // key.shape[1]
    # "Not causal", as PyTorch asks itself where there are fewer queries than keys.
    if groups > 1 and not can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, True)):
        # The other backends know nothing of groups.
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    seen: Any = causal_lower_right(query.shape[2], key.shape[2])
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=groups > 1)
    return output.transpose(1, 2).contiguous()


def _unfused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The fused kernels know neither soft caps nor sinks, so these are spelled out, with a softmax in fp32."""
    rows, heads, width, head_dim = query.shape
    kv_heads, length = key.shape[1:3]
    groups = heads // kv_heads
    # Queries that share keys are more queries of one head, so that no key is copied.
    folded = query.reshape(rows, kv_heads, groups * width, head_dim)
    scores = (folded @ key.transpose(2, 3)).view(rows, kv_heads, groups, width, length)
    scores = scores * (head_dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + (additive_mask(mask, scores.dtype) if mask.dtype == torch.bool else mask)[:, :, None]
    if sinks is not None:
        sunk = sinks.to(scores.dtype).view(1, kv_heads, groups, 1, 1).expand(rows, -1, -1, width, -1)
        scores = torch.cat([scores, sunk], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = weights[..., :length].to(query.dtype)
    output = weights.reshape(rows, kv_heads, groups * width, length) @ value
    return output.view(rows, heads, width, value.shape[3])


def _causal_mask(width: int, length: int, device: torch.device) -> Tensor:
    """True where each of the last `width` positions sees a key, `[1, 1, width, length]`."""
    return torch.ones(1, 1, width, length, dtype=torch.bool, device=device).tril(length - width)


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add to scores: 0 where visible, the type's lowest number elsewhere."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask, torch.finfo(dtype).min)


def register() -> None:
    """Make the function known to transformers under `ATTENTION_NAME`; calling it again changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, slot_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
