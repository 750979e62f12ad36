"""JSON schemas without the parts that a grammar cannot hold, for values that somebody else checks too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.json_schema import inner_schemas, map_references, map_schemas, referenced, references_of

# Keywords that others say more about, so they are taken back first.
_FIRST = ("$ref", "type", "enum", "const", "properties", "items", "prefixItems", "anyOf", "oneOf", "allOf")
_ANYTHING: dict[str, Any] = {}


@dataclass(frozen=True)
class Relaxed:
    """A schema that a grammar holds, and what had to be left out for it.

    Attributes:
        schema: The schema. Its definitions are in `$defs`.
        left_out: The parts, each as a keyword and where it stands, as `uniqueItems in properties/names`.
    """

    schema: dict[str, Any]
    left_out: tuple[str, ...]

    @property
    def num_lost(self) -> int:
        """How many schemas that are referred to are not held in one place."""
        return sum(part.startswith("$ref") for part in self.left_out)


def relaxed(schema: Mapping[str, Any], check: Callable[[dict[str, Any]], None]) -> Relaxed:
    """The schema with everything that can be held.

    Args:
        schema: A JSON schema of an object.
        check: Raises an `InvalidParameterError` where a grammar cannot hold the schema of an object.

    Returns:
        A schema that passes the check as the property of an object; any object, if nothing else is left.
    """
    attempts = (_Relaxation(schema, check, keeps_recursion=keeps).result() for keeps in (True, False))
    found = [attempt for attempt in attempts if attempt is not None]
    # Where recursion cannot be held, one level of it is more than nothing in its place.
    return min(found, key=lambda attempt: attempt.num_lost, default=Relaxed({"type": "object"}, ("all of it",)))


def _alone(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without what only others refer to, or refer to it by."""
    return {key: value for key, value in schema.items() if key not in ("$defs", "definitions", "$id", "$schema")}


class _Relaxation:
    """One attempt. What is referred to becomes a definition of its own, and is relaxed before what refers to it."""

    def __init__(
        self, schema: Mapping[str, Any], check: Callable[[dict[str, Any]], None], *, keeps_recursion: bool
    ) -> None:
        self._check = check
        self._keeps_recursion = keeps_recursion
        found = {reference: referenced(schema, reference) for reference in references_of(schema)}
        places = {reference: place for reference, place in found.items() if place is not None}
        self._names = {reference: f"d{index}" for index, reference in enumerate(places)}
        self._places = {self._names[reference]: _alone(place) for reference, place in places.items()}
        self._where = {name: reference.lstrip("#/") for reference, name in self._names.items()}
        self._root = _alone(schema)
        # Those in progress are anything: what refers to them is not to blame for what they hold.
        self._definitions: dict[str, dict[str, Any]] = {}
        self._left_out: dict[str, None] = {}

    def result(self) -> Relaxed | None:
        """The schema; None where its parts can be held, and the whole cannot."""
        root = self._prepared(self._root, "")
        # Whatever is left out, it stays an object.
        schema = {"type": "object", **self._relaxed(root, "")}
        whole = {**schema, "$defs": self._definitions} if self._definitions else schema
        return Relaxed(whole, tuple(self._left_out)) if self._is_held(schema) else None

    def _prepared(self, schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The schema with references to definitions, which are relaxed."""
        renamed: dict[str, Any] = map_references(schema, self._reference)
        used = [reference.removeprefix("#/$defs/") for reference in references_of(renamed)]
        open_names = {name for name in used if name in self._definitions and self._definitions[name] is _ANYTHING}
        for name in dict.fromkeys(used):
            if name in self._places and name not in self._definitions:
                self._definitions[name] = _ANYTHING
                where = self._where[name]
                self._definitions[name] = self._relaxed(self._prepared(self._places[name], where), where)
        if open_names and not self._keeps_recursion:
            renamed = map_schemas(renamed, lambda inner: self._cut(inner, open_names, place))
        return renamed

    def _reference(self, reference: str) -> str:
        return f"#/$defs/{self._names[reference]}" if reference in self._names else reference

    def _cut(self, inner: dict[str, Any], names: set[str], place: str) -> dict[str, Any]:
        reference = inner.get("$ref")
        if isinstance(reference, str) and reference.removeprefix("#/$defs/") in names:
            del inner["$ref"]
            self._note("recursion", place)
        return inner

    def _relaxed(self, schema: dict[str, Any], place: str) -> dict[str, Any]:
        if self._is_held(schema):
            return schema
        schema = inner_schemas(schema, lambda inner, step: self._relaxed_part(inner, f"{place}/{step}".lstrip("/")))
        if self._is_held(schema):
            return schema
        kept: dict[str, Any] = {}
        for keyword in sorted(schema, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST)):
            value = schema[keyword]
            if self._is_held({**kept, keyword: value}):
                kept[keyword] = value
                continue
            self._note(keyword, place)
            # What fits exactly one of several fits at least one.
            if keyword == "oneOf" and "anyOf" not in schema and self._is_held({**kept, "anyOf": value}):
                kept["anyOf"] = value
        return kept

    def _relaxed_part(self, inner: Any, place: str) -> Any:
        return self._relaxed(inner, place) if isinstance(inner, dict) else inner

    def _is_held(self, schema: dict[str, Any]) -> bool:
        # Not required, so that a part that no value fits is told where it is required.
        outer = {"type": "object", "properties": {"value": schema}, "$defs": self._definitions}
        try:
            self._check(outer)
        except InvalidParameterError:
            return False
        return True

    def _note(self, keyword: str, place: str) -> None:
        self._left_out[f"{keyword} in {place}" if place else keyword] = None
