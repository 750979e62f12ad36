"""Answers that follow a grammar: always of its form, and the same with drafts as without."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import jsonschema
import pytest
import torch

from langchain_specdec import Grammar, SamplingParams
from langchain_specdec.completions.events import FinishEvent, Token
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar import constraint as constraint_module
from langchain_specdec.grammar.constraint import GrammarCompiler
from langchain_specdec.grammar.matching import matcher_of
from langchain_specdec.grammar.token_masks import has_token, only_token
from tests.support.constrained_text import constrained_text
from tests.support.json_schemas import random_schema
from tests.support.tiny_models import (
    EOS,
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

pytestmark = pytest.mark.transformers

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
VOCAB = 258
# Behind a property "a", llguidance takes a comma for possible, and then finds no name that may follow.
DEAD_END = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "patternProperties": {"^a$": {"type": "integer"}},
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Any:
    # In float64 no two scores are so close that the order of additions decides.
    return tiny_model(3, dtype=torch.float64)


@pytest.fixture
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer(), VOCAB, (EOS,))


def text_of(tokens: Sequence[int]) -> str:
    return str(byte_tokenizer().decode([t for t in tokens if t != EOS]))


def ids(text: str) -> list[int]:
    return list(byte_tokenizer()(text).input_ids)


def run(engine: Engine, cases: Sequence[tuple[list[int], SamplingParams]]) -> list[tuple[list[Token], FinishEvent]]:
    streams = [engine.submit(prompt, params) for prompt, params in cases]
    return [read(stream) for stream in streams]


def drafters(model: Any) -> Iterator[tuple[str, Drafter, dict[str, Any]]]:
    near = perturbed(model, 0.02)
    yield "tree", LookupTreeDrafter(5), {"max_tree_nodes": 16}
    yield "chain", LookupTreeDrafter(5), {}
    yield "prompt_lookup", PromptLookupDrafter(5), {}
    yield "fixed", PromptLookupDrafter(3), {"draft_length": 4}
    yield "draft_model", make_draft_drafter(near), {}
    yield "auto", CombinedDrafter([LookupTreeDrafter(5), make_draft_drafter(near)]), {"max_tree_nodes": 16}


def plain(model: Any, prompt: list[int], params: SamplingParams) -> list[int]:
    """The rule by itself."""
    assert params.grammar is not None
    constraint = GrammarCompiler(byte_tokenizer(), VOCAB, (EOS,)).compile(params.grammar, params.max_new_tokens)
    return constrained_text(model, prompt, params, constraint)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_drafts_never_change_a_constrained_text(model: Any, temperature: float) -> None:
    rng = random.Random(5)
    cases = []
    for number in range(4):
        grammar = Grammar(schema=random_schema(rng, 2)) if number else Grammar(regex=r"(ab|cd){1,9}[0-9]+x")
        cases.append(
            (
                random_prompt(rng),
                SamplingParams(max_new_tokens=100, temperature=temperature, seed=number, grammar=grammar),
            )
        )
    # Free rows beside constrained ones.
    cases += [(random_prompt(rng), SamplingParams(max_new_tokens=20, temperature=temperature, seed=9))]
    with closing(make_engine(model, Drafter())) as engine:
        expected = [token_ids(tokens) for tokens, _ in run(engine, cases)]
    assert expected[:3] == [plain(model, *case) for case in cases[:3]]
    for name, drafter, options in drafters(model):
        with closing(make_engine(model, drafter, **options)) as engine:
            found = [token_ids(tokens) for tokens, _ in run(engine, cases)]
            assert found == expected, name
            # Again, now that the drafter knows these texts.
            assert [token_ids(tokens) for tokens, _ in run(engine, cases)] == expected, name


def test_forced_tokens_are_drafted_and_counted(model: Any) -> None:
    const = {"a": "nothing to choose here", "b": [1, 2, 3]}
    grammar = Grammar(schema={"const": const})
    length = len(json.dumps(const))
    params = SamplingParams(max_new_tokens=200, grammar=grammar)
    with closing(make_engine(model, LookupTreeDrafter(5), max_tree_nodes=16)) as engine:
        tokens, finish = run(engine, [([1, 2, 3], params)])[0]
    assert "".join(t.text for t in tokens) == json.dumps(const)
    stats = finish.speculation
    # Ten one after the other at a time, and one that each step but the last gives itself.
    assert stats.num_steps == -(-(length + 1) // 11)
    assert stats.drafted_tokens == stats.accepted_tokens == stats.forced_tokens == length + 2 - stats.num_steps
    assert stats.as_dict()["forced_tokens"] == stats.forced_tokens


def test_a_drafter_that_knows_no_grammar_is_held_to_it(model: Any) -> None:
    """Nodes that the grammar does not allow are drafted, and never taken."""
    prompt, params = [1, 2, 3], SamplingParams(max_new_tokens=120, grammar=Grammar(schema=PERSON))
    expected = plain(model, prompt, params)
    for agreement in (0.0, 0.6, 1.0):
        drafter = OracleDrafter({tuple(prompt): expected}, agreement)
        with closing(make_engine(model, drafter)) as engine:
            tokens, finish = run(engine, [(prompt, params)])[0]
        assert token_ids(tokens) == expected
        assert (finish.speculation.accepted_tokens > 0) == (agreement > 0)


@pytest.mark.parametrize("limit", range(36, 60))
def test_an_answer_ends_in_time(model: Any, limit: int) -> None:
    params = SamplingParams(max_new_tokens=limit, temperature=1.0, seed=limit, grammar=Grammar(schema=PERSON))
    with closing(make_engine(model, LookupTreeDrafter(5), max_tree_nodes=8)) as engine:
        tokens, finish = run(engine, [([5, 6, 7], params)])[0]
    assert finish.finish_reason == "eos_token"
    assert len(tokens) <= limit
    jsonschema.validate(json.loads("".join(t.text for t in tokens)), PERSON)


def test_what_cannot_be_followed_is_refused_before_decoding(model: Any) -> None:
    endless = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    wrong = {
        "Too many items": Grammar(schema=endless),
        "JSON schema cannot be followed: .*uniqueItems": Grammar(schema={"type": "array", "uniqueItems": True}),
        "JSON schema cannot be followed: .*[Ff]ormat": Grammar(schema={"type": "string", "format": "iri"}),
        "JSON schema cannot be followed: .*minimum": Grammar(schema={"type": "integer", "minimum": 5, "maximum": 3}),
        "JSON schema cannot be followed: .*not exist": Grammar(schema={"$ref": "#/$defs/missing"}),
        "regular expression cannot be followed": Grammar(regex="(unclosed"),
    }
    with closing(make_engine(model, Drafter())) as engine:
        for message, grammar in wrong.items():
            with pytest.raises(InvalidParameterError, match=message):
                engine.submit([1], SamplingParams(max_new_tokens=50, grammar=grammar))
        assert engine.num_target_forwards == 0
        # And it goes on.
        tokens, _ = run(engine, [([1], SamplingParams(max_new_tokens=5, grammar=Grammar(regex="[a-c]{2}")))])[0]
        assert len(tokens) == 3


def test_a_dead_end_is_no_path_and_costs_nothing_else(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(Grammar(schema=DEAD_END), 99)
    begin = ids('{"a": 1')
    assert constraint.mask_after([*begin, *ids(", ")]) is None
    assert constraint.allowed_after([*begin, *ids(", ")], ids('"')) == [False]
    # Others are still found, before and behind the dead end.
    assert constraint.allowed_after(begin, ids("1}")) == [True, True]
    comma, space = ids(", ")
    masks = constraint.masks([*begin, comma, space, ids("}")[0]], [*range(-1, 8), 6])
    assert [mask is None for mask in masks] == [False] * 9 + [True, False]
    constraint.advance(begin)
    # Neither the comma nor the space behind it is taken, wherever a step ends.
    assert constraint.in_time([comma, space], 90) == constraint.in_time([comma], 90) == ids("}")
    constraint.advance(ids("}"))
    assert constraint.forced_after(()) == [EOS]


def test_a_text_without_a_way_on_fails_in_one_line(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(Grammar(schema=DEAD_END), 99)
    constraint.advance(ids('{"a": 1, '))
    with pytest.raises(ValueError, match="no way to go on") as caught:
        constraint.masks([], [])
    assert len(str(caught.value)) < 120
    assert "state" not in str(caught.value)


@pytest.mark.parametrize("seed", range(6))
def test_dead_ends_change_no_text_and_fail_none(model: Any, seed: int) -> None:
    """Drafts look into dead ends that the text itself never takes."""
    prompt = ids('{"a": 1, {"a": 2, {"a": 3, {"a": ')
    params = SamplingParams(max_new_tokens=120, temperature=1.0, seed=seed, grammar=Grammar(schema=DEAD_END))
    texts = set()
    for drafter, nodes in ((Drafter(), 0), (LookupTreeDrafter(5), 16), (PromptLookupDrafter(5), 0)):
        with closing(make_engine(model, drafter, max_tree_nodes=nodes)) as engine:
            tokens, finish = run(engine, [(prompt, params)])[0]
        assert finish.finish_reason == "eos_token"
        texts.add("".join(t.text for t in tokens))
    assert len(texts) == 1
    jsonschema.validate(json.loads(texts.pop()), DEAD_END)


def test_a_grammar_that_compiles_holds_up_no_other(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    known = compiler.compile(Grammar(schema=DEAD_END), 99)
    compiled, reached, go_on = matcher_of, threading.Event(), threading.Event()

    def held(*asked: Any) -> Any:
        reached.set()
        assert go_on.wait(30)
        return compiled(*asked)

    monkeypatch.setattr(constraint_module, "matcher_of", held)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(compiler.compile, Grammar(regex="a"), 9)
        assert reached.wait(30)
        # What the engine does, and another caller: both take a fresh matcher.
        assert known.mask_after(ids('{"a": 1, ')) is None
        assert compiler.compile(Grammar(schema=DEAD_END), 99).shortest(99) is not None
        assert not waiting.done()
        go_on.set()
        assert waiting.result().forced_after(()) == ids("a")


def test_no_end_of_sequence_token_is_told(model: Any) -> None:
    with (
        closing(make_engine(model, Drafter(), eos=())) as engine,
        pytest.raises(InvalidParameterError, match="no end-of-sequence token"),
    ):
        engine.submit([1], SamplingParams(max_new_tokens=9, grammar=Grammar(regex="a")))


def test_paths_leave_no_trace(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(Grammar(schema=PERSON), 200)
    begin = ids('{"name": "')
    assert constraint.forced_after(()) == begin
    assert constraint.forced_after(begin[:4]) == begin[4:]
    assert constraint.forced_after(ids("[")) == []
    assert constraint.allowed_after(begin, [*ids("a"), EOS]) == [True, False]
    assert constraint.mask_after(ids("[")) is None
    masks = constraint.masks([begin[0], ids("[")[0], begin[1]], [-1, -1, 0])
    assert [mask is None for mask in masks] == [False, False, True, False]
    assert masks[0] is not None
    assert has_token(masks[0], begin[0])
    assert not has_token(masks[0], ids("[")[0])
    constraint.advance(begin)
    constraint.advance(ids('x", "age": 1'))
    assert constraint.allowed_after((), ids("0,}")) == [True, True, False]
    with pytest.raises(ValueError, match="grammar"):
        constraint.advance(ids("}"))


def test_after_the_end_only_an_end_follows(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(Grammar(regex="ab"), 9)
    assert constraint.forced_after(()) == [*ids("ab"), EOS][:2]
    constraint.advance(ids("ab"))
    assert constraint.forced_after(()) == [EOS]
    assert constraint.forced_after([EOS]) == []
    end = constraint.mask_after(())
    assert end is not None
    assert (end == only_token(EOS, VOCAB)).all()
    assert constraint.allowed_after((), [EOS, 0]) == [True, False]
    assert constraint.allowed_after([EOS], [EOS]) == [False]


def test_the_shortest_answer_is_short(compiler: GrammarCompiler) -> None:
    cases: dict[str, dict[str, Any]] = {
        '{"name": "", "age": 0, "tags": []}': PERSON,
        "{}": {"type": "object"},
        '["", ""]': {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "null": {"anyOf": [{"type": "string", "minLength": 9}, {"type": "null"}]},
    }
    for text, schema in cases.items():
        constraint = compiler.compile(Grammar(schema=schema), 100)
        assert constraint.shortest(100) == [*ids(text), EOS]
        assert constraint.shortest(len(text)) is None


def test_a_grammar_is_a_schema_or_a_regex() -> None:
    for arguments in ({}, {"schema": {}, "regex": "a"}, {"schema": "x"}, {"regex": ""}, {"schema": {"a": object()}}):
        with pytest.raises(InvalidParameterError):
            Grammar(**arguments)
    with pytest.raises(InvalidParameterError, match="grammar must be a Grammar"):
        SamplingParams(grammar={"type": "object"})  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="ignore_eos and grammar"):
        SamplingParams(grammar=Grammar(regex="a"), ignore_eos=True)
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    grammar = Grammar(schema=schema)
    schema["properties"]["late"] = {}
    assert grammar == Grammar(schema={"type": "object", "properties": {}})
    assert hash(grammar) == hash(Grammar(schema={"type": "object", "properties": {}}))
    assert hash(grammar) != hash(Grammar(schema={"properties": {}, "type": "object"}))
