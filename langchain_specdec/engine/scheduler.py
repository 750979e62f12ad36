"""Which request sits in which slot. No tensors, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from langchain_specdec.engine.request import Request

# While more requests wait than there are free slots, a free slot waits so many turns for others that free up as soon.
_PATIENCE = 3
# Tokens of two texts that are compared at a time.
_COMPARED = 512


class Scheduler:
    """First come, first served over a fixed number of slots.

    A finished request leaves its tokens in the slot. A new one takes the free slot that shares the longest beginning
    with its prompt, by the same adapter and in the same namespace, and prefills only the rest; where none shares any,
    the slot that has rested longest.

    Where memory is taken by tokens, a request waits until all that it may come to hold has room beside what the running
    ones may. What rests in slots is let go for it, the longest-rested first.

    Args:
        num_slots: Requests that can run at a time.
        max_length: Positions of a slot; padding may not go past them.
        token_budget: Tokens that all slots may hold together, at least as many as any request; None is without limit.
        resumable: Says of the first so many tokens of a slot's text how many can stay, so that another text goes on
            after them; None: all.
    """

    def __init__(
        self,
        num_slots: int,
        max_length: int = 2**31,
        token_budget: int | None = None,
        resumable: Callable[[int, int], int] | None = None,
    ) -> None:
        self.num_slots = num_slots
        self._max_length = max_length
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        # Running requests whose slots hold what is not to be reused.
        self._outdated: set[Request] = set()
        # Free slots and the keys of the tokens that rest in them, the longest-rested first.
        self._resting: dict[int, list[int]] = {slot: [] for slot in range(num_slots)}
        # Who may go on from what rests in each of them.
        self._resting_namespaces: dict[int, tuple[str, str | None]] = {}
        self._num_turns_waited = 0
        # Whether the latest prefill read on in the prompt that came first.
        self._has_read_oldest = False
        self._token_budget = token_budget
        self._resumable = resumable or (lambda _, length: length)
        # Tokens that each slot holds or may come to hold, and what was let go of since this was last taken.
        self._num_held = dict.fromkeys(range(num_slots), 0)
        self._let_go: list[tuple[int, int]] = []

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
    def num_reading(self) -> int:
        """Requests with a slot whose prompt has not been read to its end."""
        return sum(not request.is_prefilled for request in self._running)

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
            request = self._waiting[0]
            # A prompt that waits for room is compared with nothing: it may wait for many turns.
            if not self._has_room(request.max_tokens):
                break
            shared = {
                slot: self._reusable(slot, tokens, request)
                if self._resting_namespaces.get(slot) == request.cache_namespace
                else 0
                for slot, tokens in self._resting.items()
            }
            # max() takes the first of equals: the longest-rested.
            slot = max(shared, key=lambda s: shared[s])
            self._make_room(slot, request.max_tokens)
            self._waiting.popleft()
            del self._resting[slot]
            request.slot, request.num_cached, request.num_reused = slot, shared[slot], shared[slot]
            self._running.append(request)
            admitted.append(request)
        return admitted

    def _reusable(self, slot: int, keys: Sequence[int], request: Request) -> int:
        """How much of what rests in a slot the prompt goes on from."""
        length = self._resumable(slot, request.whole_images(_shared_length(keys, request)))
        return length if request.whole_images(length) == length else 0

    def _has_room(self, size: int) -> bool:
        """Whether a request of that size has room beside the running ones."""
        return self._token_budget is None or self._num_left(self._token_budget, size) >= 0

    def _num_left(self, budget: int, size: int) -> int:
        """Tokens that may rest in slots beside the running requests and one of that size."""
        return budget - size - sum(self._num_held[request.slot] for request in self._running)

    def _make_room(self, slot: int, size: int) -> None:
        """Let go of what leaves no room for a request of that size in a resting slot."""
        budget = self._token_budget
        if budget is None:
            return
        self._hold(slot, size)
        others = [other for other in self._resting if other != slot]
        excess = sum(self._num_held[other] for other in others) - self._num_left(budget, size)
        for other in others:
            if excess <= 0:
                break
            excess -= self._num_held[other]
            self._resting[other] = []
            self._hold(other, 0)
        self._num_held[slot] = size

    def _hold(self, slot: int, count: int) -> None:
        """Let go of what a slot holds beyond so many tokens."""
        if self._num_held[slot] > count:
            self._let_go.append((slot, count))
            self._num_held[slot] = count

    def take_let_go(self) -> list[tuple[int, int]]:
        """Slots that hold nothing of use from a position on any more, since this was last asked: `(slot, position)`."""
        let_go, self._let_go = self._let_go, []
        return let_go

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

    def next_prefill(self, budget: int) -> list[tuple[Request, int]]:
        """Requests for the next prefill forward and the position to which each is to be taken.

        Several short prompts share a forward as long as, padded to the widest, they fit the budget and their slots; a
        prompt longer than the budget gets it alone, one chunk at a time. The oldest prompts come first, and every other
        time those of which the least is left: so one that is long keeps no other waiting, nor they it.

        Args:
            budget: Most tokens of the forward, padding included.
        """
        reading = [request for request in self._running if not request.is_prefilled]
        oldest = next(iter(reading), None)
        if self._has_read_oldest:
            reading.sort(key=lambda request: request.prefill_stop - request.num_cached)
        batch: list[tuple[Request, int]] = []
        width = start = 0
        for request in reading:
            size = request.prefill_end(min(request.prefill_stop - request.num_cached, budget)) - request.num_cached
            width, start = max(width, size), max(start, request.num_cached)
            is_too_large = width * (len(batch) + 1) > budget or start + width > self._max_length
            if batch and is_too_large:
                break
            batch.append((request, request.num_cached + size))
        self._has_read_oldest = any(request is oldest for request, _ in batch)
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
        slot, resting = request.slot, request.cached_keys
        self._resting_namespaces[slot] = request.cache_namespace
        self._resting[slot] = [] if request in self._outdated else resting
        self._outdated.discard(request)
        if self._token_budget is not None:
            self._num_held[slot] = request.num_cached
            self._hold(slot, len(self._resting[slot]))

    def forget(self) -> None:
        """Reuse nothing of what slots hold by now: the model computes something else from here on."""
        for slot in self._resting:
            self._resting[slot] = []
            self._hold(slot, 0)
        self._outdated = set(self._running)


def _shared_length(resting: Sequence[int], request: Request) -> int:
    """Tokens of the prompt that need no prefill; the last one always runs, for its logits."""
    limit = min(len(resting), request.prefill_stop)
    prompt = request.prompt_keys
    for start in range(0, limit, _COMPARED):
        stop = min(start + _COMPARED, limit)
        if list(resting[start:stop]) != list(prompt[start:stop]):
            return next(i for i in range(start, stop) if resting[i] != prompt[i])
    return limit
