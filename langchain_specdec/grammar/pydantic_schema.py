"""JSON schemas of Python types: what Pydantic checks and its own schemas leave out is said too, as far as it can be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta, timezone
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import is_typeddict

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.typed_dicts import TypedDicts

_NUMBER_KEYS = {"integer": r"^-?(?:0|[1-9]\d{0,17})$", "number": r"^-?(?:0|[1-9]\d{0,17})(?:\.\d{1,17})?$"}
_COMPLEX = r"^-?\d{1,15}(?:\.\d{1,15})?[+-]\d{1,15}(?:\.\d{1,15})?j$"
_MAX_DECIMAL = 1e15
# What Pydantic raises where a type has no schema, and Python where its bounds are beyond what it can count.
_CAUSES = (
    PydanticUserError, ArithmeticError, AttributeError, KeyError, NameError, RecursionError, TypeError, ValueError,
)  # fmt: skip
_FLAGS = {re.IGNORECASE: "i", re.DOTALL: "s", re.MULTILINE: "m", re.VERBOSE: "x"}


def schema_of_type(kind: Any) -> dict[str, Any]:
    """The JSON schema of what a type takes.

    Beside what JSON Schema defines it may hold `formatMinimum` and `formatMaximum` of dates, and formats of Pydantic.

    Args:
        kind: A Pydantic class, dataclass, `TypedDict`, or any type that Pydantic knows.

    Raises:
        InvalidParameterError: The type has parts that no schema tells.
    """
    name = getattr(kind, "__name__", str(kind))
    try:
        if is_typeddict(kind):
            kind = TypedDicts().model(kind)
        if isinstance(kind, type) and hasattr(kind, "model_json_schema"):
            _refuse_imports(TypeAdapter(kind).core_schema)
            schema: dict[str, Any] = kind.model_json_schema(schema_generator=_ClassSchema)
        elif isinstance(kind, type) and hasattr(kind, "__get_validators__") and hasattr(kind, "schema"):
            schema = kind.schema()  # a class of Pydantic 1
        else:
            adapter = TypeAdapter(kind)
            _refuse_imports(adapter.core_schema)
            schema = adapter.json_schema(schema_generator=_ClassSchema)
    except InvalidParameterError as error:
        msg = f"{name} has no JSON schema that can be followed: {error}"
        raise InvalidParameterError(msg) from error
    except _CAUSES as error:
        reason = " ".join(str(error).partition("For further information")[0].split())
        msg = f"{name} has no JSON schema: {reason or type(error).__name__}"
        raise InvalidParameterError(msg) from error
    return schema


def _refuse_imports(core_schema: Any) -> None:
    """Refuse names of things to import: no model's answer decides what is run."""
    parts = [core_schema]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            # Values of users may hold anything, themselves too.
            parts += (value for key, value in part.items() if key not in ("metadata", "default", "expected"))
        elif isinstance(part, (list, tuple)):
            parts += part
        elif callable(part) and getattr(part, "__name__", "") == "import_string":
            msg = "a name to import (ImportString) cannot be asked of a model, which would decide what code is run."
            raise InvalidParameterError(msg)


class _ValueSchema(GenerateJsonSchema):
    """Schemas of single values."""

    def str_schema(self, schema: Any) -> dict[str, Any]:
        """Text is measured when it has been stripped."""
        written = super().str_schema(schema)
        pattern = schema.get("pattern")
        if isinstance(pattern, re.Pattern):
            flags = "".join(letter for flag, letter in _FLAGS.items() if pattern.flags & flag)
            written["pattern"] = f"(?{flags}){pattern.pattern}" if flags else pattern.pattern
        if schema.get("strip_whitespace") and written.get("minLength"):
            stripped = r"^[^\s\x1c-\x1f](?:[\s\S]*[^\s\x1c-\x1f])?$"
            if "pattern" in written:
                written["allOf"] = [{"pattern": stripped}]
            else:
                written["pattern"] = stripped
        return written

    def bytes_schema(self, schema: Any) -> dict[str, Any]:
        """Lengths are counted in bytes."""
        written = super().bytes_schema(schema)
        return {**written, "pattern": r"^[ -~]*$"} if "maxLength" in written else written

    def decimal_schema(self, schema: Any) -> dict[str, Any]:
        """A number with as many digits as are allowed."""
        digits, places = schema.get("max_digits"), schema.get("decimal_places")
        bounds = {key: schema[key] for key in ("ge", "gt", "le", "lt") if schema.get(key) is not None}
        keywords = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
        number: dict[str, Any] = {"type": "number", **{keywords[key]: float(bound) for key, bound in bounds.items()}}
        if schema.get("multiple_of") is not None:
            if places is not None or digits is not None:
                msg = "a Decimal with multiple_of can have neither max_digits nor decimal_places."
                raise InvalidParameterError(msg)
            number["multipleOf"] = float(schema["multiple_of"])
        if places is None and digits is not None:
            if bounds:
                msg = "a Decimal with max_digits and bounds needs decimal_places, too."
                raise InvalidParameterError(msg)
            forms = [rf"(?:0|[1-9]\d{{0,{digits - p - 1}}})" + (rf"\.\d{{{p}}}" if p else "") for p in range(digits)]
            return {"type": "string", "pattern": f"^-?(?:{'|'.join(forms)})$"}
        if places is not None:
            if places == 0:
                number["type"] = "integer"
            else:
                number["multipleOf"] = float(f"1e-{places}")
        # A number without bounds could be written with an exponent, as large as no float is.
        largest = _MAX_DECIMAL
        if digits is not None:
            largest = min(largest, float(f"1e{digits - places}") - float(f"1e-{places}"))
        for less, keyword, limit in (("ge", "minimum", -largest), ("le", "maximum", largest)):
            inner = (min if less == "le" else max)(number.get(keyword, limit), limit)
            number[keyword] = inner
        return number

    def uuid_schema(self, schema: Any) -> dict[str, Any]:
        """A UUID of the version that is asked for."""
        return {"type": "string", "format": f"uuid{schema.get('version') or ''}"}

    def url_schema(self, schema: Any) -> dict[str, Any]:
        """A URL with one of the schemes that are allowed."""
        return self._with_schemes(super().url_schema(schema), schema)

    def multi_host_url_schema(self, schema: Any) -> dict[str, Any]:
        """A URL with several hosts and one of the schemes that are allowed."""
        return self._with_schemes(super().multi_host_url_schema(schema), schema)

    def _with_schemes(self, written: dict[str, Any], schema: Any) -> dict[str, Any]:
        if schemes := schema.get("allowed_schemes"):
            written["pattern"] = f"^(?:{'|'.join(map(re.escape, schemes))}):"
        return written

    def complex_schema(self, schema: Any) -> dict[str, Any]:
        """A complex number as Python writes it."""
        return {"type": "string", "pattern": _COMPLEX}

    def json_schema(self, schema: Any) -> dict[str, Any]:
        """JSON within a string."""
        msg = "JSON within a string (Json) cannot be held to a form. Give the type by itself, such as list[int]."
        raise InvalidParameterError(msg)

    def is_subclass_schema(self, schema: Any) -> dict[str, Any]:
        """A class, which no JSON is."""
        msg = "a class (type[...]) cannot be written as JSON."
        raise InvalidParameterError(msg)


class _ClassSchema(_ValueSchema):
    """Schemas that allow no more than a class does, as far as JSON Schema and formats can say it."""

    def date_schema(self, schema: Any) -> dict[str, Any]:
        """A date within its bounds, or before or after today."""
        written = super().date_schema(schema)
        try:
            first = [schema[key] + timedelta(days=day) for key, day in (("ge", 0), ("gt", 1)) if schema.get(key)]
            last = [schema[key] - timedelta(days=day) for key, day in (("le", 0), ("lt", 1)) if schema.get(key)]
        except OverflowError as error:
            msg = f"no date lies after {date.max} or before {date.min}."
            raise InvalidParameterError(msg) from error
        # Today is another date elsewhere.
        today = {date.today(), datetime.now(timezone.utc).date()}
        if schema.get("now_op") == "past":
            last.append(min(today) - timedelta(days=1))
        elif schema.get("now_op") == "future":
            first.append(max(today) + timedelta(days=1))
        if first:
            written["formatMinimum"] = max(first).isoformat()
        if last:
            written["formatMaximum"] = min(last).isoformat()
        return written

    def datetime_schema(self, schema: Any) -> dict[str, Any]:
        """A date and a time, with a time zone or without one."""
        self._refuse_bounds("datetime", schema)
        constraint = schema.get("tz_constraint")
        if isinstance(constraint, int):
            msg = "a datetime with a fixed time zone cannot be held to it."
            raise InvalidParameterError(msg)
        return {"type": "string", "format": "local-date-time" if constraint == "naive" else "date-time"}

    def time_schema(self, schema: Any) -> dict[str, Any]:
        """A time, without bounds."""
        self._refuse_bounds("time", schema)
        return super().time_schema(schema)

    def timedelta_schema(self, schema: Any) -> dict[str, Any]:
        """A duration, without bounds."""
        self._refuse_bounds("timedelta", schema)
        return super().timedelta_schema(schema)

    def _refuse_bounds(self, name: str, schema: Any) -> None:
        if any(schema.get(key) is not None for key in ("ge", "gt", "le", "lt", "now_op")):
            msg = f"bounds of a {name} cannot be held. Leave them out, or check them in your own code."
            raise InvalidParameterError(msg)

    def set_schema(self, schema: Any) -> dict[str, Any]:
        """A set takes items twice, unless it has to have several."""
        return self._set(super().set_schema(schema))

    def frozenset_schema(self, schema: Any) -> dict[str, Any]:
        """The same."""
        return self._set(super().frozenset_schema(schema))

    def _set(self, written: dict[str, Any]) -> dict[str, Any]:
        if written.get("minItems", 0) <= 1:
            del written["uniqueItems"]
        return written

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """A dictionary whose keys are of their type, too."""
        written = super().dict_schema(schema)
        if "patternProperties" in written:
            return {**written, "additionalProperties": False}
        names = dict(self.generate_inner(schema["keys_schema"])) if "keys_schema" in schema else {}
        kind = names.pop("type", None)
        names.pop("title", None)
        if kind in _NUMBER_KEYS:
            if names:
                msg = f"keys of a dictionary that are of type {kind} cannot be held to {', '.join(names)}."
                raise InvalidParameterError(msg)
            names = {"pattern": _NUMBER_KEYS[kind]}
        elif kind == "boolean":
            names = {"enum": ["true", "false"]}
        elif kind not in (None, "string"):
            msg = f"keys of a dictionary have to be text, numbers or booleans, not of type {kind}."
            raise InvalidParameterError(msg)
        return {**written, "propertyNames": names} if names else written
