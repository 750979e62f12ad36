"""A thought before the text of a grammar: it ends in time, the grammar begins behind it, and drafts change nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
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
    phase = ThoughtPhase(how.end, how.closing, how.following, how.max_tokens)
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


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_drafts_never_change_a_text_that_thinks_first(model: Any, temperature: float) -> None:
    cases = cases_of(model, temperature)
    expected = [plain(model, case) for case in cases]
    ways = [("plain", Drafter(), {}), *drafters(model, {tuple(c[0]): e for c, e in zip(cases, expected, strict=True)})]
    for name, drafter, options in ways:
        with closing(make_engine(model, drafter, **options)) as engine:
            # In one batch, then one by one, now that the drafter knows these texts and slots hold their prompts.
            assert run(engine, cases) == expected, name
            assert [run(engine, [case])[0] for case in cases] == expected, name


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_what_follows_a_thought_fits_its_grammar(model: Any, temperature: float) -> None:
    ends = set()
    for case in cases_of(model, temperature):
        tokens = plain(model, case)
        _, params, how = case
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
