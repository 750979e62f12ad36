"""Rotary positions of GGUF models, by transformers' own arithmetic in float32."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from langchain_specdec.errors import ModelLoadError
from langchain_specdec.models.gguf.config import GGUFConfig
from langchain_specdec.models.gguf.file import GGUFFile
from langchain_specdec.models.gguf.tensors import read_vector
from langchain_specdec.runner.cpu.rotary import Rotary

# Whose factors a file may carry: Llama 3's scaling, and that of Phi-3 for short texts.
FACTORS = ("rope_freqs.weight", "rope_factors_short.weight")


def rotaries(file: GGUFFile, config: GGUFConfig) -> list[Rotary]:
    """What turns a model's queries and keys: one, or two where layers with a window have one of their own.

    Raises:
        ModelLoadError: The file's factors do not fit.
    """
    frequencies, scale = inverse_frequencies(file, config)
    found = [Rotary(frequencies.numpy(), scale)]
    if base := getattr(config, "rope_local_base_freq", None):
        found.append(Rotary(_frequencies(base, rotary_dim(config)).numpy()))
    return found


def rotary_dim(config: GGUFConfig) -> int:
    """Numbers of a head that positions turn."""
    numbers: int = round(config.head_dim * float(getattr(config, "partial_rotary_factor", 1.0)))
    return numbers


def inverse_frequencies(file: GGUFFile, config: GGUFConfig) -> tuple[Tensor, float]:
    """By how much each pair turns from one position to the next, and what cosines and sines are multiplied by."""
    dim, scaling = rotary_dim(config), config.rope_scaling or {}
    frequencies, scale = _frequencies(config.rope_theta, dim), 1.0
    if scaling.get("rope_type") == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling.get("rope_type") == "yarn":
        frequencies, scale = _yarn(config.rope_theta, dim, scaling)
    scale = scaling.get("attention_factor", scale)
    for name in FACTORS:
        if name in file.tensors:
            factors = torch.from_numpy(read_vector(file.tensors[name]))
            if len(factors) != dim // 2 or not bool((factors > 0).all()):
                raise ModelLoadError(f"{str(file.path)!r} is damaged: {name} does not fit. Download it anew.")
            frequencies = frequencies / factors
    return frequencies, scale


def _frequencies(base: float, dim: int) -> Tensor:
    return 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))


def _yarn(base: float, dim: int, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    """Peng et al. 2023, "YaRN"."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

    def place(turns: float) -> float:
        """Of the pair that makes so many turns within the original positions."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(place(scaling.get("beta_fast", 32.0))), 0)
    high = min(math.ceil(place(scaling.get("beta_slow", 1.0))), dim - 1)
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (max(high - low, 0.001)), 0, 1)
    powers = base ** (torch.arange(0, dim, 2).float() / dim)
    kept = 1 - ramp
    frequencies = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return frequencies, 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
