"""Which request sits in which slot: order, choice of the slot, prefill within the budget."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.drafters.acceptance import AcceptanceRates
from langchain_specdec.engine.request import Request
from langchain_specdec.engine.scheduler import Scheduler
from langchain_specdec.engine.stopping import StopChecker
from langchain_specdec.sampling.params import SamplingParams


def make_request(request_id: int, prompt: Sequence[int], namespace: str = "") -> Request:
    no_text: Any = None
    stopper = StopChecker(no_text, 5, (), (), {}, {})
    stream = CompletionStream(on_close=lambda: None)
    own = tuple(prompt), SamplingParams(max_new_tokens=5), 0, stopper, stream, AcceptanceRates()
    return Request(request_id, *own, namespace=namespace)


def requests_of_lengths(*lengths: int) -> list[Request]:
    """Prompts without a common beginning."""
    return [make_request(i, [1000 + i, *range(1, length)]) for i, length in enumerate(lengths)]


def admitted(scheduler: Scheduler, requests: Sequence[Request]) -> list[Request]:
    for request in requests:
        scheduler.add(request)
    return scheduler.admit()


def finish(scheduler: Scheduler, request: Request) -> None:
    """Have a request end with its prompt and five more tokens in the cache."""
    request.token_ids.extend([77] * 5)
    request.num_cached = len(request.token_ids) - 1
    scheduler.remove(request)


def test_first_come_first_served() -> None:
    scheduler, requests = Scheduler(2), requests_of_lengths(3, 3, 3, 3, 3)
    assert admitted(scheduler, requests) == requests[:2]
    assert scheduler.num_waiting == 3
    assert scheduler.admit() == []
    for i in range(3):
        finish(scheduler, requests[i])
        assert scheduler.admit() == [requests[i + 2]]
    assert scheduler.num_waiting == 0
    assert {r.slot for r in scheduler.running} == {0, 1}


def test_one_that_waits_can_leave_the_queue() -> None:
    scheduler, requests = Scheduler(1), requests_of_lengths(3, 3, 3)
    admitted(scheduler, requests)
    scheduler.remove(requests[1])
    assert scheduler.num_waiting == 1
    finish(scheduler, requests[0])
    assert scheduler.admit() == [requests[2]]
    assert scheduler.requests == [requests[2]]


def test_a_slot_with_the_longest_common_beginning_is_taken() -> None:
    scheduler = Scheduler(3)
    old = [make_request(0, [1, 2, 3, 9, 9]), make_request(1, [1, 2, 3, 4, 5, 6]), make_request(2, [8, 8, 8])]
    for request in admitted(scheduler, old):
        finish(scheduler, request)
    new = make_request(3, [1, 2, 3, 4, 5, 0, 0, 0])
    assert admitted(scheduler, [new]) == [new]
    assert (new.slot, new.num_cached, new.num_reused) == (1, 5, 5)
    # The next best is left for the next.
    other = make_request(4, [1, 2, 3, 4, 5, 6])
    admitted(scheduler, [other])
    assert (other.slot, other.num_cached) == (0, 3)


def test_without_a_common_beginning_the_slot_that_rested_longest_is_taken() -> None:
    scheduler, old = Scheduler(3), requests_of_lengths(4, 4, 4)
    admitted(scheduler, old)
    for i in (1, 2, 0):
        finish(scheduler, old[i])
    slots = [old[i].slot for i in (1, 2, 0)]
    new = [make_request(10 + i, [500 + i, 1, 2]) for i in range(3)]
    admitted(scheduler, new)
    assert [r.slot for r in new] == slots
    assert [r.num_cached for r in new] == [0, 0, 0]


@pytest.mark.parametrize(
    ("prompt", "num_shared"),
    [
        ([1, 2, 3, 4], 3),  # The same prompt: its last token runs again, for its logits.
        ([1, 2, 3, 4, 77, 77], 5),  # The text went on as this prompt does.
        ([1, 2, 3, 4, 77, 77, 77, 77, 77, 5], 8),  # What it wrote last was not in the cache.
        ([1, 2], 1),
        ([1], 0),
        ([2, 2, 3, 4], 0),
    ],
)
def test_how_much_of_a_resting_slot_is_reused(prompt: list[int], num_shared: int) -> None:
    scheduler, old, new = Scheduler(1), make_request(0, [1, 2, 3, 4]), make_request(1, prompt)
    admitted(scheduler, [old])
    finish(scheduler, old)
    admitted(scheduler, [new])
    assert new.num_cached == new.num_reused == num_shared


def test_nothing_is_reused_of_a_request_that_failed() -> None:
    scheduler, old, new = Scheduler(1), make_request(0, [1, 2, 3]), make_request(1, [1, 2, 3])
    admitted(scheduler, [old])
    old.num_cached = 0  # As the engine sets it: the slot may be half written.
    scheduler.remove(old)
    admitted(scheduler, [new])
    assert new.num_cached == 0


def test_only_what_rests_of_the_same_namespace_is_gone_on_from() -> None:
    scheduler = Scheduler(2)
    for request in admitted(scheduler, [make_request(0, [1, 2, 3, 4], "a"), make_request(1, [9, 9], "b")]):
        finish(scheduler, request)
    stranger, friend = make_request(2, [1, 2, 3, 4, 5], "b"), make_request(3, [1, 2, 3, 4, 5], "a")
    admitted(scheduler, [friend])
    assert (friend.slot, friend.num_reused) == (0, 4)
    finish(scheduler, friend)
    admitted(scheduler, [stranger])
    assert (stranger.slot, stranger.num_reused) == (1, 0)


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=200)
@given(
    turns=st.lists(st.tuples(st.sampled_from("ab"), prompts, st.integers(0, 3)), max_size=20), slots=st.integers(1, 3)
)
def test_nothing_tells_what_another_namespace_asked(turns: list[tuple[str, list[int], int]], slots: int) -> None:
    outcomes = []
    # The others ask for the same, or for what nobody else asks for.
    for offset in (0, 1000):
        scheduler, running, seen = Scheduler(slots), list[Request](), []
        for number, (namespace, prompt, num_ended) in enumerate(turns):
            tokens = [token + offset for token in prompt] if namespace == "b" else prompt
            running += admitted(scheduler, [make_request(number, tokens, namespace)])
            for request in running[:num_ended]:
                seen.append((request.request_id, request.slot, request.num_reused))
                finish(scheduler, request)
            running = [*running[num_ended:], *scheduler.admit()]
        outcomes.append(seen)
    assert outcomes[0] == outcomes[1]


def test_short_prompts_share_a_prefill_within_the_budget() -> None:
    # 5 + 1 tokens each, of which the last is left to the first step: widths 5, 5, 5 and 4.
    scheduler, requests = Scheduler(4), requests_of_lengths(6, 6, 6, 5)
    admitted(scheduler, requests)
    assert scheduler.next_prefill(16) == [(requests[0], 5), (requests[1], 5), (requests[2], 5)]
    for request in requests[:3]:
        request.num_cached = 5
    assert scheduler.next_prefill(16) == [(requests[3], 4)]
    requests[3].num_cached = 4
    assert scheduler.next_prefill(16) == []
    assert scheduler.next_decode() == requests


def test_padding_counts_in_the_budget() -> None:
    # Together 12 tokens, but padded to the widest they are 20.
    scheduler, requests = Scheduler(2), requests_of_lengths(3, 11)
    admitted(scheduler, requests)
    assert scheduler.next_prefill(16) == [(requests[0], 2)]


def test_padding_stays_within_the_slots() -> None:
    # One is at position 20 of 32, so it cannot be padded to a width of 14.
    scheduler, requests = Scheduler(2, 32), requests_of_lengths(25, 15)
    admitted(scheduler, requests)
    requests[0].num_cached = 20
    assert scheduler.next_prefill(64) == [(requests[0], 24)]
    requests[0].num_cached = 24
    assert scheduler.next_prefill(64) == [(requests[1], 14)]


def test_a_long_prompt_goes_in_chunks() -> None:
    scheduler, (request,) = Scheduler(1), requests_of_lengths(40)
    admitted(scheduler, [request])
    assert read_all(scheduler, 16) == [[(0, 16)], [(0, 32)], [(0, 39)]]


def read_all(scheduler: Scheduler, budget: int) -> list[list[tuple[int, int]]]:
    """The prefill forwards until all prompts are read: request and position of each row."""
    forwards = []
    while prefill := scheduler.next_prefill(budget):
        for request, stop in prefill:
            request.num_cached = stop
        forwards.append([(request.request_id, stop) for request, stop in prefill])
    return forwards


def test_a_short_prompt_waits_for_one_chunk_of_a_long_one_at_most() -> None:
    scheduler, requests = Scheduler(3), requests_of_lengths(60, 40, 12)
    admitted(scheduler, requests[:2])
    (first,) = scheduler.next_prefill(16)
    first[0].num_cached = first[1]
    assert first == (requests[0], 16)
    admitted(scheduler, requests[2:])
    # Long ones are read one after the other all the same, the one that came first before the others.
    long = [[(0, 32)], [(0, 48)], [(0, 59)], [(1, 16)], [(1, 32)], [(1, 39)]]
    assert read_all(scheduler, 16) == [[(2, 11)], *long]


def test_a_long_prompt_is_read_on_however_many_short_ones_come() -> None:
    scheduler, long = Scheduler(4), make_request(0, range(1, 200))
    admitted(scheduler, [long])
    for turn in range(12):
        (short,) = admitted(scheduler, [make_request(1 + turn, [1000 + turn, *range(9)])])
        for request, stop in scheduler.next_prefill(20):
            request.num_cached = stop
        assert long.num_cached == 20 * (turn // 2 + 1)
        assert short.is_prefilled == (turn % 2 == 1)
        for request in [request for request in scheduler.running if request.is_prefilled]:
            finish(scheduler, request)


def test_only_prefilled_requests_decode() -> None:
    scheduler, requests = Scheduler(3), requests_of_lengths(9, 1, 9)
    admitted(scheduler, requests)
    assert scheduler.next_decode() == [requests[1]]  # A prompt of one token needs no prefill.
    requests[2].num_cached = 8
    assert scheduler.next_decode() == [requests[1], requests[2]]


@settings(max_examples=100)
@given(
    num_slots=st.integers(1, 4),
    budget=st.integers(1, 20),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
)
def test_everything_is_served_in_order_and_within_the_budget(
    num_slots: int, budget: int, lengths: list[int], seed: int
) -> None:
    rng, max_length = random.Random(seed), 45
    scheduler = Scheduler(num_slots, max_length)
    # Few different tokens, so that beginnings are often shared.
    waiting = [make_request(i, [rng.randrange(2) for _ in range(length)]) for i, length in enumerate(lengths)]
    served: list[int] = []
    rounds = 0
    has_oldest = True
    while waiting or scheduler.requests:
        rounds += 1
        assert rounds < 1000
        if waiting and rng.random() < 0.5:
            scheduler.add(waiting.pop(0))
        served.extend(r.request_id for r in scheduler.admit())
        slots = [r.slot for r in scheduler.running]
        assert slots == sorted(set(slots))
        assert set(slots) <= set(range(num_slots))
        assert not scheduler.num_waiting or len(slots) == num_slots
        prefill = scheduler.next_prefill(budget)
        if prefill:
            width = max(stop - request.num_cached for request, stop in prefill)
            assert width * len(prefill) <= budget
            assert max(request.num_cached for request, _ in prefill) + width <= max_length or len(prefill) == 1
            reading = [r for r in scheduler.running if not r.is_prefilled]
            batch = [request for request, _ in prefill]
            # The oldest that needs it is among them every other time, and else the one that is the nearest to its end.
            least = min(r.prefill_stop - r.num_cached for r in reading)
            had_oldest, has_oldest = has_oldest, min(r.request_id for r in reading) in {r.request_id for r in batch}
            assert has_oldest or had_oldest
            assert has_oldest or least in [r.prefill_stop - r.num_cached for r in batch]
        for request, stop in prefill:
            assert request.num_cached < stop <= request.prefill_stop
            request.num_cached = stop
        for request in scheduler.next_decode():
            assert request.is_prefilled
            if rng.random() < 0.3:
                finish(scheduler, request)
    assert served == sorted(served) == list(range(len(lengths)))


def test_slots_that_free_up_together_are_filled_together() -> None:
    # Texts of equal length, of which some took a step less: their successors' prompts share a forward.
    scheduler, requests = Scheduler(3), requests_of_lengths(*[4] * 8)
    running = admitted(scheduler, requests)
    finish(scheduler, running[0])
    for request in running[1:]:
        request.token_ids.extend([77] * 3)  # of five
    assert scheduler.admit() == []
    finish(scheduler, running[1])
    assert scheduler.admit() == []
    finish(scheduler, running[2])
    assert scheduler.admit() == requests[3:6]


def test_a_free_slot_does_not_wait_for_long() -> None:
    scheduler, requests = Scheduler(2), requests_of_lengths(*[4] * 8)
    running = admitted(scheduler, requests)
    finish(scheduler, running[0])
    running[1].token_ids.extend([77] * 3)
    # The other stays where it is, as one does whose step fails or whose reader is slow.
    assert [scheduler.admit() for _ in range(5)] == [[], [], [], [requests[2]], []]


def test_a_free_slot_waits_for_no_text_that_goes_on_and_where_no_queue_is() -> None:
    scheduler, requests = Scheduler(2), requests_of_lengths(*[4] * 4)
    running = admitted(scheduler, requests)
    finish(scheduler, running[0])
    assert scheduler.admit() == [requests[2]]
    # One waits, and there is a slot for it: nothing is gained by its waiting.
    running[1].token_ids.extend([77] * 3)
    finish(scheduler, requests[2])
    assert scheduler.admit() == [requests[3]]


def test_what_is_forgotten_is_not_reused_and_neither_is_what_ran_meanwhile() -> None:
    prompt = list(range(20))
    scheduler = Scheduler(2)
    rested, running = admitted(scheduler, [make_request(0, prompt), make_request(1, prompt)])
    finish(scheduler, rested)
    scheduler.forget()
    finish(scheduler, running)
    new = admitted(scheduler, [make_request(2, prompt), make_request(3, prompt)])
    assert [request.num_reused for request in new] == [0, 0]
    finish(scheduler, new[0])
    (last,) = admitted(scheduler, [make_request(4, prompt)])
    assert last.num_reused == 19
