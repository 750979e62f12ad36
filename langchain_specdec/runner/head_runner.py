"""What runs a draft head over slots of its own.

A head is no model: beside a token, each of its entries takes a state. Entry j of a text stands for the state at
position j and for token j + 1, and what it gives is for token j + 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from langchain_specdec.runner.step_inputs import RowBatch

if TYPE_CHECKING:
    from langchain_specdec.runner.cpu.native_cache import NativeCache
    from langchain_specdec.runner.kv_cache import SlotCache


Candidates = list[tuple[int, float]]
"""Tokens of the target that may follow, likeliest first, with their chances."""


class HeadRunner(Protocol):
    """A head and its slots.

    Attributes:
        tap_points: Where its states are tapped; see `tap_points`.
        target_ids: The target's number of each token that it drafts, int64 `[vocab]`; None: the same numbers.
        vocab_size: Tokens that it drafts.
        hidden_size: Numbers of a state that stands beside a token.
        num_layers: Its layers.
        device: Where it runs.
        max_width: Most tokens of a row in `run`.
        num_forwards: Calls of `run` so far.
        has_own_threads: See `ModelRunner`.
        bytes_per_token: What keys and values of one entry take.
        work_bytes: See `ModelRunner`.
    """

    tap_points: tuple[int, ...]
    target_ids: Tensor | None
    vocab_size: int
    hidden_size: int
    num_layers: int
    device: torch.device
    max_width: int
    num_forwards: int
    has_own_threads: bool
    bytes_per_token: int
    work_bytes: int

    @property
    def cache(self) -> SlotCache | NativeCache:
        """Its slots."""

    def clock(self) -> float:
        """Seconds, once the device has done what it was given."""

    def note_weights(self) -> bool:
        """Whether weights have changed since this was last asked."""

    def condense(self, states: Tensor) -> Tensor:
        """What the head takes of tapped states: `[count, points, target_hidden]` to `[count, hidden]`."""

    def extend(self, batch: RowBatch, hidden: Sequence[Tensor]) -> None:
        """Take entries into the slots.

        Args:
            batch: The rows' tokens, and where their entries go.
            hidden: The state beside each token, by row `[tokens, hidden]`.
        """

    def run(
        self, batch: RowBatch, hidden: Sequence[Tensor], wanted: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take entries into the slots, which may branch, and say what follows each.

        Args:
            batch: See `extend`.
            hidden: See `extend`.
            wanted: Of how many of its last tokens each row's logits are wanted; None: of all. Others may hold nothing
                of use.

        Returns:
            Logits `[rows, width, vocab]`, and what stands beside a token that follows, `[rows, width, hidden]`. Good
            until the next call.
        """

    def likeliest(
        self, batch: RowBatch, hidden: Sequence[Tensor], wanted: Sequence[int]
    ) -> tuple[list[Candidates | None], Tensor]:
        """As `run`, with the likeliest tokens in place of all logits.

        Args:
            batch: See `extend`; its `num_candidates` says how many tokens.
            hidden: See `extend`.
            wanted: Of how many of its last tokens, for each row.

        Returns:
            What may follow each of these tokens, one row after the other, and None where its scores are not sound;
            and the states, as `run` gives them.
        """

    def release(self) -> None:
        """Let go of the head and the slots."""


def likeliest_by_logits(
    head: HeadRunner, batch: RowBatch, hidden: Sequence[Tensor], wanted: Sequence[int]
) -> tuple[list[Candidates | None], Tensor]:
    """`HeadRunner.likeliest` of what only gives logits."""
    logits, following = head.run(batch, hidden, wanted)
    scores = torch.cat(last_of_rows(logits, batch, wanted)).float()
    return likeliest_tokens(scores, head.target_ids, batch.num_candidates), following


def likeliest_tokens(scores: Tensor, ids: Tensor | None, count: int) -> list[Candidates | None]:
    """What may follow by some scores, `[nodes, vocab]`, that are not sound where one is NaN or infinite: None then.

    Args:
        scores: Logits, or what was made of them.
        ids: See `HeadRunner.target_ids`.
        count: Most tokens of each.
    """
    best = scores.softmax(-1).topk(min(count, scores.shape[-1]))
    tokens = best.indices if ids is None else ids[best.indices]
    # All in one copy to the host; tokens are whole numbers in float32 too, up to 16 million of them.
    told = torch.cat([best.values, tokens.float()], 1).tolist()
    kept = best.indices.shape[1]
    return [candidates([*map(int, row[kept:])], row[:kept]) for row in told]


def candidates(tokens: Sequence[int], chances: Sequence[float]) -> Candidates | None:
    """Those that can follow; None where chances are NaN, as one score that is NaN or infinite makes all of them."""
    if not math.isfinite(chances[0]):
        return None
    return [(token, chance) for token, chance in zip(tokens, chances, strict=True) if chance > 0]


def last_of_rows(values: Tensor, batch: RowBatch, wanted: Sequence[int]) -> list[Tensor]:
    """What stands at so many of each row's last tokens, `[wanted, ...]` each, of `[rows, width, ...]`."""
    rows = zip(values, batch.tokens, wanted, strict=True)
    return [row[len(tokens) - count : len(tokens)] for row, tokens, count in rows]
