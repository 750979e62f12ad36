"""A thought before the text of a grammar: it ends in time, the grammar begins behind it, and drafts change nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import AddedToken

from langchain_specdec import Grammar, SamplingParams
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.call_parts import Json
from langchain_specdec.grammar.constraint import Constraint, GrammarCompiler
from langchain_specdec.grammar.thought_first import ThoughtPhase, thought_first
from tests.support.constrained_text import constrained_text
from tests.support.tiny_models import (
    EOS,
    VOCAB,
    OracleDrafter,
    byte_tokenizer,
    make_draft_drafter,
    make_engine,
    perturbed,
    random_prompt,
    read,
    tiny_model,
    token_ids,
)

SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "names": {"type": "array", "items": {"enum": ["red", "green"]}}},
    "required": ["sure", "names"],
    "additionalProperties": False,
}
GRAMMARS = {
    "schema": Grammar(schema=SCHEMA),
    "regex": Grammar(regex=r"(ab|cd){1,9}[0-9]+x"),
    "calls": CallGrammar(
        call=Json({"type": "object", "properties": {"name": {"const": "f"}}, "required": ["name"]}),
        object=SCHEMA,
        begin="[CALL]",
        separator=None,
        end="",
    ),
    "free": None,
}
Case = tuple[list[int], SamplingParams, Thoughts]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(3, dtype=torch.float64)


def thoughts(end: str, max_tokens: int, following: str = "\n\n") -> Thoughts:
    begins = "<think>\n"
    return Thoughts((begins,), end, (), True, True, max_tokens, f"\n{end}", following)


def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer(), VOCAB, (EOS,))


def constraint_of(case: Case) -> Constraint:
    _, params, how = case
    assert how.max_tokens is not None
    ends = how.end, how.closing, how.following
    phase = ThoughtPhase(*ends, how.max_tokens, how.begins, how.implied_ends, how.is_open)
    return thought_first(phase, params.grammar, params.max_new_tokens, compiler())


def plain(model: Any, case: Case) -> list[int]:
    """The rule by itself. In a thought no token is masked; what may not come there is replaced."""
    prompt, params, _ = case
    return constrained_text(model, prompt, params, constraint_of(case))


def text_of(tokens: Sequence[int]) -> str:
    return str(byte_tokenizer().decode([token for token in tokens if token != EOS]))


def run(engine: Engine, cases: Sequence[Case]) -> list[list[int]]:
    streams = [engine.submit_all([CompletionRequest(prompt, params, thoughts=how)])[0] for prompt, params, how in cases]
    return [token_ids(read(stream)[0]) for stream in streams]


def drafters(model: Any, known: dict[tuple[int, ...], list[int]]) -> Iterator[tuple[str, Drafter, dict[str, Any]]]:
    near = perturbed(model, 0.02)
    yield "tree", LookupTreeDrafter(5), {"max_tree_nodes": 16}
    yield "chain", LookupTreeDrafter(5), {}
    yield "prompt_lookup", PromptLookupDrafter(5), {}
    yield "fixed", PromptLookupDrafter(3), {"draft_length": 4}
    yield "draft_model", make_draft_drafter(near), {}
    yield "auto", CombinedDrafter([LookupTreeDrafter(5), make_draft_drafter(near)]), {"max_tree_nodes": 16}
    yield "oracle", OracleDrafter(known, 1.0), {}
    yield "half an oracle", OracleDrafter(known, 0.5), {}


def cases_of(model: Any, temperature: float) -> list[Case]:
    """Thoughts that end by themselves, by their limit, and where the model would end its text."""
    rng = random.Random(11)
    cases: list[Case] = []
    for number, grammar in enumerate([*GRAMMARS.values()] * 3):
        prompt = random_prompt(rng)
        params = SamplingParams(
            max_new_tokens=120,
            temperature=temperature,
            seed=number,
            grammar=grammar,
            logit_bias={EOS: 6.0} if number % 5 == 4 else None,
        )
        with closing(make_engine(model, Drafter())) as engine:
            free = token_ids(read(engine.submit(prompt, SamplingParams(max_new_tokens=24, temperature=temperature)))[0])
        # A mark that the model writes by itself after some tokens, or never.
        common = next((chr(token) for token in free[4:] if 32 < token < 127), "e")
        end = common if number % 2 else "</think>"
        cases.append((prompt, params, thoughts(end, (12, 40)[number % 3 > 0])))
    return cases


@pytest.fixture(scope="module", params=[0.0, 1.3])
def written(model: Any, request: pytest.FixtureRequest) -> list[tuple[Case, list[int]]]:
    """The cases, and what each writes by the rule, by temperature."""
    return [(case, plain(model, case)) for case in cases_of(model, request.param)]


@pytest.mark.slow
def test_drafts_never_change_a_text_that_thinks_first(model: Any, written: list[tuple[Case, list[int]]]) -> None:
    cases, expected = map(list, zip(*written, strict=True))
    ways = [("plain", Drafter(), {}), *drafters(model, {tuple(c[0]): e for c, e in zip(cases, expected, strict=True)})]
    for name, drafter, options in ways:
        with closing(make_engine(model, drafter, **options)) as engine:
            # In one batch, then one by one, now that the drafter knows these texts and slots hold their prompts.
            assert run(engine, cases) == expected, name
            assert [run(engine, [case])[0] for case in cases[:4]] == expected[:4], name


def free_cases_of(model: Any, temperature: float) -> list[Case]:
    """Free texts that begin their thoughts themselves, and end them by a mark, by the next message, or never."""
    rng = random.Random(12)
    cases: list[Case] = []
    for number in range(12):
        prompt = random_prompt(rng)
        params = SamplingParams(max_new_tokens=60, temperature=temperature, seed=number, ignore_eos=number % 2 == 0)
        with closing(make_engine(model, Drafter())) as engine:
            first, *later = token_ids(read(engine.submit(prompt, params))[0])
        marks = [chr(token) for token in later[8:] if 32 < token < 127 and token != first] or ["e"]
        end, implied = (("</t>", ()), (marks[0], ()), ("</t>", (marks[0],)))[number % 3]
        begin = text_of([first]) if first < 128 else "<t>"
        how = Thoughts((begin,), end, max_tokens=(0, 5, 20, 500)[number % 4], implied_ends=implied)
        cases.append((prompt, params, replace(how, closing=f"\n{end}", following="\n", is_open=number % 5 == 4)))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_limit_holds_for_free_texts_with_every_drafter(model: Any, temperature: float) -> None:
    cases = free_cases_of(model, temperature)
    expected = [plain(model, case) for case in cases]
    free = [constrained_text(model, prompt, params, Constraint.__new__(Unlimited)) for prompt, params, _ in cases]
    is_held = [text != own for text, own in zip(expected, free, strict=True)]
    assert set(is_held) == {True, False}
    for (_, _, how), text, was_held in zip(cases, expected, is_held, strict=True):
        assert not was_held or how.closing in text_of(text)
    ways = [("plain", Drafter(), {}), *drafters(model, {tuple(c[0]): e for c, e in zip(cases, expected, strict=True)})]
    for name, drafter, options in ways:
        with closing(make_engine(model, drafter, **options)) as engine:
            assert run(engine, cases) == expected, name
            assert [run(engine, [case])[0] for case in cases[:4]] == expected[:4], name


class Unlimited(Constraint):
    """Takes every text."""

    def advance(self, token_ids: Sequence[int]) -> None:
        pass

    def in_time(self, chosen: Sequence[int], remaining: int) -> list[int]:
        del remaining
        return list(chosen)


TAGS = Thoughts(("<t>",), "</t>", max_tokens=6, closing="\n</t>", following="\n\n")
HARMONY = Thoughts(
    ("<c>a<m>", "<s>b<c>a<m>"), "<e>", max_tokens=6, closing="<e>", following="<s>b", implied_ends=("<s>b", "<c>f")
)
# What a model writes, and what becomes of it. Each character is a token.
HELD: list[tuple[Thoughts, str, str]] = [
    (TAGS, "<t>Hm</t>Yes.", "<t>Hm</t>Yes."),
    (TAGS, " \n<t>Hm, what is it?</t>", " \n<t>Hm, wh\n</t>\n\nat is it?</t>"),
    (TAGS, "Yes <t>is what it is, and long.", "Yes <t>is what it is, and long."),
    (TAGS, '<x "<t>is what it is">', '<x "<t>is what it is">'),
    # All thoughts before the answer count.
    (TAGS, "<t>H</t>\n<t>What is it?</t>", "<t>H</t>\n<t>Wh\n</t>\n\nat is it?</t>"),
    (TAGS, "</t>\n<t>Hm, what is it?", "</t>\n<t>Hm, wh\n</t>\n\nat is it?"),
    (TAGS, "<t>Hm, what<t>?", "<t>Hm, wh\n</t>\n\nat<t>?"),
    # One that is begun once more, when all is spent, is closed at once.
    (TAGS, "<t>Hm, wh<t>at?", "<t>Hm, wh\n</t>\n\n<t>\n</t>\n\nat?"),
    (replace(TAGS, is_open=True), "Hm, what?", "Hm, wh\n</t>\n\nat?"),
    (replace(TAGS, max_tokens=0, is_open=True), "Yes.", "\n</t>\n\nYes."),
    (replace(TAGS, max_tokens=0), "<t>Yes.", "<t>\n</t>\n\nYes."),
    (HARMONY, "<c>a<m>Hm.<e><s>b<c>f<m>Yes, it is.", "<c>a<m>Hm.<e><s>b<c>f<m>Yes, it is."),
    (HARMONY, "<c>a<m>Hm, what is it?", "<c>a<m>Hm, wh<e><s>bat is it?"),
    # The end mark is forgotten.
    (HARMONY, "<c>a<m>Hm<c>f<m>Yes, it is.", "<c>a<m>Hm<c>f<m>Yes, it is."),
    (HARMONY, "<c>a<m>H<s>b<c>a<m>What is", "<c>a<m>H<s>b<c>a<m>Wh<e><s>bat is"),
]


@pytest.mark.parametrize(("how", "written", "held"), HELD)
def test_thoughts_before_an_answer_are_held_and_nothing_else(how: Thoughts, written: str, held: str) -> None:
    rng = random.Random(written)
    for longest in (1, 2, 7, 100):
        constraint = constraint_of(([1], SamplingParams(max_new_tokens=200), how))
        script, text = list(byte_tokenizer()(written).input_ids), []
        while script:
            # What is forced is drafted, and stands before what the model likes.
            forced = constraint.forced_after(())
            kept = constraint.in_time([*forced, *script][: rng.randrange(longest) + 1], 200)
            constraint.advance(kept)
            text += kept
            # A token that is replaced comes later.
            own = kept[len(forced) :]
            script = script[sum(a == b for a, b in zip(own, script, strict=False)) :]
        while forced := constraint.forced_after(()):
            constraint.advance(forced)
            text += forced
        assert text_of(text) == held, longest


def test_what_follows_a_thought_fits_its_grammar(written: list[tuple[Case, list[int]]]) -> None:
    ends = set()
    for (_, params, how), tokens in written:
        thought, mark, rest = text_of(tokens).partition(how.end)
        assert mark
        ends.add(len(thought) >= (how.max_tokens or 0))
        if params.grammar is None:
            continue
        assert tokens[-1] == EOS
        assert rest.startswith(how.following)
        answer = rest.removeprefix(how.following).removeprefix("[CALL]")
        if params.grammar.regex is None:
            value = json.loads(answer)
            if value != {"name": "f"}:
                jsonschema.validate(value, SCHEMA)
        else:
            assert answer.endswith("x")
    assert ends == {True, False}


def test_fixed_text_is_drafted_for_nothing(model: Any) -> None:
    following = "\n\nThe answer, which is fixed: "
    how = thoughts("</think>", 10, following)
    params = SamplingParams(max_new_tokens=120, grammar=Grammar(regex="yes"))
    with closing(make_engine(model, LookupTreeDrafter(5), max_tree_nodes=16)) as engine:
        tokens, finish = read(engine.submit_all([CompletionRequest([1, 2, 3], params, thoughts=how)])[0])
    fixed = f"\n</think>{following}yes"
    assert text_of(token_ids(tokens)).endswith(fixed)
    assert finish.speculation.forced_tokens >= len(fixed) * 0.8


@pytest.mark.parametrize("limit", range(42, 70, 3))
def test_a_thought_leaves_room_for_the_answer(model: Any, limit: int) -> None:
    params = SamplingParams(max_new_tokens=limit, temperature=1.0, seed=limit, grammar=GRAMMARS["schema"])
    with closing(make_engine(model, LookupTreeDrafter(5))) as engine:
        tokens = run(engine, [([5, 6, 7], params, thoughts("</think>", 10_000, ""))])[0]
    assert tokens[-1] == EOS
    jsonschema.validate(json.loads(text_of(tokens).partition("</think>")[2]), SCHEMA)


def test_no_room_is_told_before_decoding(model: Any) -> None:
    with closing(make_engine(model, Drafter())) as engine:
        for limit, words in (
            (10, "leaves no room for an answer after the thought"),
            (24, "leaves of max_new_tokens=24"),
        ):
            params = SamplingParams(max_new_tokens=limit, grammar=GRAMMARS["schema"])
            with pytest.raises(InvalidParameterError, match=words):
                engine.submit_all([CompletionRequest([1], params, thoughts=thoughts("</think>", 5))])
        assert engine.num_target_forwards == 0


@pytest.mark.transformers
def test_tokens_that_hold_more_than_the_mark() -> None:
    """White space that comes with the mark counts as that of the fixed text; anything else is not taken with it."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("k>\n", "k> ", "k>{", "</think>")])
    newline, space, brace, whole = range(VOCAB, VOCAB + 4)
    made = GrammarCompiler(tokenizer, VOCAB + 4, (EOS,))
    phase = ThoughtPhase("</think>", "\n</think>", "\n\n", 50)
    begun = list(tokenizer("Hm.</thin").input_ids)

    def after(*tokens: int) -> Constraint:
        constraint = thought_first(phase, Grammar(regex="yes"), 90, made)
        for token in (*begun, *tokens):
            assert constraint.in_time([token], 90) == [token]
            constraint.advance([token])
        return constraint

    newlines = list(tokenizer("\n\n").input_ids)
    assert after(newline).forced_after(()) == newlines[1:]
    assert after(space).forced_after(())[:3] == list(tokenizer("yes").input_ids)
    assert after(whole).forced_after(()) == newlines
    constraint = after()
    closing_tokens = list(tokenizer("\n</think>\n\n").input_ids)
    assert constraint.allowed_after((), [brace, newline, EOS]) == [False, True, False]
    for refused in (brace, EOS):
        constraint = after()
        assert constraint.in_time([refused, 0], 90) == closing_tokens[:1]
        constraint.advance(closing_tokens[:1])
        assert constraint.forced_after(()) == closing_tokens[1:]
        assert constraint.allowed_after((), [*closing_tokens[1:2], 0]) == [True, False]
        with pytest.raises(ValueError, match="fixed text"):
            constraint.advance([0])


def test_a_thought_does_not_go_on_to_what_a_grammar_writes() -> None:
    """Where the model begins its answer without having ended the thought, that is ended, and the grammar begins."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<|end|>", "<|channel|>")], special_tokens=True)
    end, channel = range(VOCAB, VOCAB + 2)
    phase = ThoughtPhase("<|end|>", "<|end|>", "<|channel|>", 50, implied_ends=("<|channel|>final", "ends here"))
    constraint = thought_first(phase, Grammar(regex="yes"), 90, GrammarCompiler(tokenizer, VOCAB + 2, (EOS,)))
    assert constraint.allowed_after((), [channel, *tokenizer("a").input_ids]) == [False, True]
    begun = list(tokenizer("It ends her").input_ids)
    assert constraint.allowed_after(begun, tokenizer("e ").input_ids) == [False, True]
    assert constraint.in_time([*begun[:2], channel, 0], 90) == [*begun[:2], end]
    constraint.advance([*begun[:2], end])
    assert constraint.forced_after(()) == [channel]
    assert constraint.forced_after([channel]) == tokenizer("yes").input_ids


def test_ends_that_are_ignored_count_as_tokens_of_a_thought(model: Any) -> None:
    params = SamplingParams(max_new_tokens=40, logit_bias={EOS: 100.0}, ignore_eos=True)
    cases = [([1, 2, 3], params, thoughts("</think>", 9)), ([4, 5], params, thoughts("</think>", 0))]
    with closing(make_engine(model, LookupTreeDrafter(5), max_tree_nodes=16)) as engine:
        found = run(engine, cases)
    forced = list(byte_tokenizer()("\n</think>\n\n").input_ids)
    assert found == [[EOS] * count + forced + [EOS] * (40 - count - len(forced)) for count in (9, 0)]


def test_a_thought_of_no_tokens_is_closed_at_once() -> None:
    constraint = thought_first(ThoughtPhase("</think>", "\n</think>", "", 0), Grammar(regex="yes"), 90, compiler())
    fixed = list(byte_tokenizer()("\n</think>").input_ids)
    assert constraint.forced_after(()) == fixed
    assert constraint.shortest(90) == [*fixed, *byte_tokenizer()("yes").input_ids, EOS]
    assert constraint.shortest(5) is None
    assert constraint.mask_after([0]) is None
    assert constraint.forced_after([0]) == []
