"""Which request sits in which slot. No tensors, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from langchain_specdec.engine.request import Request

# While more requests wait than there are free slots, a free slot waits so many turns for others that free up as soon.
_PATIENCE = 3


class Scheduler:
    """First come, first served over a fixed number of slots.

    A finished request leaves its tokens in the slot. A new one takes the free slot that shares the longest beginning
    with its prompt, and prefills only the rest; where none shares any, the slot that has rested longest.

    Args:
        num_slots: Requests that can run at a time.
        prefill_budget: Most tokens, padding included, of one prefill forward.
        max_length: Positions of a slot; padding may not go past them.
    """

    def __init__(self, num_slots: int, prefill_budget: int, max_length: int = 2**31) -> None:
        self.num_slots = num_slots
        self._prefill_budget = prefill_budget
        self._max_length = max_length
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        # Running requests whose slots hold what is not to be reused.
        self._outdated: set[Request] = set()
        # Free slots and the tokens that rest in them, the longest-rested first.
        self._resting: dict[int, list[int]] = {slot: [] for slot in range(num_slots)}
        self._num_turns_waited = 0

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    @property
    def running(self) -> list[Request]:
        """Requests that hold a slot, in order of their slots."""
        return sorted(self._running, key=lambda request: request.slot)

    @property
    def requests(self) -> list[Request]:
        """All requests that have not ended, running ones first."""
        return [*self._running, *self._waiting]

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    def admit(self) -> list[Request]:
        """Give free slots to waiting requests, in order; those that got one."""
        if self._waits_for_others():
            return []
        admitted = []
        while self._waiting and self._resting:
            request = self._waiting.popleft()
            shared = {slot: _shared_length(tokens, request) for slot, tokens in self._resting.items()}
            # max() takes the first of equals: the longest-rested.
            slot = max(shared, key=lambda s: shared[s])
            del self._resting[slot]
            request.slot, request.num_cached, request.num_reused = slot, shared[slot], shared[slot]
            self._running.append(request)
            admitted.append(request)
        return admitted

    def _waits_for_others(self) -> bool:
        """Whether a free slot is to wait for others, so that the prompts which take their place share a forward.

        Texts of equal length end together without drafts and a step or two apart with them.
        """
        is_full = 0 < len(self._resting) < len(self._waiting)
        if is_full and self._num_turns_waited < _PATIENCE and any(r.num_remaining <= _PATIENCE for r in self._running):
            self._num_turns_waited += 1
            return True
        self._num_turns_waited = 0
        return False

    def next_prefill(self) -> list[tuple[Request, int]]:
        """Requests for the next prefill forward and the position to which each is to be taken; oldest first.

        Several short prompts share a forward as long as, padded to the widest, they fit the budget and their slots; a
        prompt longer than the budget gets it alone, one chunk at a time.
        """
        batch: list[tuple[Request, int]] = []
        width = start = 0
        for request in self._running:
            if request.is_prefilled:
                continue
            size = min(request.prefill_stop - request.num_cached, self._prefill_budget)
            width, start = max(width, size), max(start, request.num_cached)
            is_too_large = width * (len(batch) + 1) > self._prefill_budget or start + width > self._max_length
            if batch and is_too_large:
                break
            batch.append((request, request.num_cached + size))
        return sorted(batch, key=lambda item: item[0].slot)

    def next_decode(self) -> list[Request]:
        """Requests for the next decoding step."""
        return [request for request in self.running if request.is_prefilled]

    def remove(self, request: Request) -> None:
        """Take out a request that ended, failed or was cancelled; its slot rests."""
        if request.slot < 0:
            self._waiting.remove(request)
            return
        self._running.remove(request)
        self._resting[request.slot] = [] if request in self._outdated else request.token_ids[: request.num_cached]
        self._outdated.discard(request)

    def forget(self) -> None:
        """Reuse nothing of what slots hold by now: the model computes something else from here on."""
        self._resting = {slot: [] for slot in self._resting}
        self._outdated = set(self._running)


def _shared_length(resting: Sequence[int], request: Request) -> int:
    """Tokens of the prompt that need no prefill; the last one always runs, for its logits."""
    limit = min(len(resting), request.prefill_stop)
    prompt = request.prompt_ids
    if list(resting[:limit]) == list(prompt[:limit]):
        return limit
    return next(i for i in range(limit) if resting[i] != prompt[i])
