"""Drafters: what they propose, what it costs them, and that they forget."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import psutil
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langchain_specdec.drafters.base import EMPTY_DRAFT, NOTHING, Draft, Drafter, DraftLimits, Proposal
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import NgramIndex, PromptLookupDrafter
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.choice import TokenHistory
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    VOCAB,
    FakeRequest,
    OracleDrafter,
    loaded,
    make_draft_drafter,
    perturbed,
    plain_reference,
    tiny_model,
)


def draft(drafter: Drafter, request: FakeRequest, length: int) -> Draft:
    """Ask for a draft as the engine does."""
    return drafter.propose([request], [offered(drafter, request, length)], [length])[0]


def offered(drafter: Drafter, request: FakeRequest, length: int) -> Proposal:
    """The preferred proposal; one of nothing where there is none."""
    return next(iter(drafter.consider(request, DraftLimits(length))), NOTHING)


# --- Draft ------------------------------------------------------------------------------------------------------------


def test_a_chain_links_each_token_to_the_one_before() -> None:
    chain = Draft.chain([5, 6, 7], [("lookup", 1), ("lookup", 2), ("lookup", 3)])
    assert chain.parents == (-1, 0, 1)
    assert len(chain) == 3
    assert chain.cut(2) == Draft((5, 6), (-1, 0), (("lookup", 1), ("lookup", 2)))
    assert chain.cut(3) is chain
    assert chain.cut(0) == EMPTY_DRAFT


# --- The index --------------------------------------------------------------------------------------------------------


def search(tokens: Sequence[int], max_ngram: int) -> tuple[int, int] | None:
    """Look up the end of the text among everything before it, the slow way: longest first, then most recent."""
    for n in range(min(max_ngram, len(tokens) - 1), 0, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                return n, end
    return None


@settings(max_examples=300)
@given(
    tokens=st.lists(st.integers(0, 3), max_size=40),
    max_ngram=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
@example(tokens=[1, 1, 1], max_ngram=3, cuts=[])
@example(tokens=[1, 2, 3, 1, 2, 4, 1, 2], max_ngram=5, cuts=[])
def test_index_finds_the_longest_and_of_equals_the_most_recent(
    tokens: list[int], max_ngram: int, cuts: list[int]
) -> None:
    index = NgramIndex(max_ngram)
    # The text grows by pieces of any size, empty ones too, and is looked up after each.
    for stop in [*sorted(cuts), len(tokens)]:
        index.extend(tokens[:stop])
        assert index.find() == search(tokens[:stop], max_ngram)


def test_index_work_per_token_does_not_grow_with_the_text() -> None:
    class Counting(dict[object, int]):
        num_writes = num_reads = 0

        def __setitem__(self, key: object, value: int) -> None:
            Counting.num_writes += 1
            super().__setitem__(key, value)

        def get(self, *args: Any) -> Any:
            Counting.num_reads += 1
            return super().get(*args)

    max_ngram, tokens = 5, [random.Random(0).randrange(4) for _ in range(2000)]
    index = NgramIndex(max_ngram)
    index._masked_tables[:] = [(mask, cast("Any", Counting())) for mask, _ in index._masked_tables]
    for end in range(1, len(tokens) + 1):
        before = Counting.num_writes, Counting.num_reads
        index.extend(tokens[:end])
        index.find()
        # One entry per n-gram size, however long the text is; a look-up needs no search.
        num_sizes = min(end, max_ngram)
        assert (Counting.num_writes, Counting.num_reads) == (before[0] + num_sizes, before[1] + num_sizes)


@pytest.mark.parametrize("make", [lambda: PromptLookupDrafter(5), lambda: LookupTreeDrafter(5)])
def test_a_long_prompt_is_indexed_as_it_is_read(make: Callable[[], Drafter]) -> None:
    prompt = [random.Random(1).randrange(40_000) for _ in range(32_000)]
    request, drafter = FakeRequest(0, list(prompt)), make()
    for start in range(0, len(prompt) - 1, 512):
        drafter.prefill([request], [start], [min(start + 512, len(prompt) - 1)])
    index = _index_of(drafter)
    assert index.num_indexed == len(prompt) - 1
    # So that the first step has no more to do than any other.
    request.token_ids += prompt[:5]
    (proposal,) = drafter.consider(request, DraftLimits(4))
    assert proposal.draft.tokens[:4] == tuple(prompt[5:9])


@pytest.mark.parametrize("make", [lambda: PromptLookupDrafter(5), lambda: LookupTreeDrafter(5)])
def test_a_long_prompt_that_a_slot_held_is_indexed_over_several_steps(make: Callable[[], Drafter]) -> None:
    prompt = [random.Random(1).randrange(40_000) for _ in range(10_000)]
    request, drafter = FakeRequest(0, [*prompt, *prompt[:5]]), make()
    indexed: list[int] = []
    offers: list[Sequence[Proposal]] = []
    for _ in range(6):
        before = _index_of(drafter).num_indexed if indexed else 0
        offers.append(drafter.consider(request, DraftLimits(4)))
        indexed.append(_index_of(drafter).num_indexed - before)
    assert indexed == [2048] * 4 + [10_005 - 4 * 2048, 0]
    assert [len(offer) for offer in offers] == [0, 0, 0, 0, 1, 1]
    assert offers[-1][0].draft.tokens[:4] == tuple(prompt[5:9])


def _index_of(drafter: Any) -> NgramIndex:
    index = drafter._indexes[0] if isinstance(drafter, PromptLookupDrafter) else drafter._texts[0].index
    assert isinstance(index, NgramIndex)
    return index


# --- Prompt lookup ----------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    tokens=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    max_ngram=st.integers(1, 5),
    length=st.integers(0, 12),
)
@example(tokens=[7, 7], max_ngram=3, length=4)
@example(tokens=[1, 2, 1, 2], max_ngram=2, length=7)
def test_lookup_proposes_what_followed(tokens: list[int], max_ngram: int, length: int) -> None:
    request = FakeRequest(0, list(tokens))
    proposals = PromptLookupDrafter(max_ngram).consider(request, DraftLimits(length))
    match = search(tokens, max_ngram)
    if match is None or length == 0:
        assert not proposals
        return
    (proposal,) = proposals
    size, position = match
    # Copying token by token goes on into what was just copied, so a repetition is drafted on and on.
    text = list(tokens)
    for i in range(length):
        text.append(text[position + i])
    assert proposal.draft.tokens == tuple(text[len(tokens) :])
    assert proposal.draft.parents == tuple(range(-1, length - 1))
    # A token's kind is how much of the text had matched by then.
    assert proposal.draft.kinds == tuple(("lookup", min(size + i, 16)) for i in range(length))
    assert proposal.reaches == request.rates.chain(proposal.draft.kinds)
    assert proposal.steps_per_token == 0


def test_lookup_follows_a_growing_text_and_changes_nothing_of_it() -> None:
    drafter, rng = PromptLookupDrafter(4), random.Random(1)
    request = FakeRequest(3, [rng.randrange(4)])
    for _ in range(60):
        before = list(request.token_ids)
        # One that has seen the whole text at once proposes the same.
        assert drafter.consider(request, DraftLimits(6)) == PromptLookupDrafter(4).consider(request, DraftLimits(6))
        assert request.token_ids == before
        request.token_ids.extend(rng.randrange(4) for _ in range(rng.randrange(4)))


def test_lookup_proposal_is_cut_to_the_length_chosen() -> None:
    drafter, request = PromptLookupDrafter(3), FakeRequest(0, [1, 2, 3, 4, 1, 2])
    proposal = offered(drafter, request, 4)
    for length in range(5):
        assert drafter.propose([request], [proposal], [length])[0].tokens == (3, 4, 1, 2)[:length]


def test_lookup_keeps_requests_apart_and_forgets_released_ones() -> None:
    drafter = PromptLookupDrafter(3)
    first, second = FakeRequest(1, [1, 2, 1]), FakeRequest(2, [1, 3, 1], slot=1)
    assert offered(drafter, first, 1).draft.tokens == (2,)
    assert offered(drafter, second, 1).draft.tokens == (3,)
    drafter.release(first)
    assert list(drafter._indexes) == [2]
    drafter.release(FakeRequest(9, []))  # One that failed before its first draft.
    # An id never comes twice, but if it did there would be nothing left of the old text.
    assert offered(drafter, FakeRequest(1, [4, 5, 4]), 1).draft.tokens == (5,)


# --- The draft model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(device: str) -> Any:
    return tiny_model(3, device).double()


def own_choice(model: Any, request: FakeRequest, length: int) -> tuple[int, ...]:
    """What the draft model itself would write next, uncached."""
    params = SamplingParams(
        max_new_tokens=length,
        temperature=request.params.temperature,
        repetition_penalty=request.params.repetition_penalty,
        seed=request.seed,
        ignore_eos=True,
    )
    return tuple(plain_reference(model, request.token_ids, params))


@settings(max_examples=25)
@given(data=st.data())
def test_draft_model_drafts_as_without_a_cache_whatever_happened_before(model: Any, data: st.DataObject) -> None:
    # Rounds in which drafts are kept, kept in part and rejected, steps without a draft in which the text grows all the
    # same, two rows with drafts of different length, and requests that take over a slot and what is in it.
    drafter = make_draft_drafter(model, num_slots=2, max_length=128)
    history = TokenHistory(2, VOCAB, torch.device(model.device))
    params = SamplingParams(temperature=0.7, repetition_penalty=1.2)
    tokens = st.integers(0, 255)
    requests: list[FakeRequest] = []
    for slot in range(2):
        prompt = data.draw(st.lists(tokens, min_size=1, max_size=5))
        requests.append(FakeRequest(slot, prompt, slot, params, seed=slot, history=history))
    next_id = 2
    for request in requests:
        history.start(request.slot, request.token_ids)

    def grow(request: FakeRequest, new: Sequence[int]) -> None:
        request.token_ids.extend(new)
        if new:
            history.append(request.slot, new)

    for _ in range(data.draw(st.integers(1, 5))):
        lengths = data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=2))
        proposals = [offered(drafter, r, n) for r, n in zip(requests, lengths, strict=True)]
        drafts = drafter.propose(requests, proposals, lengths)
        for row, (request, length) in enumerate(zip(requests, lengths, strict=True)):
            assert drafts[row].tokens == (own_choice(model, request, length) if length else ())
            event = data.draw(st.sampled_from(["verified", "verified", "verified again", "replaced"]))
            if event == "verified":
                num_accepted = data.draw(st.integers(0, length))
                bonus = data.draw(st.lists(tokens, min_size=1, max_size=1 if length else 4))
                grow(request, [*drafts[row].tokens[:num_accepted], *bonus])
            elif event == "replaced":
                # The next request in this slot shares any part of its text, or all of it.
                shared = request.token_ids[: data.draw(st.integers(1, len(request.token_ids)))]
                prompt = [*shared, *data.draw(st.lists(tokens, max_size=2))]
                drafter.release(request)
                requests[row] = FakeRequest(next_id, prompt, row, params, seed=next_id, history=history)
                history.start(row, prompt)
                next_id += 1
            # Else the step failed after the draft, and the same text is drafted for again.


def test_draft_model_logits_after_rejections_are_those_without_a_cache(model: Any) -> None:
    drafter = make_draft_drafter(model)
    runner: Any = drafter._runner
    run, logits = runner._logits, []

    def spy(*args: Any) -> Any:
        logits.append(run(*args))
        return logits[-1]

    runner._logits = spy
    request = FakeRequest(0, [1, 2, 3, 4, 5])
    drafter.prefill([request], [0], [4])
    # Rejected at once, all kept, skipped for several tokens, rejected half-way.
    for num_accepted, others in ((0, [9]), (3, [10]), (0, [11, 12, 13, 14, 15, 16]), (1, [17])):
        del logits[:]
        tokens = draft(drafter, request, 3).tokens
        with torch.inference_mode():
            ids = torch.tensor([[*request.token_ids, *tokens[:-1]]], device=model.device)
            expected = model(input_ids=ids, use_cache=False).logits[0, -3:]
        got = torch.stack([step[0, -1] for step in logits])
        assert torch.allclose(got, expected, atol=1e-9)
        request.token_ids.extend([*tokens[:num_accepted], *others])


@pytest.mark.parametrize("length", [1, 2, 5, 10])
def test_draft_model_takes_one_forward_per_token(model: Any, length: int) -> None:
    drafter = make_draft_drafter(model)
    requests = [FakeRequest(i, [i, 1, 2], slot=i) for i in range(3)]
    lengths = [length, 1, 0]
    proposals = [offered(drafter, r, n) for r, n in zip(requests, lengths, strict=True)]
    drafts = drafter.propose(requests, proposals, lengths)
    assert [len(d) for d in drafts] == lengths
    # Rows share a forward.
    assert drafter.num_forwards == length
    assert drafts[0].kinds == tuple(("model", i) for i in range(length))


def test_draft_model_runs_no_forward_where_nothing_is_wanted(model: Any) -> None:
    drafter, request = make_draft_drafter(model), FakeRequest(0, [1, 2])
    assert draft(drafter, request, 0) == EMPTY_DRAFT
    assert drafter.num_forwards == 0
    proposal = offered(drafter, request, 3)
    assert (len(proposal.reaches), proposal.steps_per_token) == (3, 1)
    assert proposal.draft == EMPTY_DRAFT  # It costs forwards, so nothing is computed before it is asked for.
    assert drafter.num_forwards == 0


def test_draft_model_takes_in_what_it_lacks_in_chunks(model: Any) -> None:
    drafter = make_draft_drafter(model, prefill_chunk=7)
    prefill, widths = drafter._runner.prefill, []

    def spy(batch: RowBatch) -> None:
        widths.append(batch.width)
        prefill(batch)

    drafter._runner.prefill = spy  # type: ignore[method-assign]
    request = FakeRequest(0, [i % 256 for i in range(60)])
    drafter.prefill([request], [0], [7])  # The engine's own chunks.
    drafter.prefill([request], [7], [9])
    assert widths == [7, 2]
    # Many steps went by without it.
    assert draft(drafter, request, 2).tokens == own_choice(model, request, 2)
    assert max(widths) == 7
    assert sum(widths) in (58, 59)


def test_draft_model_never_drafts_padding_of_its_vocabulary(device: str) -> None:
    # Models of one family pad their embeddings differently; the target has never heard of those tokens.
    padded = tiny_model(3, device, vocab_size=VOCAB + 30).double()
    with torch.no_grad():
        padded.lm_head.weight[VOCAB:] *= 100  # They would win.
    drafter = DraftModelDrafter(make_runner(loaded(padded), num_slots=1, max_length=64, max_width=11), VOCAB, 512)
    request = FakeRequest(0, [1, 2, 3])
    for _ in range(5):
        tokens = draft(drafter, request, 4).tokens
        assert max(tokens) < VOCAB
        request.token_ids.extend(tokens)


def test_draft_model_bears_tokens_that_only_the_target_knows(device: str) -> None:
    # Vocabularies are padded to different sizes within a family, and ids of the padding can reach the text.
    small = tiny_model(0, device)
    unknown = small.config.vocab_size + 5
    drafter = make_draft_drafter(small)
    request = FakeRequest(0, [65, unknown, 66, unknown])
    assert len(draft(drafter, request, 3)) == 3
    known = FakeRequest(1, [65, 0, 66, 0])
    assert draft(make_draft_drafter(small), known, 3) == draft(drafter, request, 3)


def test_measuring_a_draft_step_leaves_no_trace(model: Any) -> None:
    for prepare in (0, 3):
        drafter, request = make_draft_drafter(model), FakeRequest(0, [1, 2, 3, 4])
        drafter.prefill([request], [0], [prepare])
        assert drafter.measure_step(request) > 0
        assert draft(drafter, request, 3).tokens == own_choice(model, request, 3)
        request.token_ids.extend([8, 9])
        assert drafter.measure_step(request) > 0
        assert draft(drafter, request, 3).tokens == own_choice(model, request, 3)


# --- Auto -------------------------------------------------------------------------------------------------------------


def test_auto_offers_what_each_drafter_has_and_asks_the_one_whose_offer_is_taken(model: Any) -> None:
    drafter = CombinedDrafter([PromptLookupDrafter(3), make_draft_drafter(model)])
    matching, new = FakeRequest(0, [1, 2, 3, 1, 2]), FakeRequest(1, [4, 5, 6], slot=1)
    both, computed = drafter.consider(matching, DraftLimits(3)), drafter.consider(new, DraftLimits(3))
    assert [p.draft.tokens for p in both] == [(3, 1, 2), ()]
    assert [(p.source, p.steps_per_token) for p in both] == [(0, 0), (1, 1)]
    assert [(p.source, p.steps_per_token) for p in computed] == [(1, 1)]
    drafts = drafter.propose([matching, new], [both[0], computed[0]], [3, 2])
    assert drafts[0].tokens == (3, 1, 2)
    assert drafts[1].tokens == own_choice(model, new, 2)
    # The alternative may be taken where both have something.
    drafts = drafter.propose([matching, new], [both[1], computed[0]], [1, 0])
    assert drafts[0].tokens == own_choice(model, matching, 1)
    assert drafts[1] == EMPTY_DRAFT


def test_auto_without_a_draft_model_is_the_lookup() -> None:
    drafter = CombinedDrafter([PromptLookupDrafter(3)])
    assert not drafter.consider(FakeRequest(0, [1, 2, 3]), DraftLimits(3))
    request = FakeRequest(1, [1, 2, 1])
    assert draft(drafter, request, 2).tokens == (2, 1)
    assert drafter.measure_step(request) == 0.0


def test_auto_hands_everything_on(model: Any) -> None:
    oracle = OracleDrafter({}, 1.0)
    lookup, draft_model = PromptLookupDrafter(3), make_draft_drafter(perturbed(model, 0.1))
    drafter = CombinedDrafter([lookup, oracle, draft_model])
    request = FakeRequest(0, [1, 2, 1, 2])
    drafter.prefill([request], [0], [3])
    assert draft_model._contents[0].token_ids == [1, 2, 1]
    assert drafter.measure_step(request) > 0  # The dearest one's.
    drafter.consider(request, DraftLimits(1))
    drafter.release(request)
    assert not lookup._indexes
    assert oracle.released == [0]


# --- All of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [Drafter, lambda: PromptLookupDrafter(3), lambda: CombinedDrafter([PromptLookupDrafter(3), Drafter()])],
)
def test_drafters_without_a_model_are_free(make: Callable[[], Drafter]) -> None:
    drafter, request = make(), FakeRequest(0, [1, 2, 1])
    drafter.prefill([request], [0], [2])
    assert drafter.measure_step(request) == 0.0
    assert not drafter.consider(request, DraftLimits(0))
    assert drafter.propose([request], [NOTHING], [0]) == [EMPTY_DRAFT]
    drafter.release(request)


@pytest.mark.skipif(native_library() is None, reason="there is no native decoder for this machine")
def test_a_draft_model_uses_the_threads_of_its_target() -> None:
    target, draft = (replace(loaded(tiny_model(seed)), is_owned=True) for seed in (0, 1))
    runner = make_runner(target, num_slots=1, max_length=64, max_width=5, num_threads=3)
    process, batch = psutil.Process(), RowBatch([0], [0], [[5, 9, 3]])
    before = process.num_threads()
    beside = make_runner(draft, num_slots=1, max_length=64, max_width=5, num_threads=9, beside=runner)
    assert isinstance(beside, NativeRunner)
    assert (beside.num_threads, process.num_threads()) == (3, before)
    right = beside.last_logits(batch)
    runner.prefill(batch)
    assert torch.equal(beside.last_logits(batch), right)
    # Whoever ends first leaves them to the other.
    runner.release()
    assert torch.equal(beside.last_logits(batch), right)
    beside.release()
    assert process.num_threads() == before - 2
