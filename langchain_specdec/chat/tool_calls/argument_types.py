"""Arguments that are written as plain text: which values they stand for, and how a grammar holds them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_specdec.chat.tool_calls.python_values import read_python
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, ToolCall, carried, load_json
from langchain_specdec.grammar.call_parts import ANY_TEXT, InOrder, Json, Part, Raw, Text, either
from langchain_specdec.grammar.json_schema import map_references, references_of, resolved

_TYPES: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}
_WORDS = {"true": True, "false": False, "null": None, "none": None}
# What is said of strings in words that patterns of raw text hold, and what says nothing of values.
_HELD = frozenset({"type", "enum", "const", "pattern", "minLength", "maxLength"})
_SAYS_NOTHING = frozenset({"title", "description", "$comment", "default", "examples", "$defs", "definitions"})
_MAX_DEPTH = 20

Tell = Callable[[str], None]
"""Takes a part of a schema that is left out: its keyword, and where it stands."""


def ignore(part: str) -> None:
    """Tells nobody."""


def told_of(tell: Tell, name: str) -> Tell:
    """Tells of parts within an argument."""
    return lambda keyword: tell(f"{keyword} in properties/{name}")


class Argument(NamedTuple):
    """An argument that a tool takes.

    Attributes:
        name: Its name.
        schema: Of its value, which stands alone.
        is_needed: Whether each call has it.
    """

    name: str
    schema: dict[str, Any]
    is_needed: bool


def arguments_of(parameters: Mapping[str, Any], tell: Tell = ignore) -> list[Argument]:
    """The arguments that the schema of a tool names, in its order.

    Args:
        parameters: The schema.
        tell: Is told what else it says of them.
    """
    named = resolved(parameters, dict(parameters))
    given = named.get("properties")
    schemas: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    needed = [name for name in named.get("required") or () if isinstance(name, str)]
    for keyword in sorted(named.keys() & {"anyOf", "oneOf", "allOf", "minProperties"}):
        tell(keyword)
    schemas = {**schemas, **{name: {} for name in needed if name not in schemas}}
    return [Argument(name, alone(parameters, schema), name in needed) for name, schema in schemas.items()]


def typed_call(
    name: str, written: Sequence[tuple[str, str]], schemas: Mapping[str, Mapping[str, Any]], text: str
) -> ToolCall | BrokenToolCall:
    """A call whose arguments are plain text.

    Args:
        name: The tool's.
        written: Names and texts of the arguments.
        schemas: The schemas of all tools' arguments, by the names of the tools.
        text: All that was written of the call, its mark included.
    """
    try:
        return ToolCall(name, typed_arguments(written, schemas.get(name, {})))
    except ValueError as error:
        return BrokenToolCall(text, f"The arguments cannot be read: {error}.", name)


def typed_arguments(written: Sequence[tuple[str, str]], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call whose values are plain text.

    Args:
        written: Names and texts.
        parameters: The schema of the arguments.

    Raises:
        ValueError: One is there twice, or JSON cannot carry it onwards.
    """
    schemas = {argument.name: argument.schema for argument in arguments_of(parameters)}
    values: dict[str, Any] = {}
    for name, text in written:
        if name in values:
            msg = f"{name!r} is there twice"
            raise ValueError(msg)
        values[carried(name)] = typed(text, schemas.get(name))
    return values


def alone(root: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """A part of a schema as one of its own, with all that it refers to."""
    if not isinstance(schema, Mapping):
        return {} if schema is True else {"not": {}}
    if not references_of(schema):
        return dict(schema)
    with_definitions = {**schema, "$defs": root.get("$defs", {})}
    if all(reference.startswith("#/$defs/") for reference in references_of(with_definitions)):
        return with_definitions
    moved = map_references({**root}, lambda reference: f"#/$defs/root{reference[1:]}")
    changed: dict[str, Any] = map_references(schema, lambda reference: f"#/$defs/root{reference[1:]}")
    return {**changed, "$defs": {**changed.get("$defs", {}), "root": moved}}


def within(root: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """A schema within one that stands alone, with the definitions of that one."""
    inner = dict(schema) if isinstance(schema, Mapping) else {}
    return {**inner, "$defs": root["$defs"]} if "$defs" in root and "$defs" not in inner else inner


def types_of(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, depth: int = 0) -> set[str]:
    """The JSON types that a schema allows, as far as it tells; empty where it does not."""
    root = schema if root is None else root
    schema = resolved(root, dict(schema))
    given = schema.get("type")
    types = {given} if isinstance(given, str) else set(filter(lambda name: isinstance(name, str), given or ()))
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    if not types:
        types |= {"null" if value is None else _TYPES.get(type(value), "object") for value in values}
    if not types and depth < _MAX_DEPTH:
        for member in _members(schema):
            types |= types_of(member, root, depth + 1)
    if schema.get("nullable") is True:
        types.add("null")
    return types


def _members(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for keyword in ("anyOf", "oneOf", "allOf"):
        members = schema.get(keyword)
        yield from (member for member in members if isinstance(member, Mapping)) if isinstance(members, list) else ()


def typed(text: str, schema: Mapping[str, Any] | None) -> Any:
    """The value that a plain text stands for: another than the text where the schema allows that, and it is one.

    Args:
        text: The text.
        schema: Of the value; None where nobody knows it, and it is the text.

    Raises:
        ValueError: JSON cannot carry it onwards.
    """
    types = set() if schema is None else types_of(schema)
    if schema is None or types == {"string"}:
        return carried(text)
    written = text.strip()
    value: Any = text
    if written.lower() in _WORDS:
        value = _WORDS[written.lower()]
    else:
        for read in (load_json, read_python):
            with contextlib.suppress(ValueError):
                value = read(written)
                break
    if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        value = int(value)
    kind = "null" if value is None else _TYPES.get(type(value), "string")
    # Every integer is a number.
    is_meant = not types or kind in types or (kind == "integer" and "number" in types)
    return carried(value if is_meant and kind != "string" else text)


def raw_part(schema: Mapping[str, Any], end: str, mark: str, tell: Tell) -> Part:
    """An argument as plain text, and as JSON where it is no text.

    Args:
        schema: Its schema, which stands alone.
        end: What stands behind it.
        mark: What no text of it holds: `end`, or the last part of that.
        tell: Is told what of the schema is left out.
    """
    types = types_of(schema)
    if types and "string" not in types:
        return InOrder((Json(schema), Text(end)))
    said = {key: value for key, value in resolved(schema, dict(schema)).items() if key not in _SAYS_NOTHING}
    members = next((said[keyword] for keyword in ("anyOf", "oneOf") if said.keys() == {keyword}), None)
    if members is not None:
        return either([raw_part(within(schema, member), end, mark, tell) for member in members])
    values = said["enum"] if isinstance(said.get("enum"), list) else [said["const"]] if "const" in said else None
    if values is not None:
        texts = [value for value in values if isinstance(value, str) and mark not in value]
        others = [value for value in values if not isinstance(value, str)]
        written = [Text(value + end) for value in texts]
        return either([*written, InOrder((Json({"enum": others}), Text(end)))] if others else written)
    for keyword in sorted(said.keys() - _HELD):
        tell(keyword)
    return Raw(end, mark, _patterns(said, tell))


def _patterns(said: Mapping[str, Any], tell: Tell) -> tuple[str, ...]:
    """The patterns that all texts match of which this is said."""
    patterns = []
    if "minLength" in said or "maxLength" in said:
        patterns.append(f"(?s:.{{{said.get('minLength', 0)},{said.get('maxLength', '')}}})")
    if isinstance(pattern := said.get("pattern"), str):
        whole = _whole(pattern)
        if whole is None:
            tell("pattern")
        else:
            patterns.append(whole)
    return tuple(patterns) or (ANY_TEXT,)


def _whole(pattern: str) -> str | None:
    """A pattern that is looked for in a text as one of the whole text; None where it has anchors elsewhere."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[begins : len(pattern) - ends]
    if any(anchor in inner.replace("[^", "[").replace("\\^", "").replace("\\$", "") for anchor in "^$"):
        return None
    inner = inner.replace("\\/", "/").replace("/", r"\/")
    return f"{'' if begins else ANY_TEXT}(?:{inner}){'' if ends else ANY_TEXT}"
