"""A grammar of tool calls or an object: what an agent writes that is to end with an object."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import closed
from langchain_specdec.grammar.text_patterns import one_of


@dataclass(frozen=True)
class CallsOrObject(Grammar):
    """Calls, or an object. It has neither `schema` nor `regex`: what follows only those refuses it.

    The parts are schemas that were checked. As of every grammar, objects have the properties that they name.

    Attributes:
        call: JSON schema of one call.
        object: JSON schema of the other answer.
        begin: Text before the first call.
        separator: Text between two calls; None where an answer has one call only.
        end: Text after the last call.
    """

    call: Mapping[str, Any] = field(kw_only=True)
    object: Mapping[str, Any] = field(kw_only=True)
    begin: str = field(kw_only=True)
    separator: str | None = field(kw_only=True)
    end: str = field(kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "call", closed(self.call))
        object.__setattr__(self, "object", closed(self.object))

    def __hash__(self) -> int:
        return hash(self.identity)

    @cached_property
    def identity(self) -> tuple[str, str]:
        """Tells grammars apart."""
        return "calls_or_object", json.dumps([self.call, self.object, self.begin, self.separator, self.end])

    def lark(self, schema_text: Callable[[Mapping[str, Any]], str], special_ids: Mapping[str, int]) -> str:
        """The grammar in llguidance's variant of Lark.

        Args:
            schema_text: Writes a schema as the compiler wants it.
            special_ids: Special tokens by their text, whose spelling is no text to a grammar.
        """
        parts = [_fixed(self.begin, special_ids), "call", _fixed(self.end, special_ids)]
        if self.separator is not None:
            parts[1] = f"call ({_fixed(self.separator, special_ids)} call)*"
        return (
            f"start: calls | object\ncalls: {' '.join(filter(None, parts))}\n"
            f"call: %json {schema_text(self.call)}\nobject: %json {schema_text(self.object)}\n"
        )


def _fixed(text: str, special_ids: Mapping[str, int]) -> str:
    """Fixed text as Lark writes it; empty where there is none."""
    pieces = re.split(f"({one_of(special_ids)})", text)
    return " ".join(f"<[{special_ids[p]}]>" if p in special_ids else json.dumps(p) for p in pieces if p)
