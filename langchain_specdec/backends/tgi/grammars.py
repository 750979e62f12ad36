"""Grammars in the words of TGI's, and what TGI cannot hold or would fall over.

TGI makes a regular expression of a schema (outlines-core) and a table of states of that (interegular), in the process
that generates: while it does, every request of the server waits, and where its stack does not suffice, it ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.formats import PATTERNS
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import FORMATS, map_schemas, recursive_definition, resolved

MAX_DEPTH = 40
"""Most levels of groups in a regular expression; TGI's parser fails from some 80 on."""
MAX_SIZE = 25_000
"""Most characters of a regular expression, each as often as it may come, a class of them as twenty."""


class _Extent(NamedTuple):
    """Of a regular expression: its characters, repeated ones as often as they may come, and levels of groups."""

    size: int
    depth: int

    @classmethod
    def around(cls, parts: Iterable[_Extent], *, times: int = 1, size: int = 0, depth: int = 0) -> _Extent:
        """Of these parts together, so many times, with so much more around them."""
        parts = list(parts)
        return cls(
            size + times * sum(part.size for part in parts), depth + max((part.depth for part in parts), default=0)
        )


# What may follow in a string of JSON that has no escapes.
_REST = r'[^"\\\x00-\x1f]*'
# Digits of other scripts are digits to the library.
_FORMAT_PATTERNS = {name: f"^(?:{pattern})$".replace(r"\d", "[0-9]") for name, pattern in PATTERNS.items()}
# Their alternatives differ early, so that their tables are small.
_FORMAT_SIZE = 4_000
_CLASS_SIZE = 20
# Of what outlines-core writes around a value, or for a number.
_VALUE_SIZE = 20
_ARRAY_OR_OBJECT = _Extent(8_000, 30)
_ANY = _Extent(20_000, 30)
# Anchors, references to groups, and names of characters.
_UNKNOWN_ESCAPES = "AbBZNpPuU123456789"
_LESS = (
    "Let properties be required (nullable ones, too), say what arrays and objects hold, lower maxLength and maxItems"
)
_PARTS = re.compile(
    r"\\(?P<escape>.)|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\}|\((?:\?P?[:=!<])?|.",
    re.DOTALL,
)


def as_served(grammar: Grammar) -> dict[str, Any]:
    """The parameter `grammar` of a request."""
    if grammar.regex is not None:
        return {"type": "regex", "value": grammar.regex}
    return {"type": "json", "value": map_schemas(grammar.schema, _schema_as_served)}


def _schema_as_served(inner: dict[str, Any]) -> dict[str, Any]:
    """A schema in words that the server's grammars (outlines-core) know; it ignores other keywords, but no formats."""
    for keyword in ("formatMinimum", "formatMaximum", "propertyNames"):
        inner.pop(keyword, None)
    pattern, members = inner.get("pattern"), inner.get("allOf", ())
    if isinstance(pattern, str) and all(isinstance(part, dict) and part.keys() == {"pattern"} for part in members):
        # Patterns are not intersected there, but put one after the other.
        inner.pop("allOf", None)
    name = inner.get("format")
    if name not in FORMATS or name in PATTERNS or isinstance(pattern, str):
        inner.pop("format", None)
    if isinstance(pattern, str):
        if pattern.startswith("^") and not pattern.endswith("$"):
            # A pattern is taken for the whole string there, without its anchors where it has both.
            inner["pattern"] = rf"^(?:{pattern[1:]}){_REST}$"
    elif name in PATTERNS:
        inner["pattern"] = _FORMAT_PATTERNS[name]
    return inner


def check_grammar(grammar: Grammar) -> None:
    """Refuse a grammar that TGI cannot hold, or that would hold up or end the server.

    Raises:
        InvalidParameterError: It is one.
    """
    if grammar.regex is not None:
        what = "The regular expression"
        _refuse_syntax(grammar.regex, what)
        extent = _of_regex(grammar.regex)
    else:
        what = "The JSON schema"
        schema = as_served(grammar)["value"]
        if (name := recursive_definition(schema)) is not None:
            msg = (
                f"The JSON schema is recursive ({name} holds itself), and TGI's grammars cannot hold that: the answers "
                f"would not fit. Say how deep it may be, one definition for each level, or use a LocalBackend."
            )
            raise InvalidParameterError(msg)
        if "properties" not in schema:
            msg = (
                "grammar cannot be honoured by a TGI server (TGI takes a schema only of an object, with 'properties'). "
                "Leave it out, or use a LocalBackend."
            )
            raise InvalidParameterError(msg)
        extent = _SchemaExtent(schema).of(schema)
    if extent.depth > MAX_DEPTH:
        msg = (
            f"{what} has {extent.depth} groups within each other, and more than {MAX_DEPTH} may end a TGI server. Nest "
            f"it less, or use a LocalBackend."
        )
        raise InvalidParameterError(msg)
    if extent.size > MAX_SIZE:
        less = "Repeat less" if grammar.regex is not None else _LESS
        msg = (
            f"{what} is too large for a TGI server: as a table of states it has a size of some {extent.size}, at most "
            f"{MAX_SIZE}, and all requests of the server would wait for minutes while it is made. {less}, or use a "
            f"LocalBackend."
        )
        raise InvalidParameterError(msg)


def _refuse_syntax(regex: str, what: str) -> None:
    """Refuse what the server would: each refusal takes with it the requests that it begins together with."""
    try:
        re.compile(regex)
    except RecursionError:
        # Told by its depth.
        return
    except (re.error, OverflowError) as error:
        msg = f"{what} is not valid: {error}. Correct it."
        raise InvalidParameterError(msg) from None
    for part in _PARTS.finditer(regex):
        unknown = {"^": "the anchor ^", "$": "the anchor $", "(?<": "lookbehind"}.get(part[0])
        if part["escape"] is not None and part["escape"] in _UNKNOWN_ESCAPES:
            unknown = f"the escape {part[0]}"
        if unknown is not None:
            msg = (
                f"{what} has {unknown}, which TGI's grammars do not know. Write it without (all of the text has to "
                f"match it, so that it needs no anchors), or use a LocalBackend."
            )
            raise InvalidParameterError(msg)


def _of_regex(regex: str) -> _Extent:
    sizes, last, deepest = [0], 0, 0
    for part in _PARTS.finditer(regex):
        text = part[0]
        if text.startswith("("):
            sizes.append(0)
            deepest = max(deepest, len(sizes) - 1)
            continue
        if text == ")":
            last = sizes.pop() if len(sizes) > 1 else 0
        elif part["comma"] is not None:
            # The last part counts once already.
            last *= max(int((part["high"] or part["low"] or "1")[:9]) - 1, 0)
        elif text in ("*", "+", "?", "|"):
            continue
        else:
            is_class = text in (".", r"\w", r"\d", r"\s", r"\W", r"\D", r"\S") or text.startswith("[")
            last = _CLASS_SIZE if is_class else 1
        sizes[-1] += last
    return _Extent(sum(sizes), deepest)


class _SchemaExtent:
    """The extent of what outlines-core makes of a schema without recursion."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[int, _Extent] = {}

    def of(self, schema: Any) -> _Extent:
        """Of one of the schemas in it."""
        if not isinstance(schema, dict):
            return _ANY
        if id(schema) not in self._known:
            self._known[id(schema)] = self._of(schema)
        return self._known[id(schema)]

    def _of(self, schema: dict[str, Any]) -> _Extent:
        if "$ref" in schema:
            target = resolved(self._root, schema)
            return _ANY if target is schema else self.of(target)
        for word in ("enum", "const"):
            if word in schema:
                return _Extent(len(json.dumps(schema[word])), 1)
        for word in ("allOf", "anyOf", "oneOf"):
            if isinstance(members := schema.get(word), list):
                return _Extent.around(map(self.of, members), depth=2)
        kind = schema.get("type")
        if "properties" in schema or kind == "object":
            return self._of_object(schema)
        if kind == "array":
            if not isinstance(schema.get("items"), dict):
                return _ARRAY_OR_OBJECT
            items = self.of(schema.get("items"))
            # The first of them is written apart.
            return _Extent.around(
                [items], times=max(_number(schema, "maxItems"), _number(schema, "minItems"), 2), depth=3
            )
        if kind == "string":
            if isinstance(pattern := schema.get("pattern"), str):
                if pattern in _FORMAT_PATTERNS.values():
                    size, depth = _of_regex(pattern)
                    return _Extent(min(size, _FORMAT_SIZE), depth)
                # Taken for the whole string, without its anchors where it has both.
                is_anchored = pattern.startswith("^") and pattern.endswith("$")
                pattern = pattern[1:-1] if is_anchored else pattern
                _refuse_syntax(pattern, "A pattern of the JSON schema")
                return _of_regex(pattern)
            length = max(_number(schema, "maxLength"), _number(schema, "minLength"), 2)
            return _Extent(_CLASS_SIZE * length, 1)
        return _ANY if kind is None else _Extent(_VALUE_SIZE, 2)

    def _of_object(self, schema: dict[str, Any]) -> _Extent:
        properties = schema.get("properties") or {}
        if not properties and not isinstance(schema.get("additionalProperties"), dict):
            return _ARRAY_OR_OBJECT
        if not properties:
            return _Extent.around([self.of(schema.get("additionalProperties"))], times=2, depth=2)
        names = sum(len(name) + _VALUE_SIZE for name in properties)
        inner = _Extent.around(map(self.of, properties.values()), size=names, depth=2)
        # Where none is required, an alternative begins with each of them, and states stand for sets of alternatives.
        return (
            inner if schema.get("required") else _Extent.around([inner], times=2 ** min(len(properties), 20) // 4 + 1)
        )


def _number(schema: Mapping[str, Any], keyword: str) -> int:
    value = schema.get(keyword)
    return int(value) if isinstance(value, (int, float)) else 0
