"""Changes to JSON schemas, made at every schema within them and never in the data that they hold."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import unquote

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import check_unicode

# Keywords that hold schemas by name, and those that hold one or several.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
_SCHEMAS = frozenset(
    {"items", "additionalItems", "unevaluatedItems", "contains", "additionalProperties", "unevaluatedProperties"}
    | {"propertyNames", "not", "if", "then", "else", "allOf", "anyOf", "oneOf", "prefixItems", "contentSchema"}
)
_DATA = frozenset({"const", "enum", "default", "examples"})
# Keywords of schemas that speak of objects, or may.
_OF_OBJECTS = frozenset({"$ref", "properties", "required", "anyOf", "oneOf", "allOf", "additionalProperties"})
FORMATS = frozenset(
    {
        *("date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
        *("uri", "uri-reference", "iri", "iri-reference", "uri-template", "uuid", "json-pointer"),
        *("relative-json-pointer", "regex"),
    }
)
"""Of draft 2020-12, section 7.3 of the validation vocabulary. Any other has no meaning there."""
# The JSON reader under the grammars goes 128 deep.
_MAX_DEPTH = 100
_MAX_PARTS = 100_000


def checked_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a schema, in which nobody can change anything afterwards.

    Raises:
        InvalidParameterError: It is no JSON, or has too many levels.
    """
    level: list[Any] = [schema]
    for depth in itertools.count():
        inner = (part for value in level for part in (value.values() if isinstance(value, Mapping) else value))
        level = list(itertools.islice((v for v in inner if isinstance(v, (Mapping, list, tuple))), _MAX_PARTS + 1))
        if not level:
            break
        if depth >= _MAX_DEPTH or len(level) > _MAX_PARTS:
            msg = (
                f"The JSON schema is nested more than {_MAX_DEPTH} levels deep, holds itself, or has more than "
                f"{_MAX_PARTS} parts. Put parts of it into $defs, and refer to them by $ref."
            )
            raise InvalidParameterError(msg)
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        msg = f"The schema is no JSON: {error}. It may hold dictionaries, lists, text, numbers, booleans and None."
        raise InvalidParameterError(msg) from error
    check_unicode("The JSON schema", text)
    copy: dict[str, Any] = json.loads(text)
    return copy


def resolved(root: Mapping[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference to a place in `root` stands for; itself where it is none, or leads nowhere."""
    for _ in range(_MAX_DEPTH):
        place = _place(root, schema)
        if place is None:
            return schema
        schema = place
    return schema


def _place(root: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the reference of a schema refers to in `root`; None where it is no reference, or leads nowhere."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
        return None
    return referenced(root, reference)


def referenced(root: Mapping[str, Any], reference: str) -> dict[str, Any] | None:
    """The schema at a place (`#/...`) of another; None where there is none."""
    place: Any = root
    for key in _steps(reference) if reference != "#" else ():
        if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        else:
            place = place.get(key) if isinstance(place, Mapping) else None
    return place if isinstance(place, dict) else None


def recursive_definition(root: Mapping[str, Any]) -> str | None:
    """The name of a definition that holds itself, by references to places in the schema; None where none does.

    Definitions that nothing refers to do not count.
    """
    steps = _steps_of_references(root)
    open_ids: set[int] = set()
    done_ids: set[int] = set()
    # No recursion: definitions may lead to one another any number of times.
    to_do: list[tuple[Mapping[str, Any], bool]] = [(root, False)]
    while to_do:
        schema, is_left = to_do.pop()
        if is_left:
            open_ids.discard(id(schema))
            done_ids.add(id(schema))
            continue
        if id(schema) in done_ids:
            continue
        open_ids.add(id(schema))
        to_do.append((schema, True))
        inner: list[Any] = []

        def note(part: Any, _: str, inner: list[Any] = inner) -> Any:
            inner.append(part)
            return part

        target = _place(root, schema)
        if target is not None:
            if id(target) in open_ids:
                return _steps(schema["$ref"])[-1] or str(root.get("title", "the whole of it"))
            inner.append(target)
        inner_schemas({k: v for k, v in schema.items() if k not in ("$defs", "definitions")}, note, steps)
        to_do += [(part, False) for part in inner if isinstance(part, Mapping)]
    return None


def map_references(schema: Any, change: Callable[[str], str]) -> Any:
    """A copy of a schema in which each reference to a place in it (`#...`) is changed."""

    def changed(reference: Any) -> Any:
        return change(reference) if isinstance(reference, str) and reference.startswith("#") else reference

    def look(inner: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in inner:
            inner["$ref"] = changed(inner["$ref"])
        discriminator = inner.get("discriminator")
        if isinstance(discriminator, Mapping) and isinstance(mapping := discriminator.get("mapping"), Mapping):
            mapping = {value: changed(reference) for value, reference in mapping.items()}
            inner["discriminator"] = {**discriminator, "mapping": mapping}
        return inner

    return map_schemas(schema, look)


def references_of(schema: Any) -> list[str]:
    """All references to places in a schema."""
    found: list[str] = []

    def note(reference: str) -> str:
        found.append(reference)
        return reference

    map_references(schema, note)
    return found


def map_schemas(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy of a schema in which each schema is changed, the inner ones first.

    Args:
        schema: A JSON schema. What is none, such as True, stays as it is.
        change: Takes a schema that it may change, and returns what stands in its place.
    """
    steps = _steps_of_references(schema)

    def changed(inner: Any, _: str = "") -> Any:
        return change(inner_schemas(inner, changed, steps)) if isinstance(inner, Mapping) else inner

    return changed(schema)


def visit_schemas(schema: Any, act: Callable[[dict[str, Any]], None]) -> None:
    """Do something with each schema within one, itself first: not with copies, so that it can be changed in place."""
    steps = _steps_of_references(schema)

    def visited(inner: Any, _: str = "") -> Any:
        if isinstance(inner, dict):
            act(inner)
            inner_schemas(inner, visited, steps)
        return inner

    visited(schema)


def inner_schemas(
    schema: Mapping[str, Any], change: Callable[[Any, str], Any], steps: Collection[str] = ()
) -> dict[str, Any]:
    """A copy of a schema in which those right below it are changed.

    Args:
        schema: A JSON schema.
        change: Takes a schema, or what stands in its place, and the way to it, as `properties/name`.
        steps: Keywords beside the known ones that references lead through.
    """
    changed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            changed[key] = {name: change(inner, f"{key}/{name}") for name, inner in value.items()}
        elif key not in _SCHEMAS and (key in _DATA or key not in steps):
            changed[key] = value
        elif isinstance(value, (list, tuple)):
            changed[key] = [change(inner, f"{key}/{index}") for index, inner in enumerate(value)]
        else:
            changed[key] = change(value, key)
    return changed


def is_never(schema: Any) -> bool:
    """Whether a schema is written as one that no value fits."""
    return schema is False or (isinstance(schema, Mapping) and (schema.get("not") is True or schema.get("not") == {}))


def _steps_of_references(schema: Any) -> set[str]:
    """Keywords that references lead through. Others that nobody knows hold data, such as an `example`."""
    steps: set[str] = set()
    parts = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            if isinstance(reference := part.get("$ref"), str) and reference.startswith("#/"):
                steps.update(_steps(reference))
            parts += part.values()
        elif isinstance(part, (list, tuple)):
            parts += part
    return steps


def _steps(reference: str) -> list[str]:
    """The keys on the way to what `#/...` refers to."""
    return [unquote(step).replace("~1", "/").replace("~0", "~") for step in reference[2:].split("/")]


def closed(schema: Any) -> Any:
    """The schema with no properties but those that it names, wherever it says nothing of others.

    What fits it fits the schema as it was. Schemas in which `allOf` puts objects together stay as they are, because
    there the others may name more.
    """
    joins_objects = False

    def look(inner: dict[str, Any]) -> None:
        nonlocal joins_objects
        if isinstance(members := inner.get("allOf"), list):
            objects = [inner, *members] if "properties" in inner or "$ref" in inner else members
            speaking = [part for part in objects if isinstance(part, Mapping) and _OF_OBJECTS & part.keys()]
            joins_objects = joins_objects or len(speaking) > 1
        elif "$ref" in inner and "properties" in inner:
            joins_objects = True

    def change(inner: dict[str, Any]) -> dict[str, Any]:
        is_open = not {"additionalProperties", "unevaluatedProperties"} & inner.keys()
        if is_open and (isinstance(inner.get("properties"), dict) or isinstance(inner.get("patternProperties"), dict)):
            inner["additionalProperties"] = False
        return inner

    visit_schemas(schema, look)
    return schema if joins_objects else map_schemas(schema, change)
