"""Rotary tables of GGUF models, by transformers' own arithmetic in float32.

NumPy does it: the first products and powers of PyTorch bring 6 MB of its library into memory, which a native decoder
does without.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from langchain_specdec.errors import ModelLoadError
from langchain_specdec.models.gguf.config import GGUFConfig
from langchain_specdec.models.gguf.file import GGUFFile
from langchain_specdec.models.gguf.tensors import read_vector
from langchain_specdec.runner.cpu.decoder_weights import Floats, RotaryTable

# Whose factors a file may carry: Llama 3's scaling, and that of Phi-3 for short texts.
FACTORS = ("rope_freqs.weight", "rope_factors_short.weight")
# Positions that are computed at a time. A table of 131072 takes 32 MB and more, and most texts end long before.
_CHUNK = 1024


def rotary_tables(file: GGUFFile, config: GGUFConfig) -> list[RotaryTable]:
    """The tables of a model: one, or two where layers with a window have one of their own.

    Raises:
        ModelLoadError: The file's factors do not fit.
    """
    frequencies, scale = inverse_frequencies(file, config)
    tables = [_table(frequencies, scale, config)]
    if base := getattr(config, "rope_local_base_freq", None):
        tables.append(_table(_frequencies(base, rotary_dim(config)), 1.0, config))
    return tables


def rotary_dim(config: GGUFConfig) -> int:
    """Numbers of a head that positions turn."""
    numbers: int = round(config.head_dim * float(getattr(config, "partial_rotary_factor", 1.0)))
    return numbers


def inverse_frequencies(file: GGUFFile, config: GGUFConfig) -> tuple[Floats, float]:
    """By how much each pair turns from one position to the next, and what cosines and sines are multiplied by."""
    dim, scaling = rotary_dim(config), config.rope_scaling or {}
    frequencies, scale = _frequencies(config.rope_theta, dim), 1.0
    if scaling.get("rope_type") == "linear":
        frequencies = frequencies / np.float32(scaling["factor"])
    elif scaling.get("rope_type") == "yarn":
        frequencies, scale = _yarn(config.rope_theta, dim, scaling)
    scale = scaling.get("attention_factor", scale)
    for name in FACTORS:
        if name in file.tensors:
            factors = read_vector(file.tensors[name])
            if len(factors) != dim // 2 or not (factors > 0).all():
                raise ModelLoadError(f"{str(file.path)!r} is damaged: {name} does not fit. Download it anew.")
            frequencies = frequencies / factors
    return frequencies, scale


def _powers(base: float, dim: int) -> Floats:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # A power is rounded once.
    return (np.float64(base) ** exponents.astype(np.float64)).astype(np.float32)


def _frequencies(base: float, dim: int) -> Floats:
    return np.float32(1) / _powers(base, dim)


def _table(frequencies: Floats, scale: float, config: GGUFConfig) -> RotaryTable:
    positions, filled = config.max_position_embeddings, 0
    # Zeros take no memory until they are written to.
    cosines, sines = (np.zeros((positions, len(frequencies)), np.float32) for _ in range(2))

    def reach(wanted: int) -> None:
        # Who fills in the same rows meanwhile, for another decoder, writes the same numbers.
        nonlocal filled
        start = filled
        while start < min(wanted, positions):
            rows = slice(start, min(start + _CHUNK, positions))
            # Angles are float32 numbers, as transformers has them; what follows is rounded once, on all machines alike.
            angles = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] * frequencies
            for turn, table in ((np.cos, cosines), (np.sin, sines)):
                table[rows] = turn(angles.astype(np.float64)).astype(np.float32) * np.float32(scale)
            filled = start = rows.stop

    return RotaryTable(cosines, sines, reach)


def _yarn(base: float, dim: int, scaling: dict[str, Any]) -> tuple[Floats, float]:
    """Peng et al. 2023, "YaRN"."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

    def place(turns: float) -> float:
        """Of the pair that makes so many turns within the original positions."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(place(scaling.get("beta_fast", 32.0))), 0)
    high = min(math.ceil(place(scaling.get("beta_slow", 1.0))), dim - 1)
    places = np.arange(dim // 2, dtype=np.float32) - np.float32(low)
    ramp = np.clip(places / np.float32(max(high - low, 0.001)), 0, 1)
    powers, one = _powers(base, dim), np.float32(1)
    kept = one - ramp
    frequencies = one / (np.float32(factor) * powers) * (one - kept) + one / powers * kept
    return frequencies, 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
