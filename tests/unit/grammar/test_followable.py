"""Answers that follow the schema of a type are always of that type, and what no grammar can hold is refused."""

from __future__ import annotations

import ipaddress
import json
import random
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, Union
from uuid import UUID

import jsonschema
import pytest
from pydantic import (
    UUID1,
    UUID4,
    UUID5,
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    Field,
    FilePath,
    FutureDate,
    HttpUrl,
    ImportString,
    Json,
    NaiveDatetime,
    PastDate,
    PastDatetime,
    PostgresDsn,
    SecretStr,
    StringConstraints,
    create_model,
)
from pydantic.networks import IPvAnyAddress, IPvAnyNetwork

from langchain_specdec import Grammar
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.constraint import GrammarCompiler
from langchain_specdec.grammar.followable import followable
from langchain_specdec.grammar.formats import PATTERNS, dates_between
from tests.support.json_schemas import can_write, random_answer
from tests.support.tiny_models import EOS, byte_tokenizer


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Fish(BaseModel):
    kind: Literal["fish"] = "fish"
    fins: int = 2


class Cat(BaseModel):
    kind: Literal["cat"]


TYPES: dict[str, Any] = {
    "UUID": UUID,
    "UUID1": UUID1,
    "UUID4": UUID4,
    "UUID5": UUID5,
    "Decimal": Decimal,
    "Decimal with digits": Annotated[Decimal, Field(max_digits=6)],
    "Decimal with places": Annotated[Decimal, Field(decimal_places=2)],
    "Decimal with both": Annotated[Decimal, Field(max_digits=6, decimal_places=2)],
    "Decimal within bounds": Annotated[Decimal, Field(max_digits=5, decimal_places=1, ge=0, lt=50)],
    "whole Decimal": Annotated[Decimal, Field(max_digits=3, decimal_places=0)],
    "date": date,
    "PastDate": PastDate,
    "FutureDate": FutureDate,
    "date within bounds": Annotated[date, Field(ge=date(2019, 11, 28), lt=date(2020, 3, 2))],
    "time": time,
    "datetime": datetime,
    "NaiveDatetime": NaiveDatetime,
    "AwareDatetime": AwareDatetime,
    "timedelta": timedelta,
    "IPv4Address": ipaddress.IPv4Address,
    "IPv4Interface": ipaddress.IPv4Interface,
    "IPv4Network": ipaddress.IPv4Network,
    "IPv6Address": ipaddress.IPv6Address,
    "IPv6Interface": ipaddress.IPv6Interface,
    "IPv6Network": ipaddress.IPv6Network,
    "IPvAnyAddress": IPvAnyAddress,
    "IPvAnyNetwork": IPvAnyNetwork,
    "AnyUrl": AnyUrl,
    "HttpUrl": HttpUrl,
    "PostgresDsn": PostgresDsn,
    "Base64Bytes": Base64Bytes,
    "bytes with a length": Annotated[bytes, Field(max_length=4)],
    "complex": complex,
    "SecretStr": SecretStr,
    "stripped": Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=6)],
    "unanchored pattern": Annotated[str, Field(pattern=r"\d{3}", max_length=9)],
    "pattern with flags": Annotated[str, Field(pattern=re.compile("^[ab]+$", re.IGNORECASE), max_length=5)],
    "int64": Annotated[int, Field(ge=-(2**63), le=2**63 - 1)],
    "above 2**53": Annotated[int, Field(gt=2**53, le=2**53 + 3)],
    "uint64": Annotated[int, Field(ge=0, le=2**64 - 1)],
    "set": set[str],
    "frozenset of numbers": frozenset[int],
    "set with items": Annotated[set[Colour], Field(min_length=2)],
    "dict of numbers": dict[int, int],
    "dict by float": dict[float, int],
    "dict by date": dict[date, int],
    "dict by UUID": dict[UUID4, int],
    "dict by name": dict[Literal["a", "b"], int],
    "dict by enum": dict[Colour, int],
    "dict by pattern": dict[Annotated[str, Field(pattern="^[ab]$")], int],
    "dict by length": dict[Annotated[str, Field(min_length=2, max_length=3)], int],
    "dict of one": Annotated[dict[str, int], Field(min_length=1)],
    "union with a tag by default": Annotated[Union[Fish, Cat], Field(discriminator="kind")],  # noqa: UP007
    "numbered enum": Size,
    "tuple": tuple[int, Colour],
}
WHOLE = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer(), 258, (EOS,))


@pytest.mark.parametrize("name", TYPES)
def test_every_answer_is_of_its_type(compiler: GrammarCompiler, name: str) -> None:
    model: Any = create_model("Model", at=(TYPES[name], ...))
    rng = random.Random(7)
    for _ in range(12):
        constraint = compiler.compile(Grammar(schema=model), 150)
        model.model_validate_json(random_answer(constraint, rng, 150))


EXAMPLES = {
    "date": ("2024-02-29", "2023-02-29"),
    "time": ("23:59:59.5Z", "23:59:60Z"),
    "date-time": ("2024-01-31T10:00:00+01:00", "2024-04-31T10:00:00Z"),
    "duration": ("P1DT12H", "P"),
    "email": ("jane.doe+x@mail.example.org", "jane@"),
    "ipv4network": ("192.168.128.0/17", "192.168.1.0/17"),
    "ipv6": ("fe80::1", "fe80::1::2"),
    "ipv6network": ("2001:db80::/28", "2001:db8f::/28"),
    "uri": ("https://user@example.org:8080/a%20b?q=1#end", "http://1.2.3.4.5"),
    "uuid4": ("123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
    "base64": ("aGk=", "aGk"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_formats_take_what_is_usual(name: str) -> None:
    right, wrong = EXAMPLES[name]
    assert re.fullmatch(PATTERNS[name], right)
    assert not re.fullmatch(PATTERNS[name], wrong)


@pytest.mark.parametrize(
    ("first", "last"),
    [("2020-02-03", "2021-01-01"), ("2020-05-09", "2020-05-31"), ("0001-01-01", "2009-11-28"), ("2020-01-01",) * 2],
)
def test_dates_between_two_are_all_there(first: str, last: str) -> None:
    pattern = re.compile(dates_between(date.fromisoformat(first), date.fromisoformat(last)))
    for day in range(date(2000, 1, 1).toordinal(), date(2030, 1, 1).toordinal()):
        text = date.fromordinal(day).isoformat()
        assert bool(pattern.fullmatch(text)) == (first <= text <= last)


REFUSED: dict[str, Any] = {
    "Json": Json,
    "ImportString": ImportString,
    "ImportString in a list": list[ImportString],  # type: ignore[type-arg]
    "FilePath": FilePath,
    "bounds of a datetime": PastDatetime,
    "bounds of a timedelta": Annotated[timedelta, Field(gt=timedelta(0))],
    "several free names": Annotated[dict[str, int], Field(min_length=2)],
    "several distinct items": Annotated[set[int], Field(min_length=2)],
    "pattern of Python": re.Pattern,
    "keys within bounds": dict[Annotated[int, Field(ge=0)], int],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_refused(compiler: GrammarCompiler, name: str) -> None:
    model: Any = create_model("Model", at=(REFUSED[name], ...))
    with pytest.raises(InvalidParameterError) as caught:
        compiler.compile(Grammar(schema=model), 150)
    assert len(str(caught.value)) < 300
    assert str(caught.value).count("followed") == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True},
        {"items": {"$ref": "#/$defs/A"}, "uniqueItems": True, "minItems": 2, "$defs": {"A": {"enum": [1, 2]}}},
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 1},
        {"propertyNames": {"pattern": "^[xy]{2}$"}, "additionalProperties": WHOLE, "minProperties": 1},
        {"type": "object", "patternProperties": {"^[ab]$": WHOLE}, "additionalProperties": False, "minProperties": 1},
        {"type": "object", "properties": {"a": WHOLE}, "patternProperties": {"^a$": {"maximum": 3}}, "required": ["a"]},
        {"type": ["string", "null"], "format": "uuid4", "pattern": "^1"},
        {"type": "string", "format": "path"},
        {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "discriminator": {"propertyName": "k"}, "$defs": {
            "A": {"type": "object", "properties": {"k": {"const": "a"}}, "additionalProperties": False},
            "B": {"type": "object", "properties": {"k": {"const": "b"}}, "additionalProperties": False},
        }},
    ],
    ids=str,
)  # fmt: skip
def test_schemas_are_written_in_words_that_are_known(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    before = json.dumps(schema)
    followable(schema)
    assert json.dumps(schema) == before
    rng = random.Random(3)
    for _ in range(20):
        answer = random_answer(compiler.compile(Grammar(schema=schema), 120), rng, 120)
        jsonschema.validate(json.loads(answer), schema)


def test_nothing_usual_is_lost(compiler: GrammarCompiler) -> None:
    for schema, text in (
        ({"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True}, '["c", "a", "b"]'),
        ({"type": "string", "format": "path"}, '"/tmp/ä"'),
        ({"type": "string", "pattern": r"\d{3}"}, '"a123b"'),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "-9223372036854774784"),
        ({"type": "object", "propertyNames": {"format": "date"}}, '{"2020-01-01": [1]}'),
    ):
        assert can_write(compiler.compile(Grammar(schema=schema), 99), text), text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": 5}, {"type": "objekt"}, {"type": ["string", 5]}, {"properties": []}, {"enum": 5}, {"enum": []},
        {"items": 5}, {"$ref": 5}, {"$ref": "#/a"}, {"format": 5, "type": "string"}, {"pattern": 5, "type": "string"},
        {"pattern": "("}, {"const": float("nan")}, {"pattern": "\ud800"}, {"const": {1, 2}}, {"not": {}},
        {"propertyNames": 5}, {"uniqueItems": True, "items": 5, "minItems": "x"}, {"minProperties": "x"},
        {"discriminator": 5, "oneOf": 5}, {"required": 5, "minProperties": 3}, {"format": "date", "formatMinimum": 5},
        {"type": "array", "uniqueItems": True, "maxItems": "x"}, {"allOf": 5, "pattern": "a", "format": "date"},
        {"type": "integer", "minimum": float("inf")}, {"type": "integer", "minimum": 3, "exclusiveMinimum": True},
        {"oneOf": [{"properties": {"k": {}}}], "discriminator": {"propertyName": ["k"]}},
        {"oneOf": [{"properties": {"k": {}}, "required": [["k"]]}], "discriminator": {"propertyName": "k"}},
        {"propertyNames": {"enum": ["a", "b"], "pattern": "^a"}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_schema_is_refused(compiler: GrammarCompiler, schema: Any) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        compiler.compile(Grammar(schema=schema), 99)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


UNION: dict[str, Any] = {
    "oneOf": [{"type": "object", "properties": {"k": {"const": "a"}}, "additionalProperties": False}],
    "discriminator": {"propertyName": "k"},
}
UNNAMED = {"oneOf": [{"properties": {"k": {"const": "a"}}, "required": ["x"], "additionalProperties": True}]}
UNIQUE = {"type": "array", "uniqueItems": True}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "integer", "minimum": 0.5, "exclusiveMinimum": 3}, "4", "3"),
        ({"type": "integer", "maximum": 7.5, "exclusiveMaximum": 7}, "6", "7"),
        ({"type": "integer", "minimum": -1.5, "exclusiveMaximum": 2.5}, "-1", "-2"),
        ({"type": "integer", "exclusiveMinimum": 0.5, "exclusiveMaximum": 1.5}, "1", "2"),
        (UNION, '{"k": "a"}', "{}"),
        ({**UNION, **UNNAMED}, '{"k": "a", "x": 1}', '{"k": "a"}'),
        ({**UNIQUE, "items": {"enum": [1, 1]}}, "[1]", "[1, 1]"),
        ({**UNIQUE, "items": {"enum": [1, 1.0]}}, "[1]", "[1, 1.0]"),
        ({**UNIQUE, "items": {"enum": [1, True]}}, "[true, 1]", "[1, 1]"),
        ({**UNIQUE, "items": {"enum": [{"a": 1}, {"a": 1.0}]}}, "[]", '[{"a": 1}, {"a": 1.0}]'),
        ({**UNIQUE, "items": {"enum": [1, 2], "minimum": 2}}, "[2]", "[1]"),
        ({**UNIQUE, "items": {"enum": [1, 2]}, "enum": [[1]]}, "[1]", "[2]"),
        ({"type": "integer", "example": {"required": True}, "x-ui": [{"enum": 5}]}, "1", '"1"'),
        ({"$ref": "#/x/y", "x": {"y": {"type": "integer", "minimum": 0.5, "exclusiveMinimum": 3}}}, "4", "3"),
    ],
    ids=str,
)  # fmt: skip
def test_no_part_of_a_schema_is_lost(compiler: GrammarCompiler, schema: dict[str, Any], right: str, wrong: str) -> None:
    constraint = compiler.compile(Grammar(schema=schema), 150)
    assert can_write(constraint, right)
    assert not can_write(constraint, wrong)


def test_no_properties_are_written_but_those_that_are_named(compiler: GrammarCompiler) -> None:
    kind: Any = Cat
    constraint = compiler.compile(Grammar(schema=kind), 99)
    assert can_write(constraint, '{"kind": "cat"}')
    assert not can_write(constraint, '{"kind": "cat", "other": [1]}')


def test_bounds_beyond_what_can_be_counted_are_refused() -> None:
    model: Any
    for bound in (Field(gt=date.max), Field(lt=date.min)):
        model = create_model("Model", at=(Annotated[date, bound], ...))
        with pytest.raises(InvalidParameterError, match="no date lies after 9999-12-31 or before 0001-01-01"):
            Grammar(schema=model)
    model = create_model("Model", at=(Annotated[Decimal, Field(ge=10**400)], ...))
    with pytest.raises(InvalidParameterError, match="too large"):
        Grammar(schema=model)


def test_a_regular_expression_that_is_no_text_is_refused(compiler: GrammarCompiler) -> None:
    for regex in ("(", "(?!a)b"):
        with pytest.raises(InvalidParameterError, match="regular expression cannot be followed"):
            compiler.compile(Grammar(regex=regex), 99)
