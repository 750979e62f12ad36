"""No speculation: plain decoding on the same engine, the reference for text and for speed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.sampling import TokenHistory

__all__ = ["NoDrafter"]


class NoDrafter:
    """Proposes nothing."""

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stop: Sequence[int]) -> None:
        """Nothing to take in."""

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Proposal:
        """Nothing, ever."""
        return Proposal()

    def propose(
        self,
        requests: Sequence[DraftingRequest],
        proposals: Sequence[Proposal],
        lengths: Sequence[int],
        history: TokenHistory | None,
    ) -> list[Draft]:
        """Empty drafts."""
        return [EMPTY_DRAFT] * len(requests)

    def observe(
        self,
        requests: Sequence[DraftingRequest],
        nodes: Sequence[Sequence[int]],
        paths: Sequence[Sequence[int]],
        logits: Tensor,
    ) -> None:
        """Nothing to learn."""

    def measure_step(self, request: DraftingRequest) -> float:
        """Free."""
        return 0.0

    def forget(self) -> None:
        """Nothing: requests share nothing."""

    def release(self, request: DraftingRequest) -> None:
        """Nothing to forget."""
