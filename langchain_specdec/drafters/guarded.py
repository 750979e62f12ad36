"""A drafter whose failures cost no request its text: drafts only change the speed, so the text goes on without them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from langchain_specdec.drafters.base import EMPTY_DRAFT, Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.runner.head_runner import HeadRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.verify import Verdict

_logger = logging.getLogger(__name__)
# What a forward that cannot be measured is taken to cost, in seconds: more than any draft brings.
_UNAFFORDABLE = 1e6


class GuardedDrafter(Drafter):
    """Asks another drafter, and drafts no more for the requests with which it failed.

    Args:
        drafter: The drafter.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self.num_candidates = drafter.num_candidates
        self.num_layers = drafter.num_layers
        # Requests that go on without drafts.
        self._given_up: set[int] = set()

    @property
    def num_forwards(self) -> int:
        """The drafter's."""
        return self._drafter.num_forwards

    @property
    def runners(self) -> Sequence[Runner | HeadRunner]:
        """The drafter's."""
        return self._drafter.runners

    def prepare(self, rows: int, lengths: range, *, is_sampled: bool) -> None:
        """Have it make its graphs. No request is there yet, so a failure is told."""
        self._drafter.prepare(rows, lengths, is_sampled=is_sampled)

    def prefill(self, requests: Sequence[DraftingRequest], starts: Sequence[int], stops: Sequence[int]) -> None:
        """Hand it the chunk."""
        with self._guarding(requests, "read a prompt"):
            self._drafter.prefill(requests, starts, stops)

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        """Its proposals."""
        if request.request_id not in self._given_up:
            with self._guarding([request], "look for a draft"):
                return self._drafter.consider(request, limits)
        return ()

    def propose(
        self, requests: Sequence[DraftingRequest], proposals: Sequence[Proposal], lengths: Sequence[int]
    ) -> list[Draft]:
        """Its drafts; none for all of them where it fails."""
        with self._guarding(requests, "draft"):
            return self._drafter.propose(requests, proposals, lengths)
        return [EMPTY_DRAFT] * len(requests)

    def follow(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
        """Hand it the verdict."""
        if self._may_draft(requests):
            with self._guarding(requests, "take in a verification"):
                self._drafter.follow(requests, verdict)

    def observe(self, requests: Sequence[DraftingRequest], verdict: Verdict) -> None:
        """Have it learn from the verdict."""
        if self._may_draft(requests):
            with self._guarding(requests, "learn from a step"):
                self._drafter.observe(requests, verdict)

    def measure_step(self, request: DraftingRequest) -> float:
        """What it measures."""
        with self._guarding([request], "run a forward to be timed"):
            return self._drafter.measure_step(request)
        return _UNAFFORDABLE

    def release(self, request: DraftingRequest) -> None:
        """Have it forget the request."""
        with self._guarding([], "forget a request"):
            self._drafter.release(request)
        self._given_up.discard(request.request_id)

    def let_go(self, slot: int, start: int) -> None:
        """Have it give the memory back."""
        with self._guarding([], "give back the memory of a slot"):
            self._drafter.let_go(slot, start)

    def forget(self) -> None:
        """Have it forget what it shares."""
        with self._guarding([], "forget earlier texts"):
            self._drafter.forget()

    def _may_draft(self, requests: Sequence[DraftingRequest]) -> bool:
        return any(request.request_id not in self._given_up for request in requests)

    @contextlib.contextmanager
    def _guarding(self, requests: Sequence[DraftingRequest], action: str) -> Iterator[None]:
        """Tell of a failure instead of raising it, and draft no more for these requests after it."""
        try:
            yield
        except Exception:
            if not requests or self._may_draft(requests):
                _logger.exception("The drafter failed to %s; texts go on without its drafts", action)
            for request in requests:
                self._given_up.add(request.request_id)
                # A failure may leave entries that were counted and never computed.
                with contextlib.suppress(Exception):
                    self._drafter.let_go(request.slot, 0)
