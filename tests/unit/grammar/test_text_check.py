"""Texts of others against a grammar: what fits, what begins to, and from where on one does not."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from langchain_specdec import Grammar
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.constraint import GrammarCompiler
from langchain_specdec.grammar.text_check import TextCheck, text_check
from tests.support.json_schemas import random_answer, random_schema
from tests.support.tiny_models import EOS, VOCAB, byte_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "share": {"type": "number", "minimum": 0, "exclusiveMaximum": 1000},
        "code": {"type": "string", "pattern": "^[a-z/é]+$", "maxLength": 4},
        "day": {"type": "string", "format": "date"},
        "free": {"type": "string"},
    },
}


@pytest.fixture(scope="module")
def check() -> TextCheck:
    return TextCheck(Grammar(schema=SCHEMA))


@pytest.mark.parametrize(
    "text",
    [
        '{"age": 5}',
        "{}",
        '{ "age":5 ,\n"share" : 1.5}',
        '\n{"age": 150}\t',
        '{"age": -0}',
        '{"share": 1e1}',
        '{"share": 1E-300}',
        '{"code": "a\\/b"}',
        '{"code": "\\u00e9"}',
        '{"free": "\x7f\\ud83d\\ude00"}',
        '{"day": "2024-02-29"}',
    ],
)
def test_other_spellings_of_what_fits_fit(check: TextCheck, text: str) -> None:
    assert check.fit(text).is_whole
    jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize(
    ("text", "num_fitting"),
    [
        ('{"age": 5000000}', 10),
        ('{"age": "5"}', 8),
        ('{"share": 1e9}', 11),
        ('{"share": 1e999}', 11),
        ('{"code": "a\\/bcd"}', 11),
        ('{"code": "A"}', 10),
        ('{"day": "2023-02-29"}', 17),
        ('{"share": 1, "age": 5}', 14),
        ('{"age": 5, "age": 7}', 12),
        ('{"age": 5} thanks', 10),
        ('{"age": 5, "more": 1}', 12),
        ("hello", 0),
        ('{"code": "\\ud83d"}', 11),
        ('{"code": "éé" }!', 14),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(check: TextCheck, text: str, num_fitting: int) -> None:
    fit = check.fit(text)
    assert (fit.is_whole, fit.is_begun) == (False, False)
    assert abs(fit.num_fitting - num_fitting) <= 1


def test_each_beginning_of_what_fits_is_one(check: TextCheck) -> None:
    text = '{"age": 15, "code": "aé"}'
    for end in range(len(text)):
        assert check.fit(text[:end]).is_begun
    assert check.fit(text).is_whole
    dates = TextCheck(Grammar(regex="[0-9]{2}(th|nd)+"))
    assert dates.fit("22n").is_begun
    assert dates.fit("22nd").is_whole
    assert not dates.fit("22nd ").is_whole
    assert dates.fit("222").num_fitting == 2


@pytest.mark.parametrize(
    "text",
    [
        '{"age": -0, "code": "a',
        '{"age": -0',
        '{"share": 1e+1, "code": "a',
        '{"share": 1e+1',
        '{"share": 1e+',
        '{"share": 2.5E',
        '{"code": "a\\/b", "free": "a',
        '{"code": "a\\/',
        '{"code": "a\\',
        '{"code": "\\u00e9\\u00',
        '{"free": "\\ud83d',
        '{"free": "\x7f',
    ],
)
def test_other_spellings_at_the_beginning_of_what_fits_begin_it(check: TextCheck, text: str) -> None:
    assert check.fit(text).is_begun


@pytest.mark.parametrize(
    "text",
    ['{"age": -1e', '{"share": 1e+9, "code": "a', '{"code": "A\\/', '{"free": "\\x', '{"code": "\\ud83d", "free"'],
)
def test_a_beginning_that_does_not_fit_is_none_in_any_spelling(check: TextCheck, text: str) -> None:
    fit = check.fit(text)
    assert not (fit.is_begun or fit.is_whole)


def test_white_space_in_front_counts_in_places(check: TextCheck) -> None:
    bare, spaced = check.fit('{"b": 1}'), check.fit(' \n   {"b": 1}')
    assert spaced.num_fitting == bare.num_fitting + 5


def test_texts_of_strangers_take_bounded_time_and_depth(check: TextCheck) -> None:
    free = TextCheck(Grammar(schema={"type": "object", "properties": {"any": {}}}))
    for text in ('{"any": ' + "[" * 100_000, "[" * 100_000, '{"any": "' + "a" * 2**21, '{"any": 1e-' + "9" * 9999):
        assert not free.fit(text).is_whole
        assert not check.fit(text).is_whole
    assert "longer" in free.fit('{"any": "' + "a" * 2**21).failure
    # A pattern that a backtracking matcher takes years for.
    slow = TextCheck(Grammar(regex="(a+)+b"))
    assert not slow.fit("a" * 5000 + "c").is_whole


def test_it_agrees_with_a_validator_on_random_values() -> None:
    rng = random.Random(1)
    for _ in range(60):
        schema = random_schema(rng)
        try:
            check = TextCheck(Grammar(schema=schema))
        except InvalidParameterError:
            continue
        closed: Any = Grammar(schema=schema).schema
        for value in (None, True, 0, 7, -3, 2.5, "", "abc", [], [1], ["a", "b"], {}, {"a": 1}, {"b": [True]}):
            if check.fit(json.dumps(value)).is_whole:
                jsonschema.validate(value, closed)


def test_whatever_the_engine_writes_fits_and_so_does_each_beginning() -> None:
    rng = random.Random(5)
    compiler = GrammarCompiler(byte_tokenizer(), VOCAB, (EOS,))
    for _ in range(25):
        grammar = Grammar(schema=random_schema(rng))
        text = random_answer(compiler.compile(grammar, 200), rng)
        check = TextCheck(grammar)
        assert check.fit(text).is_whole, (text, grammar.schema)
        spaced = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
        # A number beyond what a float holds is none in JSON when it is written again.
        assert check.fit(spaced).is_whole or "Infinity" in spaced, (spaced, grammar.schema)
        for end in (1, len(text) // 2, len(text) - 1):
            fit = check.fit(text[:end])
            assert fit.is_begun or fit.is_whole, (text[:end], grammar.schema)


def test_a_grammar_that_cannot_be_followed_is_refused() -> None:
    for grammar in (Grammar(regex="a(?=b)"), Grammar(regex="("), Grammar(schema={"not": {"type": "string"}})):
        with pytest.raises(InvalidParameterError, match="cannot be followed"):
            text_check(grammar)


@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"minimum": 0},
        {"exclusiveMinimum": 0, "maximum": 1},
        {"minimum": -180, "maximum": 180},
        {"minimum": -273.15},
        {"exclusiveMinimum": 1.5, "exclusiveMaximum": 2.5},
    ],
)
def test_zeros_at_the_end_of_a_fraction_change_nothing(bounds: dict[str, float]) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "number", **bounds}}, "required": ["x"]}
    check = TextCheck(Grammar(schema=schema))
    numbers = ["0.80", "-0.10", "1.0", "1.00", "1.550", "0.0", "-0.0", "0.000", "19.990", "1.50e0", "15e-1", "2.500"]
    fitting = [number for number in numbers if check.fit(f'{{"x": {number}}}').is_whole]
    assert fitting == [
        n for n in numbers if not list(jsonschema.Draft202012Validator(schema).iter_errors({"x": float(n)}))
    ]
