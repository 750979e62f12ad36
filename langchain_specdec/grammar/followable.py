"""JSON schemas as the grammar library follows them: what it lacks is said in its words, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date
from itertools import permutations
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.formats import PATTERNS, UNHELD, dates_between
from langchain_specdec.grammar.json_schema import FORMATS, is_never, map_schemas, resolved, visit_schemas

# Arrays of so many known items without a repetition are listed one by one.
_MAX_UNIQUE = 5
# The largest number below 2**63 that a float can be.
_MAX_INT = 2**63 - 1024
# What the keywords that are read here have to be; llguidance checks the others.
_KINDS: tuple[tuple[tuple[str, ...], type | tuple[type, ...], str], ...] = (
    (("allOf", "anyOf", "oneOf", "required", "enum"), list, "a list"),
    (("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"), int, "a count"),
    (("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (int, float), "a number"),
    (("properties", "patternProperties"), dict, "an object"),
)
# What decides about names of properties, beside their type.
_OF_NAMES = frozenset(
    {"enum", "const", "pattern", "minLength", "maxLength", "format", "allOf", "anyOf", "oneOf", "not"}
)
# A schema that no value fits, in words that are known.
_NEVER: dict[str, Any] = {"enum": []}
# Bounds, those that are excluded, and where the numbers lie that they allow.
_BOUNDS = (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1))


def followable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that llguidance can follow, and whose every value fits this one.

    A few values that fit are lost: see `docs/chat.md`.

    Raises:
        InvalidParameterError: A part of it cannot be held. llguidance itself refuses others.
    """
    root: dict[str, Any] = json.loads(json.dumps(schema))

    def change(inner: dict[str, Any]) -> dict[str, Any]:
        if is_never(inner):
            return dict(_NEVER)
        _write_format(inner)
        _write_names(root, inner)
        _write_unique_items(root, inner)
        _check_property_count(inner)
        if inner.get("type") == "integer":
            _write_bounds(inner)
        return inner

    visit_schemas(root, _check_kinds)
    visit_schemas(root, lambda inner: _require_tags(root, inner))
    changed: dict[str, Any] = map_schemas(root, change)
    return changed


def _refusal(reason: str) -> InvalidParameterError:
    return InvalidParameterError(f"The JSON schema cannot be followed: {reason}")


def _check_kinds(inner: dict[str, Any]) -> None:
    for keywords, kind, name in _KINDS:
        for keyword in inner.keys() & set(keywords):
            # Older drafts had booleans, as for exclusiveMinimum, and a boolean is an int.
            if not isinstance(inner[keyword], kind) or isinstance(inner[keyword], bool):
                raise _refusal(f"{keyword} has to be {name}, got {str(inner[keyword])[:80]!r}.")
    for name in inner.get("required", ()):
        if not isinstance(name, str):
            raise _refusal(f"required has to be a list of names, got {str(name)[:80]!r} in it.")


def _write_format(inner: dict[str, Any]) -> None:
    """A format as a pattern; one that means nothing in JSON Schema is left out."""
    name = inner.get("format")
    if inner.get("contentMediaType") == "application/json":
        raise _refusal("JSON within a string (contentMediaType) has no form. Give the schema of the value itself.")
    if not isinstance(name, str):
        return
    if name in UNHELD:
        raise _refusal(f"no grammar sees {UNHELD[name]} (format {name!r}). Use a plain path.")
    if name in PATTERNS:
        del inner["format"]
        _match(inner, f"^(?:{PATTERNS[name]})$")
    elif name not in FORMATS:
        del inner["format"]
    first, last = inner.pop("formatMinimum", None), inner.pop("formatMaximum", None)
    if name == "date" and (first or last):
        try:
            low, high = date.fromisoformat(first or "0001-01-01"), date.fromisoformat(last or "9999-12-31")
        except (TypeError, ValueError) as error:
            raise _refusal(f"{first!r} or {last!r} is no date.") from error
        if low > high:
            raise _refusal(f"no date lies between {low} and {high}.")
        _match(inner, f"^{dates_between(low, high)}$")


def _match(inner: dict[str, Any], pattern: str) -> None:
    if "pattern" in inner:
        inner["allOf"] = [*inner.get("allOf", ()), {"type": "string", "pattern": pattern}]
    else:
        inner["pattern"] = pattern


def _write_names(root: dict[str, Any], inner: dict[str, Any]) -> None:
    """Names of properties that are known, or follow a pattern, as such properties."""
    names = inner.get("propertyNames")
    if not isinstance(names, dict) or inner.keys() & {"properties", "patternProperties"}:
        return
    names = resolved(root, names)
    values = inner.get("additionalProperties", True)
    known = _known_values(names)
    said = names.keys() & _OF_NAMES
    if known is not None and (said <= {"enum"} or said == {"const"}):
        inner["properties"] = dict.fromkeys((name for name in known if isinstance(name, str)), values)
    elif said == {"pattern"} and isinstance(names["pattern"], str):
        inner["patternProperties"] = {names["pattern"]: values}
    elif said and said <= {"minLength", "maxLength"}:
        most = names.get("maxLength", "")
        inner["patternProperties"] = {rf"^[\s\S]{{{names.get('minLength', 0)},{most}}}$": values}
    else:
        # llguidance names what it does not know.
        return
    inner["type"] = "object"
    inner["additionalProperties"] = False
    del inner["propertyNames"]


def _known_values(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists, each once; None where it lists none."""
    if isinstance(schema.get("enum"), list):
        values = schema["enum"]
    elif "const" in schema:
        values = [schema["const"]]
    elif schema.get("type") == "boolean":
        values = [True, False]
    else:
        return None
    different: dict[str, Any] = {}
    for value in values:
        different.setdefault(_as_equal(value), value)
    return list(different.values())


def _as_equal(value: Any) -> str:
    """A text that is the same for values that JSON Schema takes for equal, as 1 and 1.0."""

    def number(digits: str) -> float:
        return int(float(digits)) if float(digits).is_integer() else float(digits)

    return json.dumps(json.loads(json.dumps(value), parse_float=number), sort_keys=True)


def _write_unique_items(root: dict[str, Any], inner: dict[str, Any]) -> None:
    """Items that may not repeat, one by one where they are few and known."""
    if not inner.get("uniqueItems"):
        inner.pop("uniqueItems", None)
        return
    least, most = inner.get("minItems", 0), inner.get("maxItems", math.inf)
    if most <= 1:
        del inner["uniqueItems"]
        return
    items = inner.get("items")
    known = _known_values(resolved(root, items)) if isinstance(items, dict) else None
    if known is None or len(known) > _MAX_UNIQUE or "prefixItems" in inner:
        raise _refusal(
            f"uniqueItems can be held for at most {_MAX_UNIQUE} known values, as of an enum. Leave it out: use a list, "
            f"or a set in a Pydantic class without min_length, which takes repeated items."
        )
    counts = range(least, int(min(most, len(known))) + 1)
    arrays = [list(some) for count in counts for some in permutations(known, count)]
    # What else is said of the array and its items holds, too.
    inner["allOf"] = [*inner.get("allOf", ()), {"enum": arrays}]
    for keyword in ("uniqueItems", "minItems", "maxItems"):
        inner.pop(keyword, None)


def _check_property_count(inner: dict[str, Any]) -> None:
    """A name can be written twice where names are free, and would count twice."""
    least, required = inner.get("minProperties"), inner.get("required", ())
    has_free_names = inner.get("additionalProperties", True) is not False or inner.get("patternProperties")
    if isinstance(least, int) and has_free_names and least - len(required) > 1:
        raise _refusal(
            f"minProperties {least} cannot be held where names are free, because one could be written twice. Name the "
            f"properties, or ask for at most one beside the required ones."
        )


def _write_bounds(inner: dict[str, Any]) -> None:
    """Bounds of integers as integers that floats hold, and no wider than they were."""
    for included, excluded, inward in _BOUNDS:
        given = [inner[keyword] for keyword in (included, excluded) if keyword in inner]
        # What is wrong or too large is for llguidance to refuse.
        if not given or any(isinstance(bound, bool) or not isinstance(bound, (int, float)) for bound in given):
            continue
        bound = -_MAX_INT
        if included in inner:
            bound = max(bound, math.ceil(inward * inner[included]))
        if excluded in inner:
            bound = max(bound, math.floor(inward * inner.pop(excluded)) + 1)
        inner[included] = inward * (bound if bound > _MAX_INT else _float_from(bound))


def _float_from(bound: int) -> int:
    """The least integer that a float holds, and that is not less than this one."""
    nearest = float(bound)
    return int(nearest) if int(nearest) >= bound else int(math.nextafter(nearest, math.inf))


def _require_tags(root: dict[str, Any], inner: dict[str, Any]) -> None:
    """The property that tells the members of a union apart, in each of them."""
    discriminator = inner.get("discriminator")
    if not isinstance(discriminator, dict) or "propertyName" not in discriminator:
        return
    name = discriminator["propertyName"]
    if not isinstance(name, str):
        raise _refusal(f"propertyName of a discriminator has to be a name, got {str(name)[:80]!r}.")
    for keyword in ("oneOf", "anyOf"):
        for member in inner.get(keyword, ()):
            target = resolved(root, member) if isinstance(member, dict) else {}
            required = target.get("required", [])
            if name in target.get("properties", {}) and name not in required:
                target["required"] = [*required, name]
