"""The parameter `grammar` as TGI's router reads it, with its words: router/src/lib.rs and validation.rs of TGI 3.3.

TGI with speculation constrains all positions of a step by the state before it, so its text breaks the grammar most of
the time; the engine behind the stand-in keeps to it, unless the fault `break-grammar` asks for that. Bounds of numbers
are left out, as they are by TGI, speculation or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

_KINDS = ("json", "json_object", "regex", "json_schema")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


def deserialization_problem(grammar: Any) -> str | None:
    """What the web framework finds wrong with the shape of a grammar; None if it is one."""
    if not isinstance(grammar, dict) or "type" not in grammar:
        return "missing field `type`"
    kind, value = grammar["type"], grammar.get("value")
    if kind not in _KINDS:
        return f"unknown variant `{kind}`, expected one of `json`, `regex`, `json_schema`"
    if "value" not in grammar:
        return "missing field `value`"
    if kind == "regex" and not isinstance(value, str):
        return "invalid type: expected a string"
    if kind == "json_schema":
        if not isinstance(value, dict):
            return "invalid type: expected struct JsonSchemaConfig"
        if "schema" not in value:
            return "missing field `schema`"
        if not isinstance(value.get("name"), str | None):
            return "invalid type: expected a string"
    return None


def compile_grammar(grammar: Mapping[str, Any], make: Callable[..., Any]) -> Any:
    """The grammar of a request for the model.

    Args:
        grammar: Of a shape without `deserialization_problem`.
        make: Called with `schema=` or `regex=`; raises ValueError for what it does not know.

    Raises:
        UnknownGrammar: It is refused as none, in TGI's words.
        BrokenRegex: The model process fails over it.
    """
    kind, value = grammar["type"], grammar["value"]
    if kind == "regex":
        try:
            # The router passes it on as it is.
            return make(regex=value)
        except ValueError as error:
            raise BrokenRegex(str(error)) from error
    schema = value["schema"] if kind == "json_schema" else value
    if kind != "json_schema":
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise UnknownGrammar(f"grammar is not valid: {error}") from error
        elif not isinstance(schema, dict):
            raise UnknownGrammar("grammar is not supported")
    if problem := _schema_problem(schema):
        raise UnknownGrammar(f"grammar is not valid: {problem}")
    if not isinstance(schema, dict) or "properties" not in schema:
        raise UnknownGrammar("grammar is not valid: Grammar must have a 'properties' field")
    try:
        return make(schema=_without_bounds(schema))
    except ValueError as error:
        raise UnknownGrammar(f"cannot compile regex from schema: {error}") from error


def _without_bounds(schema: Any) -> Any:
    """The schema as outlines-core reads it, to which bounds of numbers are unknown words."""
    if isinstance(schema, list):
        return [_without_bounds(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_bounds(inner) for name, inner in value.items()}
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict)
        else _without_bounds(value)
        for key, value in schema.items()
        if key not in _BOUNDS or isinstance(value, dict)
    }


class UnknownGrammar(Exception):  # noqa: N818
    """TGI's router answers 422 with this text."""


class BrokenRegex(Exception):  # noqa: N818
    """TGI's shard fails with this text."""


def _schema_problem(schema: Any) -> str | None:
    """Why it is no JSON schema, as far as the metaschema of draft 2020-12 is needed here."""
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, dict):
        return f'{json.dumps(schema)} is not of types "boolean", "object"'
    kinds = schema.get("type", [])
    if not all(kind in _TYPES for kind in (kinds if isinstance(kinds, list) else [kinds])):
        return f"{json.dumps(kinds)} is not valid under any of the schemas listed in the 'anyOf' keyword"
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        return f'{json.dumps(properties)} is not of type "object"'
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        return f'{json.dumps(required)} is not of type "array"'
    inner = [*properties.values(), *([schema["items"]] if "items" in schema else [])]
    return next(filter(None, map(_schema_problem, inner)), None)
