"""By how much a head's queries and keys turn, from a configuration in Hugging Face's words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KINDS = ("default", "linear", "llama3", "yarn")
"""The kinds of rotary positions that heads may have."""


def rotary_frequencies(rope: Mapping[str, Any], head_dim: int) -> tuple[Tensor, float]:
    """Rotary positions (RoFormer, 2021), stretched as `rope_type` says.

    Args:
        rope: `rope_type`, one of `KINDS`; `rope_theta`; `partial_rotary_factor`, and what the kind takes.
        head_dim: Numbers of a head.

    Returns:
        By how much each pair turns from one position to the next, float32 `[rotary_dim / 2]`, and what cosines and
        sines are multiplied by.
    """
    base, kind = float(rope.get("rope_theta", 10000.0)), rope.get("rope_type", "default")
    dim = int(head_dim * float(rope.get("partial_rotary_factor") or 1.0))
    frequencies = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim))
    if kind == "linear":
        return frequencies / rope["factor"], 1.0
    if kind == "llama3":
        return _llama3(frequencies, rope), 1.0
    if kind == "yarn":
        return _yarn(frequencies, base, rope)
    return frequencies, 1.0


def _llama3(frequencies: Tensor, rope: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's: slow pairs turn slower by the factor, quick ones as before, and those between by some of it."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = float(rope["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * kept + frequencies / float(rope["factor"]) * (1 - kept)


def _yarn(frequencies: Tensor, base: float, rope: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Peng et al. 2023, "YaRN", with the scaling of attention that DeepSeek's configurations add to it."""
    dim, factor, original = 2 * len(frequencies), float(rope["factor"]), rope["original_max_position_embeddings"]

    def place(turns: float) -> float:
        """Of the pair that makes so many turns within the original positions."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = place(rope.get("beta_fast") or 32.0), place(rope.get("beta_slow") or 1.0)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    stretched = frequencies / factor * ramp + frequencies * (1 - ramp)
    return stretched, _yarn_scale(rope, factor)


def _yarn_scale(rope: Mapping[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)
