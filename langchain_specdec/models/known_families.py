"""The families of Hugging Face models that a native decoder runs, and how they differ from Llama."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """How a family differs from Llama.

    Attributes:
        name: Of its module in transformers.
        prefix: Of its classes.
        windows: Which layers have the configuration's `sliding_window`: "none", "all", or those of the kind
            "sliding_attention" ("by_kind").
        is_fused: Whether query, key and value are one layer, and gate and up another.
        has_head_norms: Whether each head's query and key is normed.
        has_output_norms: Whether the outputs of attention and of the MLP are.
        norm_offset: What is added to the weights of norms.
        embedding_scale: What the configuration has embeddings multiplied by.
        scales: Names of the configuration's factors of outputs, and divisor of logits.
        softcaps: Names of the configuration's soft caps, of scores and of logits.
    """

    name: str
    prefix: str
    windows: str = "none"
    is_fused: bool = False
    has_head_norms: bool = False
    has_output_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: Callable[[Any], float] = lambda _: 1.0
    scales: tuple[str, str] = ("", "")
    softcaps: tuple[str, str] = ("", "")


def _root_of_hidden(config: Any) -> float:
    return math.sqrt(config.hidden_size)


_GEMMA: dict[str, Any] = {"norm_offset": 1.0, "embedding_scale": _root_of_hidden}
_GEMMA2 = _GEMMA | {"windows": "by_kind", "has_output_norms": True}
_KNOWN = (
    Family("llama", "Llama"),
    Family("mistral", "Mistral", windows="all"),
    Family("qwen2", "Qwen2", windows="by_kind"),
    Family("qwen3", "Qwen3", windows="by_kind", has_head_norms=True),
    Family("smollm3", "SmolLM3", windows="by_kind"),
    Family("phi3", "Phi3", windows="all", is_fused=True),
    Family("gemma", "Gemma", **_GEMMA),
    Family("gemma2", "Gemma2", softcaps=("attn_logit_softcapping", "final_logit_softcapping"), **_GEMMA2),
    # Its configuration has a soft cap of scores too, of which its attention is not told.
    Family("gemma3", "Gemma3", has_head_norms=True, softcaps=("", "final_logit_softcapping"), **_GEMMA2),
    Family(
        "granite",
        "Granite",
        embedding_scale=lambda config: float(config.embedding_multiplier),
        scales=("residual_multiplier", "logits_scaling"),
    ),
)
FAMILIES = {f"transformers.models.{f.name}.modeling_{f.name}.{f.prefix}ForCausalLM": f for f in _KNOWN}
"""By the full names of their classes."""
