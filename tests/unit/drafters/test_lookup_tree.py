"""Trees from the text, from earlier answers and from the target's candidates: what is proposed, kept and shared."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.drafters.answer_index import AnswerIndex
from langchain_specdec.drafters.base import Draft, DraftLimits
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import NgramIndex
from langchain_specdec.drafters.recycled_tokens import RecycledTokens
from langchain_specdec.drafters.token_runs import run_of
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    FakeRequest,
    References,
    byte_tokenizer,
    random_prompt,
    read,
    scripted_model,
    tiny_model,
    token_ids,
    verdict,
)

MakeEngine = Callable[..., Engine]
texts = st.lists(st.integers(0, 3), max_size=30)

# --- The shared index -------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(answers=st.lists(st.tuples(texts, st.integers(0, 5)), max_size=4), context=texts)
def test_index_finds_the_most_frequent_continuations_of_the_longest_run(
    answers: list[tuple[list[int], int]], context: list[int]
) -> None:
    index = AnswerIndex((2, 4))
    for tokens, start in answers:
        index.add(tokens, start)
    expected = None
    for n in (4, 2):
        followers = [
            tokens[end]
            for tokens, start in answers
            for end in range(max(start, n), len(tokens))
            if tokens[end - n : end] == context[-n:]
        ]
        if followers and len(context) >= n:
            counts = Counter(followers)
            last = {token: place for place, token in enumerate(followers)}
            expected = n, sorted(counts.items(), key=lambda item: (-item[1], -last[item[0]]))
            break
    found = index.find(run_of(context))
    assert (found and (found[0], list(zip(found[1][::2], found[1][1::2], strict=True)))) == expected


@settings(max_examples=50)
@given(answers=st.lists(texts, max_size=6), limit=st.integers(1, 20))
def test_index_keeps_no_more_than_its_limit(answers: list[list[int]], limit: int) -> None:
    index = AnswerIndex((2, 4), max_entries=limit)
    for tokens in answers:
        index.add(tokens, 0)
        assert len(index) <= limit


def test_index_forgets_what_was_not_used_the_longest() -> None:
    index = AnswerIndex((1,), max_entries=3)
    index.add([1, 2, 3, 4], 0)
    assert index.find(run_of([1])) is not None  # Used, so the run after it is the oldest now.
    index.add([8, 9], 0)
    assert index.find(run_of([2])) is None
    assert [index.find(run_of([t])) for t in (1, 3, 8)] == [(1, (2, 1)), (1, (4, 1)), (1, (9, 1))]
    index.add([1, 2], 0)  # Written again, which counts as use.
    index.add([5, 6, 7], 0)
    assert index.find(run_of([1])) == (1, (2, 2))


def test_garbage_collection_has_nothing_to_go_through_in_what_is_kept() -> None:
    index, table = AnswerIndex((2, 4)), RecycledTokens()
    for token in range(50):
        index.add([1, 2, 3, token], 0)
        table.update(run_of([1, token]), [token, 2, 3])
    gc.collect()
    kept = [*index._entries.values(), *table._by_pair.values(), *table._by_token.values()]
    assert not any(map(gc.is_tracked, kept))


# --- Candidates -------------------------------------------------------------------------------------------------------


def test_candidates_are_the_latest_by_pair_and_else_by_token() -> None:
    table = RecycledTokens()
    table.update(run_of([1, 2]), [10, 11])
    table.update(run_of([3, 2]), [12, 13])
    table.update(run_of([1, 2]), [14, 15])
    assert table.find(run_of([9, 1, 2])) == ("pair", (14, 15))
    assert table.find(run_of([3, 2])) == ("pair", (12, 13))
    assert table.find(run_of([8, 2])) == table.find(run_of([2])) == ("token", (14, 15))
    assert table.find(run_of([2, 3])) is None
    table.update(run_of([7]), [1])
    assert table.find(run_of([7])) == ("token", (1,))


def test_candidates_of_old_pairs_are_forgotten() -> None:
    table = RecycledTokens(max_pairs=2)
    for before in (1, 2, 1, 3):
        table.update(run_of([before, 0]), [before])
    assert len(table) == 2
    assert table.find(run_of([2, 0])) == ("token", (3,))
    assert table.find(run_of([1, 0])) == ("pair", (1,))


# --- Lookup of what is no part of the text yet ------------------------------------------------------------------------


@settings(max_examples=200)
@given(tokens=texts, context=st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_lookup_of_any_context(tokens: list[int], context: list[int]) -> None:
    index = NgramIndex(3)
    index.extend(tokens)
    expected = None
    for n in range(min(3, len(context)), 0, -1):
        ends = [end for end in range(n, len(tokens) + 1) if tokens[end - n : end] == context[-n:]]
        # An n-gram whose last place is the end of the text has no continuation there.
        if ends and ends[-1] < len(tokens):
            expected = n, ends[-1]
            break
    assert index.lookup(run_of(context)) == expected


# --- The tree ---------------------------------------------------------------------------------------------------------


def offered(drafter: LookupTreeDrafter, request: FakeRequest, limits: DraftLimits) -> Draft:
    (proposal,) = drafter.consider(request, limits)
    return proposal.draft


def observe(drafter: LookupTreeDrafter, request: FakeRequest, new: Sequence[int], rng: random.Random) -> None:
    """A step in which `new` was emitted, its first tokens drafted, with random logits."""
    path = list(range(len(new)))
    nodes = [request.token_ids[-1], *new[:-1]]
    drafter.observe([request], verdict([nodes], [path], torch.randn(1, len(new), 6)))
    request.token_ids.extend(new)


@settings(max_examples=100)
@given(
    prompt=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    pieces=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=6),
    depth=st.integers(-1, 6),
    nodes=st.integers(0, 20),
    reach=st.sampled_from([0.0, 0.05, 0.3]),
    is_shared=st.booleans(),
)
def test_any_tree_keeps_its_limits(
    prompt: list[int], pieces: list[list[int]], depth: int, nodes: int, reach: float, is_shared: bool
) -> None:
    drafter, rng = LookupTreeDrafter(3, is_shared=is_shared), random.Random(0)
    other, request = FakeRequest(0, [1, 2, 3]), FakeRequest(1, list(prompt))
    limits = DraftLimits(depth, nodes, reach)
    for piece in [[], *pieces]:
        for each in (other, request):
            drafter.consider(each, limits)
            if piece:
                observe(drafter, each, piece, rng)
        before = list(request.token_ids)
        proposals = drafter.consider(request, limits)
        assert request.token_ids == before
        if depth < 1:
            assert not proposals
        if not proposals:
            continue
        (proposal,) = proposals
        draft, reaches = proposal.draft, proposal.reaches
        assert proposal.steps_per_token == 0
        assert len(draft) <= (nodes or depth)
        depths = [0] * len(draft)
        for node, parent in enumerate(draft.parents):
            assert -1 <= parent < node
            depths[node] = 1 + (depths[parent] if parent >= 0 else 0)
        assert max(depths, default=0) <= depth
        # Siblings differ: else two of them would stand.
        assert len(set(zip(draft.parents, draft.tokens, strict=True))) == len(draft)
        # Every beginning is the best of its size; siblings exclude each other, so their chances add up to one at most.
        assert len(reaches) == len(draft)
        assert list(reaches) == sorted(reaches, reverse=True)
        for depth_of_sum in set(depths):
            assert sum(r for r, d in zip(reaches, depths, strict=True) if d == depth_of_sum) < 1 + 1e-9
        if nodes:
            # What follows the text at once is watched in any case; else nothing stands for less than it must.
            assert all(r >= reach - 1e-9 for r, parent in zip(reaches, draft.parents, strict=True) if parent >= 0)
        assert drafter.propose([request], [proposal], [2])[0] == draft.cut(2)


def test_a_repetition_is_drafted_on_and_on() -> None:
    drafter, request = LookupTreeDrafter(3), FakeRequest(0, [7, 8, 9, 7, 8, 9, 7])
    for nodes in (0, 7):
        draft = offered(drafter, request, DraftLimits(7, nodes))
        assert draft.tokens == (8, 9, 7, 8, 9, 7, 8)
        assert draft.parents == tuple(range(-1, 6))


def test_earlier_answers_are_drafted_from_and_prompts_are_not() -> None:
    drafter = LookupTreeDrafter(3)
    first = FakeRequest(0, [1, 2, 3, 4])
    drafter.consider(first, DraftLimits(4, 8))
    first.token_ids.extend([5, 6, 7])
    drafter.consider(first, DraftLimits(4, 8))
    drafter.release(first)
    # 5 followed "3 4" in the answer; what follows "1 2" stood in the prompt only.
    follower = FakeRequest(1, [9, 3, 4])
    for nodes in (0, 8):
        draft = offered(drafter, follower, DraftLimits(4, nodes))
        assert draft.tokens == (5, 6, 7)
        assert {source for source, _ in draft.kinds} <= {"shared-2", "shared-4"}
    assert not drafter.consider(FakeRequest(2, [9, 1, 2]), DraftLimits(4, 8))


def test_an_answer_that_nothing_was_looked_up_for_is_drafted_from_once_it_ends() -> None:
    drafter = LookupTreeDrafter(3)
    first = FakeRequest(0, [1, 2, 3, 4])
    drafter.prefill([first], [0], [3])
    first.token_ids.extend([5, 6, 7])
    drafter.release(first)
    assert offered(drafter, FakeRequest(1, [9, 3, 4]), DraftLimits(4, 8)).tokens == (5, 6, 7)


def test_isolated_requests_know_nothing_of_each_other() -> None:
    drafter, rng = LookupTreeDrafter(3, is_shared=False), random.Random(0)
    first = FakeRequest(0, [1, 2, 3, 4])
    drafter.consider(first, DraftLimits(4, 8))
    observe(drafter, first, [5, 4, 3], rng)
    assert drafter.consider(first, DraftLimits(4, 8))
    # The same text up to here, in the same tokens.
    assert not drafter.consider(FakeRequest(1, [9, 3, 4]), DraftLimits(4, 8))
    drafter.release(first)
    assert list(drafter._texts) == [1]


def test_branches_come_from_the_targets_candidates() -> None:
    drafter, request = LookupTreeDrafter(3), FakeRequest(0, [4, 0])
    logits = torch.full((1, 1, 50), -9.0)
    logits[0, 0, [21, 22, 23]] = torch.tensor([3.0, 2.0, 1.0])
    drafter.consider(request, DraftLimits(1, 3))
    drafter.observe([request], verdict([[0]], [[0]], logits))
    draft = offered(drafter, request, DraftLimits(1, 3))
    assert draft.tokens == (21, 22, 23)
    assert draft.parents == (-1, -1, -1)
    assert draft.kinds == (("pair", 0), ("pair", 1), ("pair", 2))


# --- In the engine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_shared", [True, False])
def test_what_was_answered_before_takes_fewer_steps(device: str, engines: MakeEngine, is_shared: bool) -> None:
    script = [(37 * i) % 101 + 60 for i in range(60)]  # Nothing in it repeats.
    model = scripted_model([0, 0, *script], device)
    engine = engines(
        model, LookupTreeDrafter(5, is_shared=is_shared), max_length=63, max_tree_nodes=8, max_draft_tokens=8, eos=()
    )
    params = SamplingParams(max_new_tokens=60)
    steps = []
    for start in (1, 2):
        # Other prompts, so that no slot holds the text already.
        tokens, finish = read(engine.submit((start, 1, 2), params))
        assert token_ids(tokens) == script
        steps.append(finish.speculation.num_steps)
    assert steps[0] == 60
    assert steps[1] <= 12 if is_shared else steps[1] == 60


def test_isolated_requests_take_the_steps_they_would_take_alone(device: str) -> None:
    # Where width costs something, what is drafted depends on all that was learned: nothing may come from the other.
    model, cost = tiny_model(0, device), {(1, 1): 1.0, (1, 3): 1.2, (1, 33): 4.0}
    prompts, params = ["abcabcabd", "abcabcabc"], SamplingParams(max_new_tokens=40, ignore_eos=True)
    steps = []
    for sequence in ([prompts[1]], prompts):
        backend = LocalBackend(
            model, byte_tokenizer(), num_slots=1, max_length=128, shared_lookup=False, step_cost=StepCost(cost)
        )
        for prompt in sequence:
            (completion,) = backend.complete([CompletionRequest(prompt, params)])
        steps.append((completion.finish.speculation.num_steps, completion.finish.speculation.drafted_tokens))
        backend.close()
    assert steps[0] == steps[1]


@pytest.mark.parametrize("has_draft_model", [False, True])
def test_no_count_tells_what_another_namespace_asked(device: str, has_draft_model: bool) -> None:
    model, rng = tiny_model(0, device), random.Random(6)
    # What a draft model's step costs is always measured, so that it drafts a fixed number of tokens here.
    length: Any = 3 if has_draft_model else "auto"
    own, others = [["".join(rng.choices("abc", k=12)) for _ in range(5)] for _ in range(2)]
    counts, texts = [], []
    # Another asks for the same, in the same namespace or in one of its own; or for something else; or for nothing.
    for namespace, asked in (("a", own), ("b", own), ("b", others), ("b", [])):
        draft: Any = (
            {"draft_model": tiny_model(1, device), "draft_tokenizer": byte_tokenizer()} if has_draft_model else {}
        )
        costs = StepCost({(1, 1): 1.0, (1, 3): 1.2, (1, 33): 4.0})
        backend = LocalBackend(
            model, byte_tokenizer(), num_slots=16, max_length=128, step_cost=costs, draft_length=length, **draft
        )
        told, written = [], []
        for place, prompt in enumerate(own):
            for text, whose in ((asked[place], namespace), (prompt, "a")) if asked else ((prompt, "a"),):
                params = SamplingParams(max_new_tokens=40, temperature=0.7, seed=place, ignore_eos=True)
                (completion,) = backend.complete([CompletionRequest(text, params, namespace=whose)])
            finish = completion.finish
            told.append((finish.cached_tokens, finish.speculation.num_steps, finish.speculation.drafted_per_position))
            written.append(completion.text)
        backend.close()
        counts.append(told)
        texts.append(written)
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert counts[1] == counts[2] == counts[3] != counts[0]


@pytest.mark.parametrize("value", ["no", 1])
def test_shared_lookup_is_a_truth_value(value: Any) -> None:
    with pytest.raises(InvalidParameterError, match="shared_lookup must be True or False"):
        LocalBackend("embedded", shared_lookup=value)


@pytest.mark.slow
def test_trees_take_fewer_steps_than_chains_where_width_is_free(device: str, engines: MakeEngine) -> None:
    model, rng = tiny_model(0, device).double(), random.Random(4)
    prompts = [random_prompt(rng) for _ in range(6)]
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    references, steps = References(model), []
    for nodes in (0, 24):
        engine, total = engines(model, LookupTreeDrafter(5), max_tree_nodes=nodes), 0
        for prompt in prompts:
            tokens, finish = read(engine.submit(prompt, params))
            assert token_ids(tokens) == references(prompt, params)
            total += finish.speculation.num_steps
        steps.append(total)
    assert steps[1] < steps[0]


def test_nothing_is_drafted_where_width_is_dear(device: str, engines: MakeEngine) -> None:
    cost = StepCost({(1, 1): 1.0, (1, 2): 3.0, (1, 25): 60.0})
    engine = engines(tiny_model(0, device).double(), LookupTreeDrafter(5), max_tree_nodes=24, step_cost=cost)
    _, finish = read(engine.submit((1, 2, 3, 1, 2, 3), SamplingParams(max_new_tokens=40, ignore_eos=True)))
    assert finish.speculation.drafted_tokens == 0
    assert finish.speculation.num_steps == 40
    assert finish.speculation.predicted_gain == 1.0


def test_predicted_gain_is_what_the_steps_bring_where_guesses_are_good(device: str, engines: MakeEngine) -> None:
    # A repetition: almost everything that is drafted is right, and the rule comes to know it.
    script = [65 + i % 8 for i in range(160)]
    engine = engines(
        scripted_model(script, device),
        LookupTreeDrafter(5),
        max_length=161,
        max_tree_nodes=12,
        step_cost=StepCost.flat(),
    )
    _, finish = read(engine.submit((0,), SamplingParams(max_new_tokens=160)))
    # Few guesses have been counted by then, so it is predicted with some caution.
    assert finish.speculation.predicted_gain == pytest.approx(finish.speculation.tokens_per_step, rel=0.25)
    assert finish.speculation.observed_gain == 0.0  # Nothing was timed, so nothing is claimed.


def test_a_drafter_that_fails_to_learn_harms_nobody(device: str, engines: MakeEngine) -> None:
    class Failing(LookupTreeDrafter):
        def observe(self, *args: Any) -> None:
            raise ValueError("cannot learn")

    model, params = tiny_model(0, device).double(), SamplingParams(max_new_tokens=10, ignore_eos=True)
    tokens, _ = read(engines(model, Failing(5), max_tree_nodes=8).submit((1, 2, 1, 2), params))
    assert token_ids(tokens) == References(model)((1, 2, 1, 2), params)


@pytest.mark.parametrize("nodes", [1, 11, 64])
def test_measuring_takes_a_bounded_number_of_forwards(device: str, engines: MakeEngine, nodes: int) -> None:
    engine = engines(tiny_model(0, device), LookupTreeDrafter(5), max_tree_nodes=nodes, step_cost=None)
    _, finish = read(engine.submit((1, 2, 1, 2), SamplingParams(max_new_tokens=20, ignore_eos=True)))
    assert 4 <= engine.num_target_forwards - finish.speculation.num_steps <= 5 * 9
    assert finish.speculation.observed_gain > 0
