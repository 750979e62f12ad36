"""Changes to JSON schemas, made at every schema within them and never in the data that they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Keywords that hold schemas by name, and keywords that hold data.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"const", "enum", "default", "examples"})
# Of draft 2020-12, section 7.3 of the validation vocabulary. Any other has no meaning there.
_FORMATS = frozenset(
    {
        *("date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
        *("uri", "uri-reference", "iri", "iri-reference", "uri-template", "uuid", "json-pointer"),
        *("relative-json-pointer", "regex"),
    }
)


def map_schemas(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy of a schema in which each schema is changed, the inner ones first.

    Args:
        schema: A JSON schema. What is none, such as True, stays as it is.
        change: Takes a schema that it may change, and returns what stands in its place.
    """
    if not isinstance(schema, Mapping):
        return schema
    changed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _DATA:
            changed[key] = value
        elif key in _NAMED and isinstance(value, Mapping):
            changed[key] = {name: map_schemas(inner, change) for name, inner in value.items()}
        elif isinstance(value, (list, tuple)):
            changed[key] = [map_schemas(inner, change) for inner in value]
        else:
            changed[key] = map_schemas(value, change)
    return change(changed)


def without_unknown_formats(schema: Any) -> Any:
    """The schema without formats that the specification does not define, such as Pydantic's `"path"`."""

    def change(inner: dict[str, Any]) -> dict[str, Any]:
        if isinstance(inner.get("format"), str) and inner["format"] not in _FORMATS:
            del inner["format"]
        return inner

    return map_schemas(schema, change)


def closed(schema: Any) -> Any:
    """The schema with no properties but those that it names, wherever it says nothing of others.

    What fits it fits the schema as it was. Schemas that are put together by `allOf` stay as they are, because there
    the others may name more.
    """
    has_all_of = False

    def look(inner: dict[str, Any]) -> dict[str, Any]:
        nonlocal has_all_of
        has_all_of = has_all_of or "allOf" in inner
        return inner

    def change(inner: dict[str, Any]) -> dict[str, Any]:
        is_open = not {"additionalProperties", "patternProperties", "unevaluatedProperties"} & set(inner)
        if isinstance(inner.get("properties"), dict) and is_open:
            inner["additionalProperties"] = False
        return inner

    map_schemas(schema, look)
    return schema if has_all_of else map_schemas(schema, change)
