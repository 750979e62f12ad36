"""Draft models with another tokenizer than their target's: what both have is drafted, and the text stays the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent
from langchain_specdec.drafters.base import DraftLimits
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.drafters.draft_text import DraftText
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.token_masks import only_token
from langchain_specdec.models.common_vocabulary import CommonVocabulary, TokenSpellings
from langchain_specdec.models.compatibility import common_vocabulary
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.sampling.params import SamplingParams
from tests.support.other_tokenizers import BOS, renumbered, shuffled_tokenizer
from tests.support.tiny_models import VOCAB, FakeRequest, byte_tokenizer, perturbed, tiny_model


def loaded(model: Any, tokenizer: Any, name: str = "tiny") -> LoadedModel:
    return LoadedModel(model, PrivateTokenizer(tokenizer), name, ())


pytestmark = pytest.mark.transformers
MERGES = [("t", "h"), ("e", "r"), ("i", "n"), ("th", "e")]
TARGET, TOKENIZER = tiny_model(dtype=torch.float64), byte_tokenizer()


def backend(model: Any = TARGET, tokenizer: Any = TOKENIZER, **options: Any) -> LocalBackend:
    return LocalBackend(model, tokenizer, max_length=256, num_slots=4, **options)


def texts(engine: LocalBackend, requests: Sequence[CompletionRequest]) -> list[tuple[list[int], FinishEvent]]:
    """What is written: the tokens, and the ends."""
    found = []
    for stream in engine.start(requests):
        tokens: list[int] = []
        for event in stream:
            if isinstance(event, FinishEvent):
                found.append((tokens, event))
            else:
                tokens += [token.id for token in event.tokens]
    return found


# --- What is common ---------------------------------------------------------------------------------------------------


def test_tokens_are_common_by_what_they_spell():
    common = CommonVocabulary(
        TokenSpellings([(b"a", False), (b"b", False), (b"ab", False), (b"", False), (b"<x>", True), (b"!", True)],
                       frozenset(), 4, 5),
        TokenSpellings([(b"b", False), (b"<end>", True), (b"a", False), (b"c", False), (b"<x>", False)],
                       frozenset(), None, 1),
    )  # fmt: skip
    # The name of a special token is no text, and the ends of texts are alike.
    assert [token in common for token in range(6)] == [True, True, False, False, False, True]
    assert common.share == 3 / 5
    assert common.spell([2, 5, 0, 3]) == [2, 0, 1, 2]
    scores = common.scores(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), 7)
    assert scores.tolist()[0][:2] + scores.tolist()[0][5:6] == [3.0, 1.0, 2.0]
    assert (scores[0, [2, 3, 4, 6]] < -1e29).all()
    assert common.theirs(torch.tensor([[1, 5]])).tolist() == [[0, 1]]


def test_a_token_that_spells_a_byte_for_want_of_another_gives_way():
    spelled = [(b"a", False), (b"\n", False), (b"a", False)]
    plain = TokenSpellings([(b"a", False), (b"\n", False)], frozenset(), None, None)
    common = CommonVocabulary(plain, TokenSpellings(spelled, frozenset({0, 1}), None, None))
    assert common.spell([0, 1]) == [2, 1]


def test_one_token_may_begin_and_end_texts_and_the_end_is_what_is_drafted():
    plain = [(b"<1>", True), (b"<2>", True), (b"a", False)]
    two, one = TokenSpellings(plain, frozenset(), 0, 1), TokenSpellings(plain, frozenset(), 0, 0)
    common = CommonVocabulary(two, one)
    assert [token in common for token in range(3)] == [False, True, True]
    assert common.spell([0, 1]) == [0, 0]
    common = CommonVocabulary(one, two)
    assert common.theirs(torch.tensor([0])).tolist() == [1]


def test_what_only_the_target_has_is_spelled_in_the_longest_pieces():
    ours, theirs = shuffled_tokenizer(1, [("x", "y"), *MERGES]), shuffled_tokenizer(2, MERGES[:2])
    common = common_vocabulary(loaded(tiny_model(vocab_size=263), ours), loaded(tiny_model(vocab_size=260), theirs))
    assert common is not None
    spelled = common.spell(ours.convert_tokens_to_ids(["the", "xy", "er"]))
    assert theirs.convert_ids_to_tokens(spelled) == ["th", "e", "x", "y", "er"]


@pytest.mark.parametrize("has_bos", [True, False])
def test_a_text_grows_alike_and_begins_as_the_draft_model_is_used_to(has_bos):
    ours, theirs = shuffled_tokenizer(1, MERGES, has_bos=True), shuffled_tokenizer(2, has_bos=has_bos)
    common = common_vocabulary(loaded(tiny_model(vocab_size=262), ours), loaded(tiny_model(vocab_size=258), theirs))
    tokens = ours("the inn").input_ids
    text = DraftText(tokens, common)
    assert text.ids == theirs(BOS + "the inn", add_special_tokens=False).input_ids
    before, length = list(text.ids), len(tokens)
    tokens += ours("ther", add_special_tokens=False).input_ids
    assert theirs.decode(text.ids) == f"{BOS}the innther"
    assert text.ids[: len(before)] == before
    assert (text.end_of(length), text.end_of(len(tokens))) == (len(before), len(text.ids))
    # Without a first token of the target's own.
    assert DraftText(tokens[1:], common).ids == text.ids[not has_bos :]


# --- Same text --------------------------------------------------------------------------------------------------------

JSON = {
    "type": "object",
    "properties": {"the": {"type": "boolean"}, "inner": {"enum": ["thin", "er"]}},
    "required": ["the", "inner"],
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "seed": 3},
    "narrow": {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "seed": 2**64 - 1},
    "penalised": {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "logit_bias": {105: 4.0},
        "temperature": 0.5,
        "seed": 1,
    },
}


def requests_of(kind: str, tokenizer: Any) -> list[CompletionRequest]:
    prompts = ["the thin inner", "then there", "in", "er the er the er the"]
    made = [
        CompletionRequest(
            tokenizer(text, add_special_tokens=False).input_ids, SamplingParams(max_new_tokens=20, **KINDS[kind])
        )
        for text in prompts
    ]
    answer = SamplingParams(max_new_tokens=60, grammar=Grammar(JSON), **KINDS[kind])
    return [*made, CompletionRequest(made[0].prompt, answer)]


@pytest.fixture(scope="module", params=["bytes", "merged"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[LocalBackend, LocalBackend, LocalBackend, Any]]:
    """A target, and with a draft model of another tokenizer, alone and beside lookup."""
    if request.param == "bytes":
        target, tokenizer, theirs = TARGET, TOKENIZER, shuffled_tokenizer(5, MERGES)
        draft = renumbered(perturbed(TARGET, 0.02), tokenizer, theirs)
    else:
        tokenizer, theirs = shuffled_tokenizer(6, MERGES), shuffled_tokenizer(7, MERGES[:1], has_bos=True)
        target, draft = (
            tiny_model(dtype=torch.float64, vocab_size=len(tokenizer)),
            tiny_model(3, vocab_size=len(theirs)),
        )
    with (
        closing(backend(target, tokenizer, drafter="none")) as plain,
        closing(
            backend(target, tokenizer, draft_model=draft, draft_tokenizer=theirs, drafter="draft_model", draft_length=4)
        ) as alone,
        closing(
            backend(target, tokenizer, draft_model=draft, draft_tokenizer=theirs, step_cost=StepCost.flat())
        ) as auto,
    ):
        for engine in (plain, alone, auto):
            # An engine's thread starts with its first text.
            texts(engine, requests_of("greedy", tokenizer)[:1])
        yield plain, alone, auto, tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_the_same(pair, kind):
    plain, alone, auto, tokenizer = pair
    requests = requests_of(kind, tokenizer)
    expected = [texts(plain, [each])[0] for each in requests]
    for engine in (alone, auto):
        batch = texts(engine, requests)
        assert [tokens for tokens, _ in batch] == [tokens for tokens, _ in expected]
        assert [end.finish_reason for _, end in batch] == [end.finish_reason for _, end in expected]
        # Once more, with what is left of it in the slots.
        assert texts(engine, requests[3:4])[0][0] == expected[3][0]


def test_a_draft_model_that_agrees_takes_a_step_for_each_draft():
    theirs = shuffled_tokenizer(8, MERGES)
    draft = renumbered(TARGET, TOKENIZER, theirs)
    # The byte that stands in no text is not told from none.
    never = {TOKENIZER.get_vocab()["\u00ff"]: -100.0}
    kinds: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 5}, {"temperature": 1.0, "top_p": 0.7, "seed": 5}]
    for kind in kinds:
        params = SamplingParams(max_new_tokens=40, ignore_eos=True, logit_bias=never, **kind)
        request = CompletionRequest([*b"hello"], params)
        with closing(backend(draft_model=draft, draft_tokenizer=theirs, drafter="draft_model", draft_length=4)) as ours:
            _, end = texts(ours, [request])[0]
        assert (end.completion_tokens, end.speculation.num_steps) == (40, 8)


def test_a_text_that_is_longer_in_the_draft_models_tokens_goes_on_without_it():
    tokenizer, theirs = shuffled_tokenizer(6, MERGES), shuffled_tokenizer(7)
    target, draft = tiny_model(dtype=torch.float64, vocab_size=len(tokenizer)), tiny_model(3, vocab_size=len(theirs))
    request = CompletionRequest(tokenizer("the" * 200).input_ids, SamplingParams(max_new_tokens=20, ignore_eos=True))
    with closing(backend(target, tokenizer, drafter="none")) as plain:
        expected = texts(plain, [request])[0][0]
    options = {"draft_model": draft, "draft_tokenizer": theirs, "drafter": "draft_model", "draft_length": 4}
    with closing(backend(target, tokenizer, **options)) as ours:
        tokens, end = texts(ours, [request])[0]
        assert (tokens, end.speculation.drafted_tokens) == (expected, 0)
        # The next text has room again.
        assert texts(ours, [CompletionRequest(request.prompt[:50], request.params)])[0][1].speculation.drafted_tokens


def test_a_slot_that_held_another_text_is_read_from_where_they_differ(monkeypatch):
    theirs = shuffled_tokenizer(9)
    common = common_vocabulary(loaded(TARGET, TOKENIZER), loaded(tiny_model(), theirs))
    runner = make_runner(
        loaded(renumbered(TARGET, TOKENIZER, theirs), theirs), num_slots=1, max_length=128, max_width=5
    )
    drafter = DraftModelDrafter(runner, VOCAB, 512, common)
    drafts, run = [], runner.prefill
    for number, text in enumerate((b"hello world", b"hello there")):
        request = FakeRequest(number, [*text])
        read: list[int] = []
        monkeypatch.setattr(runner, "prefill", lambda batch, read=read: (read.extend(batch.tokens[0]), run(batch)))
        drafter.prefill([request], [0], [len(text) - 1])
        drafts.append(drafter.propose([request], drafter.consider(request, DraftLimits(3)), [3])[0].tokens)
        drafter.release(request)
        assert len(read) <= (len(text) if number == 0 else len(b"there"))
    assert all(len(tokens) == 3 for tokens in drafts)


def test_a_token_that_a_grammar_forces_is_drafted_though_the_draft_model_has_it_not():
    tokenizer, theirs = byte_tokenizer(), shuffled_tokenizer(9)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<call>"]})
    common = common_vocabulary(loaded(tiny_model(vocab_size=VOCAB + 1), tokenizer), own := loaded(tiny_model(), theirs))
    runner = make_runner(own, num_slots=1, max_length=128, max_width=5)
    drafter = DraftModelDrafter(runner, VOCAB + 1, 512, common)
    masks = SimpleNamespace(mask_after=lambda chain: only_token(VOCAB if len(chain) == 1 else 97, VOCAB + 1))
    request = FakeRequest(0, [*b"hello"], constraint=masks)
    assert drafter.propose([request], drafter.consider(request, DraftLimits(3)), [3])[0].tokens == (97, VOCAB)


def test_a_text_that_is_nothing_to_the_draft_model_goes_on_without_it():
    theirs = shuffled_tokenizer(9)
    padded = tiny_model(dtype=torch.float64, vocab_size=VOCAB + 6)
    request = CompletionRequest([VOCAB + 3, VOCAB + 5], SamplingParams(max_new_tokens=8))
    with closing(backend(padded, drafter="none")) as plain:
        expected = texts(plain, [request])[0][0]
    options = {"draft_model": tiny_model(), "draft_tokenizer": theirs, "drafter": "draft_model", "draft_length": 2}
    with closing(backend(padded, **options)) as ours:
        assert texts(ours, [request])[0][0] == expected


def test_a_step_is_measured_beside_a_text_without_room_which_is_not_read():
    theirs = shuffled_tokenizer(9)
    common = common_vocabulary(loaded(TARGET, TOKENIZER), own := loaded(tiny_model(), theirs))
    runner = make_runner(own, num_slots=1, max_length=16, max_width=5)
    drafter, request = DraftModelDrafter(runner, VOCAB, 512, common), FakeRequest(0, [*b"far too long a text"])
    drafter.prefill([request], [0], [18])
    assert not drafter.consider(request, DraftLimits(3))
    assert drafter._contents == {}
    drafter.release(request)
    # Others may have room, for which drafts are not free; and nothing of the text is kept.
    assert drafter.measure_step(request) > 0
    assert drafter._texts == {}


# --- What is said -----------------------------------------------------------------------------------------------------


def test_the_share_is_told(caplog):
    theirs = shuffled_tokenizer(5, MERGES)
    with (
        caplog.at_level(logging.INFO, "langchain_specdec"),
        closing(backend(draft_model=tiny_model(vocab_size=len(theirs)), draft_tokenizer=theirs)),
    ):
        pass
    assert "it drafts from the 257 tokens that both have (100% of the target's)" in caplog.text


def test_a_pair_without_a_common_token_is_refused():
    pair = []
    for letters in ("ab", "cd"):
        tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
        tokenizer.decoder = decoders.ByteLevel()
        made = tiny_model(vocab_size=2, bos_token_id=None, eos_token_id=None)
        pair.append(loaded(made, PreTrainedTokenizerFast(tokenizer_object=tokenizer), letters))
    with pytest.raises(UnsupportedModelError, match="cd cannot draft for ab: their tokenizers have no token in common"):
        common_vocabulary(*pair)


def test_a_tokenizer_that_cannot_be_read_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "world": 1}, unk_token="hello"))
    small = tiny_model(vocab_size=2, bos_token_id=None, eos_token_id=None)
    strange = loaded(small, PreTrainedTokenizerFast(tokenizer_object=tokenizer), "small")
    with pytest.raises(UnsupportedModelError, match="only fast tokenizers that are byte-level or SentencePiece's"):
        common_vocabulary(loaded(TARGET, TOKENIZER, "big"), strange)
