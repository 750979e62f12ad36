"""Several drafters beside each other, as one; whoever asks it makes one tree of what they propose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from langchain_specdec.drafters.base import Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.guarded import GuardedDrafter
from langchain_specdec.runner.head_runner import HeadRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.verify import Verdict


class CombinedDrafter(Drafter):
    """Offers what several drafters could propose, and has those propose whose offers are taken.

    Args:
        drafters: In order of preference, where nothing else tells them apart; the free ones first.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        # Where one fails, the others go on.
        self._drafters = tuple([GuardedDrafter(drafter) for drafter in drafters])
        self.num_candidates = max(drafter.num_candidates for drafter in drafters)
        self.num_layers = max(drafter.num_layers for drafter in drafters)

    @property
    def num_forwards(self) -> int:
        """Those of all drafters."""
        return sum(drafter.num_forwards for drafter in self._drafters)

    @property
    def runners(self) -> Sequence[Runner | HeadRunner]:
        """Those of all drafters."""
        return [runner for drafter in self._drafters for runner in drafter.runners]

    def prepare(self, rows: int, lengths: range, *, is_sampled: bool) -> None:
        """Have every drafter make its graphs."""
        for drafter in self._drafters:
            drafter.prepare(rows, lengths, is_sampled=is_sampled)

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stops: Sequence[int]) -> None:
        """Hand the chunk to every drafter."""
        for drafter in self._drafters:
            drafter.prefill(requests, starts, stops)

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        """The proposals of all drafters."""
        return [
            replace(proposal, source=source)
            for source, drafter in enumerate(self._drafters)
            for proposal in drafter.consider(request, limits)
        ]

    def propose(
        self, requests: Sequence[DraftingRequest], proposals: Sequence[Proposal], lengths: Sequence[int]
    ) -> list[Draft]:
        """Each request's draft from the drafter whose proposal it is."""
        drafts = super().propose(requests, proposals, lengths)
        for source, drafter in enumerate(self._drafters):
            rows = [i for i, proposal in enumerate(proposals) if lengths[i] and proposal.source == source]
            if rows:
                own = drafter.propose(
                    [requests[i] for i in rows], [proposals[i] for i in rows], [lengths[i] for i in rows]
                )
                for i, draft in zip(rows, own, strict=True):
                    drafts[i] = draft
        return drafts

    def follow(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
        """Every drafter takes in what the verification computed."""
        for drafter in self._drafters:
            drafter.follow(requests, verdict)

    def observe(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
        """Hand the verification to every drafter."""
        for drafter in self._drafters:
            drafter.observe(requests, verdict)

    def measure_step(self, request: DraftingRequest) -> float:
        """The dearest drafter's."""
        return max(drafter.measure_step(request) for drafter in self._drafters)

    def release(self, request: DraftingRequest) -> None:
        """Every drafter forgets the request."""
        for drafter in self._drafters:
            drafter.release(request)

    def let_go(self, slot: int, start: int) -> None:
        """Every drafter gives it back."""
        for drafter in self._drafters:
            drafter.let_go(slot, start)

    def forget(self) -> None:
        """Every drafter forgets what it shares."""
        for drafter in self._drafters:
            drafter.forget()
