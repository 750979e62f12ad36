"""What a text has to look like: JSON that fits a schema, or a match of a regular expression."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.json_schema import checked_schema, closed
from langchain_specdec.grammar.pydantic_schema import schema_of_type
from langchain_specdec.options import check_unicode


@dataclass(frozen=True)
class Grammar:
    """The form of a whole answer. Give one of the two.

    JSON is written on one line, with a space after each colon and comma, and the properties of an object in the order
    in which the schema lists them, and no others unless it speaks of them (`additionalProperties`).

    Attributes:
        schema: A JSON schema (draft 2020-12), or a Pydantic class, dataclass or `TypedDict`, whose schema is taken.
        regex: A regular expression that the whole text matches.

    Raises:
        InvalidParameterError: Neither or both are given, one is of the wrong type, or the class has no JSON schema.
    """

    schema: Mapping[str, Any] | None = None
    regex: str | None = None

    def __post_init__(self) -> None:
        if (self.schema is None) == (self.regex is None):
            msg = "A grammar is either a JSON schema or a regular expression: give schema=... or regex=..."
            raise InvalidParameterError(msg)
        if self.regex is not None:
            if not isinstance(self.regex, str) or not self.regex:
                msg = f"regex must be a regular expression that is not empty, got {self.regex!r}."
                raise InvalidParameterError(msg)
            check_unicode("regex", self.regex)
            return
        schema: Any = self.schema
        if isinstance(schema, type):
            schema = schema_of_type(schema)
        if not isinstance(schema, Mapping):
            msg = f"schema must be a JSON schema as a dictionary, or a Pydantic class, got {self.schema!r}."
            raise InvalidParameterError(msg)
        object.__setattr__(self, "schema", closed(checked_schema(schema)))

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def kind(self) -> str:
        """What it is, for messages."""
        return "regular expression" if self.regex is not None else "JSON schema"

    @cached_property
    def identity(self) -> tuple[str, str]:
        """Tells grammars apart; the order of properties counts."""
        return ("regex", self.regex) if self.regex is not None else ("schema", json.dumps(self.schema))
