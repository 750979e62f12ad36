"""Grammars in the words of TGI's, and what TGI cannot hold or would fall over.

TGI makes a regular expression of a schema (outlines-core) and a table of states of that (interegular), in the process
that generates: while it does, every request of the server waits, and where its stack does not suffice, it ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from langchain_specdec.backends.tgi.patterns import CLASS_SIZE, Extent, as_text, in_json, refuse_syntax
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.formats import PATTERNS, addresses
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import (
    FORMATS,
    is_never,
    map_schemas,
    recursive_definition,
    resolved,
    visit_schemas,
)
from langchain_specdec.grammar.text_check import text_check

MAX_DEPTH = 40
"""Most levels of groups in a regular expression; TGI's parser fails from some 80 on."""
MAX_SIZE = 25_000
"""Most characters of a regular expression, each as often as it may come, a class of them as twenty."""

# Digits of other scripts are digits to the library.
_FORMAT_PATTERNS = {name: f"^(?:{pattern})$".replace(r"\d", "[0-9]") for name, pattern in PATTERNS.items()}
# How a type of Pydantic's says which schemes its addresses may have.
_SCHEMES = re.compile(r"\^(\(\?:[^()]+\)):")
# Their alternatives differ early, so that their tables are small.
_FORMAT_SIZE = 4_000
# Of what outlines-core writes around a value, or for a number.
_VALUE_SIZE = 20
_ARRAY_OR_OBJECT = Extent(8_000, 30)
# Keywords that outlines-core looks for; a schema without any of them is none to it.
_LEADING = ("properties", "allOf", "anyOf", "oneOf", "prefixItems", "enum", "const", "$ref")
_SCALARS = ("string", "number", "boolean", "null")
_LESS = (
    "Let properties be required (nullable ones, too), say what arrays and objects hold, lower maxLength and maxItems"
)


@lru_cache(maxsize=128)
def served(grammar: Grammar) -> dict[str, Any]:
    """The parameter `grammar` of a request.

    Raises:
        InvalidParameterError: TGI cannot hold the grammar, it would hold up or end the server, or answers could not be
            checked against it here.
    """
    if grammar.regex is not None:
        refuse_syntax(grammar.regex, "The regular expression")
        parameter: dict[str, Any] = {"type": "regex", "value": as_text(grammar.regex)}
        _refuse_extent(Extent.of(grammar.regex), "The regular expression", "Repeat less")
    else:
        schema = map_schemas(grammar.schema, dict)
        visit_schemas(schema, _drop_more_patterns)
        visit_schemas(schema, _drop_never)
        schema = map_schemas(schema, _schema_as_served)
        parameter = {"type": "json", "value": schema}
        _refuse_schema(schema)
        _refuse_extent(_SchemaExtent(schema).of(schema), "The JSON schema", _LESS)
    _refuse_unchecked(grammar)
    return parameter


def _drop_more_patterns(inner: dict[str, Any]) -> None:
    """Leave one pattern: they are not intersected there, but put one after the other."""
    members = inner.get("allOf", ())
    if isinstance(inner.get("pattern"), str) and all(
        isinstance(part, dict) and part.keys() == {"pattern"} for part in members
    ):
        inner.pop("allOf", None)


def _drop_never(inner: dict[str, Any]) -> None:
    """Leave out properties that have no value, which it would write; a required one is refused with the answers."""
    if isinstance(properties := inner.get("properties"), dict):
        inner["properties"] = {name: of for name, of in properties.items() if not is_never(of)}


def _schema_as_served(inner: dict[str, Any]) -> dict[str, Any]:
    """A schema in words that the server's grammars (outlines-core) know; it ignores other keywords, but no formats."""
    for keyword in ("formatMinimum", "formatMaximum", "propertyNames"):
        inner.pop(keyword, None)
    if isinstance(properties := inner.get("properties"), dict):
        inner["properties"] = {name: _anything() if of is True else of for name, of in properties.items()}
    if inner.get("items") is True:
        inner["items"] = _anything()
    if inner.get("additionalProperties") is False and inner.get("type") == "object" and not inner.get("properties"):
        # It knows no patterns of names, and no such schema without properties.
        held = [*inner.get("patternProperties", {}).values()]
        inner.update({"additionalProperties": held[0]} if held else {"properties": {}})
    kinds = inner.get("type")
    if kinds in (None, "string") or (isinstance(kinds, list) and "string" in kinds):
        _write_pattern(inner)
    if kinds is None:
        kinds = [*_SCALARS, "array", "object"]
    if isinstance(kinds, list) and not inner.keys() & set(_LEADING):
        return {"anyOf": [_of_kind(inner, kind) for kind in kinds]}
    return inner


def _write_pattern(inner: dict[str, Any]) -> None:
    """Say the pattern or the format of a string so that the server holds it."""
    pattern, name = inner.get("pattern"), inner.get("format")
    if name not in FORMATS or name in PATTERNS or isinstance(pattern, str):
        inner.pop("format", None)
    if isinstance(pattern, str):
        if name in ("uri", "multi-host-uri") and (match := _SCHEMES.fullmatch(pattern)):
            pattern = f"^{addresses(name, match[1])}$"
        inner["pattern"] = in_json(pattern, "A pattern of the JSON schema")
    elif name in PATTERNS:
        inner["pattern"] = _FORMAT_PATTERNS[name]
    if inner.keys() & {"pattern", "format"}:
        # A string with a length has no other form there.
        inner.pop("minLength", None)
        inner.pop("maxLength", None)


def _of_kind(schema: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """A schema of values of one type, as served; what arrays and objects hold has no more levels, unless it says so."""
    of_kind = {**{k: v for k, v in schema.items() if k not in ("title", "description", "default")}, "type": kind}
    held = {"anyOf": [{"type": scalar} for scalar in _SCALARS]}
    if kind == "array" and "items" not in schema:
        of_kind["items"] = held
    if kind == "object" and not isinstance(schema.get("additionalProperties"), dict):
        of_kind["additionalProperties"] = held
    return of_kind


def _anything() -> dict[str, Any]:
    return _schema_as_served({})


def _refuse_unchecked(grammar: Grammar) -> None:
    """Refuse a grammar that answers could not be checked against."""
    try:
        text_check(grammar)
    except InvalidParameterError as error:
        reason = str(error).removeprefix(f"The {grammar.kind} cannot be followed: ")
        msg = (
            f"Answers could not be checked here against the {grammar.kind}, and TGI servers break grammars too often "
            f"to go unchecked: {reason}"
        )
        raise InvalidParameterError(msg) from None


def _refuse_schema(schema: Mapping[str, Any]) -> None:
    if (name := recursive_definition(schema)) is not None:
        msg = (
            f"The JSON schema is recursive ({name} holds itself), and TGI's grammars cannot hold that: the answers "
            f"would not fit. Say how deep it may be, one definition for each level, or use a LocalBackend."
        )
        raise InvalidParameterError(msg)
    if "properties" not in schema:
        msg = (
            "A TGI server takes JSON schemas of objects with 'properties' only. Make it one, which in a chat "
            "method='function_calling' does, or use a LocalBackend."
        )
        raise InvalidParameterError(msg)


def _refuse_extent(extent: Extent, what: str, less: str) -> None:
    if extent.depth > MAX_DEPTH:
        msg = (
            f"{what} has too many groups within each other: more than {MAX_DEPTH} may end a TGI server. Nest it less, "
            f"or use a LocalBackend."
        )
        raise InvalidParameterError(msg)
    if extent.size > MAX_SIZE:
        msg = (
            f"{what} is too large for a TGI server: as a table of states it has a size of some {extent.size}, at most "
            f"{MAX_SIZE}, and all requests of the server would wait for minutes while it is made. {less}, or use a "
            f"LocalBackend."
        )
        raise InvalidParameterError(msg)


class _SchemaExtent:
    """The extent of what outlines-core makes of a schema without recursion."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[int, Extent] = {}
        self._level = 0

    def of(self, schema: Any) -> Extent:
        """Of one of the schemas in it."""
        if not isinstance(schema, dict) or self._level > 2 * MAX_DEPTH:
            # Each two levels are one of groups, or more: it is refused in any case.
            return Extent(0, 0)
        if id(schema) not in self._known:
            self._level += 1
            self._known[id(schema)] = self._of(schema)
            self._level -= 1
        return self._known[id(schema)]

    def _of(self, schema: dict[str, Any]) -> Extent:
        if "$ref" in schema:
            target = resolved(self._root, schema)
            return Extent(0, 0) if target is schema else self.of(target)
        for word in ("enum", "const"):
            if word in schema:
                return Extent(len(json.dumps(schema[word])), 1)
        for word in ("allOf", "anyOf", "oneOf"):
            if isinstance(members := schema.get(word), list):
                return Extent.around(map(self.of, members), depth=2)
        if isinstance(members := schema.get("prefixItems"), list):
            return Extent.around(map(self.of, members), depth=1)
        kind = schema.get("type")
        if "properties" in schema or kind == "object":
            return self._of_object(schema)
        if kind == "array":
            if not isinstance(schema.get("items"), dict):
                return _ARRAY_OR_OBJECT
            items = self.of(schema.get("items"))
            # The first of them is written apart.
            return Extent.around(
                [items], times=max(_number(schema, "maxItems"), _number(schema, "minItems"), 2), depth=3
            )
        if kind == "string":
            if isinstance(pattern := schema.get("pattern"), str):
                if pattern in _FORMAT_PATTERNS.values():
                    size, depth = Extent.of(pattern)
                    return Extent(min(size, _FORMAT_SIZE), depth)
                return Extent.of(pattern)
            length = max(_number(schema, "maxLength"), _number(schema, "minLength"), 2)
            return Extent(CLASS_SIZE * length, 1)
        return Extent(_VALUE_SIZE, 2)

    def _of_object(self, schema: dict[str, Any]) -> Extent:
        properties = schema.get("properties") or {}
        if not properties and not isinstance(schema.get("additionalProperties"), dict):
            return _ARRAY_OR_OBJECT
        if not properties:
            return Extent.around([self.of(schema.get("additionalProperties"))], times=2, depth=2)
        names = sum(len(name) + _VALUE_SIZE for name in properties)
        inner = Extent.around(map(self.of, properties.values()), size=names, depth=2)
        # Where none is required, an alternative begins with each of them, and states stand for sets of alternatives.
        return inner if schema.get("required") else Extent.around([inner], times=2 ** min(len(properties), 20) // 4 + 1)


def _number(schema: Mapping[str, Any], keyword: str) -> int:
    value = schema.get(keyword)
    return int(value) if isinstance(value, (int, float)) else 0
