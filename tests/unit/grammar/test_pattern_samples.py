"""Strings that hold to a pattern end soon, wherever in them the answer stands."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, Field

from langchain_specdec import Grammar
from langchain_specdec.grammar.constraint import GrammarCompiler
from tests.support.json_schemas import random_answer
from tests.support.tiny_models import EOS, VOCAB, byte_tokenizer

PATTERNS = [
    *("hello", "@", r"\.pdf$", "[A-Z]", r"[A-Z]{2}-\d{4}", "^[^@]+@[^@]+$", "https?://", "(foo|bar)baz", "^(a|b)?c"),
    *("^a|b$", r"^\s*\S+", 'a"b', r"\n\\", "ü{3}", "[aeiou].*[xyz]", r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$"),
]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer(), VOCAB, (EOS,))


def text_of(tokens: list[int] | None) -> str:
    assert tokens is not None
    return str(byte_tokenizer().decode(tokens[:-1]))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_shortest_answer_holds_to_the_pattern(compiler: GrammarCompiler, pattern: str) -> None:
    for schema in ({"type": "string", "pattern": pattern}, {"type": "string", "pattern": pattern, "minLength": 15}):
        answer = json.loads(text_of(compiler.compile(Grammar(schema=schema), 99).shortest(40)))
        jsonschema.validate(answer, schema)
        assert re.search(pattern, answer)
    answer = text_of(compiler.compile(Grammar(regex=f"({pattern.strip('^$')})x"), 99).shortest(40))
    assert re.search(pattern.strip("^$"), answer)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_string_that_has_begun_ends_soon(compiler: GrammarCompiler, pattern: str) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}, "required": ["x"]}
    for seed in range(3):
        constraint = compiler.compile(Grammar(schema=schema), 60)
        answer = random_answer(constraint, random.Random(seed), 60)
        jsonschema.validate(json.loads(answer), schema)


def test_patterns_of_names_and_several_at_once(compiler: GrammarCompiler) -> None:
    names = {"type": "object", "patternProperties": {"@x": {"enum": [1]}}, "additionalProperties": False}
    both = {"type": "string", "allOf": [{"type": "string", "pattern": "@"}, {"type": "string", "pattern": "x.z"}]}
    cases: list[dict[str, Any]] = [{**names, "minProperties": 1}, both]
    for schema in cases:
        jsonschema.validate(json.loads(text_of(compiler.compile(Grammar(schema=schema), 99).shortest(30))), schema)


def test_the_same_ending_each_time() -> None:
    class Files(BaseModel):
        pdf: str = Field(pattern=r"\.pdf$")
        mail: str = Field(pattern="@")

    grammar = Grammar(schema=Files.model_json_schema())
    found = [GrammarCompiler(byte_tokenizer(), VOCAB, (EOS,)).compile(grammar, 99).shortest(60) for _ in range(2)]
    assert found[0] == found[1]
    assert text_of(found[0]) == '{"pdf": ".pdf", "mail": "@"}'
