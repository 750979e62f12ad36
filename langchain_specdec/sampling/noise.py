"""The shared noise that couples drafter and target.

It is a function of seed, position and token alone, so the drafter and the target use the same noise at the same
position, and no choice depends on what was drafted there (Daliri, Musco, Suresh 2024, "Coupling without Communication
and Drafter-Invariant Speculative Decoding", https://arxiv.org/abs/2408.07978).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from langchain_specdec.sampling.params import SamplingParams


MakeNoise = Callable[[Tensor, Tensor, int], Tensor]
"""Makes noise as `gumbel_noise` does; a runner that picks tokens by itself has its own, the same but for rounding."""


@dataclass(frozen=True)
class Noise:
    """What chooses the tokens of rows whose scores are their logits.

    Attributes:
        seeds: The seed in force for each row.
        temperatures: The temperature of each row; 0 is greedy.
    """

    seeds: Sequence[int]
    temperatures: Sequence[float]

    @classmethod
    def of(cls, params: Sequence[SamplingParams], seeds: Sequence[int]) -> Noise | None:
        """What chooses for these rows; None where that takes more than noise."""
        if not all(p.needs_only_noise for p in params):
            return None
        return cls(seeds, [p.temperature for p in params])

    @property
    def is_sampled(self) -> bool:
        """Whether any row is not greedy."""
        return any(temperature > 0 for temperature in self.temperatures)


def seed_halves(seeds: Sequence[int]) -> list[list[int]]:
    """Lower and upper half of each seed, each as an int32."""
    return [[_as_int32(seed & 0xFFFFFFFF), _as_int32(seed >> 32)] for seed in seeds]


def _as_int32(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def _mix(x: Tensor) -> Tensor:
    """The 32-bit integer hash lowbias32 (C. Wellons, hash-prospector), on int32 tensors; overflow wraps."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _as_int32(0x846CA68B)
    return x ^ ((x >> 16) & 0xFFFF)


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise that is a function of (seed, position, token) alone.

    Counter-based, so any row, position or token can be computed by itself, on any device, in any order.

    Args:
        seeds: Lower and upper half of each row's seed, int32 `[rows, 2]`.
        positions: Index of the position in the row's sequence, int64 `[rows, width]`.
        vocab_size: Number of tokens.

    Returns:
        float32 `[rows, width, vocab_size]`, finite everywhere.
    """
    position = positions.to(torch.int32)
    key_low = _mix(_mix(position + seeds[:, :1]) + seeds[:, 1:])
    key_high = _mix(_mix(position * _as_int32(0x9E3779B1) ^ seeds[:, 1:]) + seeds[:, :1])
    token = torch.arange(vocab_size, dtype=torch.int32, device=positions.device)
    bits = _mix(_mix(token + key_low[..., None]) ^ key_high[..., None])
    # v is uniform in ]0, 1[. -log1p(-v) is Exp(1) and keeps full precision for small v, which is where the largest
    # noise, and so the winner of a flat distribution, comes from.
    v = ((bits & 0x7FFFFFFF).to(torch.float32) + 0.5) * 2.0**-31
    v = v.clamp(max=1.0 - 2.0**-24)
    return -torch.log(-torch.log1p(-v))
