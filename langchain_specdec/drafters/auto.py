"""Lookup where it matches, else the draft model if there is one."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_specdec.drafters.base import Draft, Drafter, DraftingRequest, Proposal
from langchain_specdec.sampling import TokenHistory

__all__ = ["AutoDrafter"]


class AutoDrafter:
    """Asks several drafters in order and takes the first that has something to propose.

    Args:
        drafters: In order of preference; the free ones first.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = tuple(drafters)
        self._chosen: dict[int, Drafter] = {}

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stop: Sequence[int]) -> None:
        """Hand the chunk to every drafter."""
        for drafter in self._drafters:
            drafter.prefill(requests, starts, stop)

    def consider(self, request: DraftingRequest, max_tokens: int) -> Proposal:
        """The proposal of the first drafter that has one."""
        for drafter in self._drafters:
            proposal = drafter.consider(request, max_tokens)
            if proposal.kinds:
                self._chosen[request.request_id] = drafter
                return proposal
        return Proposal()

    def propose(
        self,
        requests: Sequence[DraftingRequest],
        proposals: Sequence[Proposal],
        lengths: Sequence[int],
        history: TokenHistory | None,
    ) -> list[Draft]:
        """Each request's draft from the drafter that `consider` chose for it."""
        drafts = [p.draft.cut(n) for p, n in zip(proposals, lengths, strict=True)]
        for drafter in self._drafters:
            rows = [i for i, r in enumerate(requests) if lengths[i] and self._chosen.get(r.request_id) is drafter]
            if rows:
                own = drafter.propose(
                    [requests[i] for i in rows], [proposals[i] for i in rows], [lengths[i] for i in rows], history
                )
                for i, draft in zip(rows, own, strict=True):
                    drafts[i] = draft
        return drafts

    def measure_step(self, request: DraftingRequest) -> float:
        """The dearest drafter's."""
        return max(drafter.measure_step(request) for drafter in self._drafters)

    def release(self, request: DraftingRequest) -> None:
        """Every drafter forgets the request."""
        self._chosen.pop(request.request_id, None)
        for drafter in self._drafters:
            drafter.release(request)
