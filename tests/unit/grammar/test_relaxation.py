"""Schemas without what cannot be held: little is lost, and it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from langchain_specdec import Grammar
from langchain_specdec.backends.base import Backend
from langchain_specdec.backends.tgi.backend import TGIBackend
from langchain_specdec.backends.tgi.grammars import served
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.followable import followable
from langchain_specdec.grammar.relaxation import relaxed
from langchain_specdec.grammar.text_check import TextCheck

TEXT = {"type": "string"}
CHECKS = {"here": Backend.check_grammar, "on a server": TGIBackend.check_grammar}


def parameters(inner: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": TEXT, "b": inner}, "required": ["a"], **more}


def check_with(check: Callable[[Grammar], None]) -> Callable[[dict[str, Any]], None]:
    return lambda schema: check(Grammar(schema=schema))


def fits(schema: dict[str, Any], value: Any) -> bool:
    return TextCheck(Grammar(schema=schema)).fit(json.dumps(value)).is_whole


# The schema of a property, what is left out, a value that fits without it, and one that breaks what is left.
PARTS: dict[str, tuple[dict[str, Any], list[str], Any, Any]] = {
    "a set": ({"type": "array", "items": TEXT, "uniqueItems": True}, ["uniqueItems"], ["x", "x"], [1]),
    "names": (
        {"type": "object", "properties": {"z": TEXT}, "propertyNames": {"pattern": "^z"}, "additionalProperties": TEXT},
        ["propertyNames"],
        {"z": "x", "y": "x"},
        {"z": 1},
    ),
    "look-ahead": ({"type": "string", "pattern": "^(?!x).*$", "minLength": 2}, ["pattern"], "xy", "x"),
    "not": ({"type": ["string", "integer"], "not": {"const": "x"}}, ["not"], "x", True),
    "if": ({"type": "string", "if": {"const": "x"}, "then": {"minLength": 3}}, ["if", "then"], "x", 1),
    "contains": ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 3}}, ["contains"], [1], ["x"]),
    "oneOf": ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}, ["oneOf"], "xyz", 1),
    "patterns of names": (
        {"type": "object", "patternProperties": {"^x": TEXT, "x$": {"type": "integer"}}},
        ["patternProperties"],
        {"x": True},
        1,
    ),
    "format": ({"type": "string", "format": "regex", "minLength": 2}, ["format"], "((", "("),
    "dynamic reference": ({"$dynamicRef": "#node", "type": "array"}, ["$dynamicRef"], [1], "x"),
    "reference to nothing": ({"$ref": "#/$defs/none"}, ["$ref"], 1, None),
    "reference to elsewhere": ({"$ref": "https://example.org/s.json", "type": "string"}, ["$ref"], "x", 1),
    "older draft": ({"type": "number", "exclusiveMinimum": True, "minimum": 2}, ["exclusiveMinimum"], 2, 1),
    "no type": ({"type": "str", "enum": ["x", "y"]}, ["type"], "x", "z"),
    "required within": ({"type": "string", "required": True}, ["required"], "x", 1),
    "JSON in a string": ({"type": "string", "contentMediaType": "application/json"}, ["contentMediaType"], "x", 1),
    "dependent": (
        {"type": "object", "properties": {"x": TEXT}, "dependentRequired": {"x": ["y"]}},
        ["dependentRequired"],
        {"x": "x"},
        {"x": 1},
    ),
}


@pytest.mark.parametrize("where", CHECKS)
@pytest.mark.parametrize("name", PARTS)
def test_only_the_part_is_left_out(name: str, where: str) -> None:
    inner, left_out, good, bad = PARTS[name]
    check = check_with(CHECKS[where])
    with pytest.raises(InvalidParameterError):
        check(parameters(inner))
    found = relaxed(parameters(inner), check)
    assert list(found.left_out) == [f"{part} in properties/b" for part in left_out]
    check(found.schema)
    assert fits(found.schema, {"a": "x", "b": good})
    if bad is not None:
        assert not fits(found.schema, {"a": "x", "b": bad})
    assert not fits(found.schema, {"b": good})
    # Deeper, and in a definition.
    deep = parameters({"type": "array", "items": {"$ref": "#/$defs/B"}}, **{"$defs": {"B": {"anyOf": [inner, TEXT]}}})
    found = relaxed(deep, check)
    assert {part.split()[0] for part in found.left_out} == set(left_out)
    assert fits(found.schema, {"a": "x", "b": [good, "text"]})


@pytest.mark.parametrize("where", CHECKS)
def test_recursion_is_kept_where_it_can_be_held(where: str) -> None:
    node = {
        "type": "object",
        "properties": {"v": {"type": "string", "pattern": "(?!x)"}, "next": {"$ref": "#/$defs/node"}},
        "required": ["v"],
    }
    check = check_with(CHECKS[where])
    found = relaxed({"type": "object", "properties": {"n": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}}, check)
    check(found.schema)
    assert fits(found.schema, {"n": {"v": "x", "next": {"v": "y", "next": {"v": "z"}}}})
    assert not fits(found.schema, {"n": {"v": 1}})
    assert fits(found.schema, {"n": {"v": "x", "next": {"v": 1}}}) == (where == "on a server")
    assert ("recursion in $defs/node" in found.left_out) == (where == "on a server")


def test_what_only_follows_from_the_whole_takes_the_whole() -> None:
    def check(schema: dict[str, Any]) -> None:
        if "x" in json.dumps(schema):
            msg = "No."
            raise InvalidParameterError(msg)

    assert relaxed({"type": "object", "properties": {"y": {"const": "x"}}}, check).schema == {
        "type": "object",
        "properties": {"y": {}},
    }

    def refuse(schema: dict[str, Any]) -> None:
        raise InvalidParameterError

    found = relaxed({"type": "object", "properties": {"y": TEXT}}, refuse)
    assert (found.schema, found.left_out) == ({"type": "object"}, ("all of it",))


def test_many_parts_are_not_looked_at_one_by_one() -> None:
    many = {f"p{i}": {"type": "object", "properties": {f"q{j}": TEXT for j in range(20)}} for i in range(50)}
    num_checks = 0

    def check(schema: dict[str, Any]) -> None:
        nonlocal num_checks
        num_checks += 1
        Backend.check_grammar(Grammar(schema=schema))

    schema = {"type": "object", "properties": {**many, "bad": {"type": "string", "not": {"const": "x"}}}}
    assert relaxed(schema, check).left_out == ("not in properties/bad",)
    assert num_checks < 150


@pytest.mark.parametrize("never", [False, {"not": {}}, {"not": True}, {"not": {}, "description": "Never."}], ids=str)
def test_a_property_that_has_no_value_is_never_written(never: Any) -> None:
    """As MCP servers in TypeScript describe what is undefined: this can be held."""
    schema = parameters(never)
    for check in CHECKS.values():
        check(Grammar(schema=schema))
    assert fits(schema, {"a": "x"})
    assert not fits(schema, {"a": "x", "b": 1})
    assert followable({"type": "array", "items": {"not": {}}})["items"] == {"enum": []}
    assert list(served(Grammar(schema=schema))["value"]["properties"]) == ["a"]
    with pytest.raises(InvalidParameterError, match="unsatisfiable"):
        Backend.check_grammar(Grammar(schema={**schema, "required": ["b"]}))
