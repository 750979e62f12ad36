"""What runs a draft head over slots of its own.

A head is no model: beside a token, each of its entries takes a state. Entry j of a text stands for the state at
position j and for token j + 1, and what it gives is for token j + 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from langchain_specdec.runner.step_inputs import RowBatch

if TYPE_CHECKING:
    from langchain_specdec.runner.cpu.native_cache import NativeCache
    from langchain_specdec.runner.kv_cache import SlotCache


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

    def release(self) -> None:
        """Let go of the head and the slots."""
