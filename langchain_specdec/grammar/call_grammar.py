"""A grammar of tool calls, which an object may stand for: what models write that call tools in a form of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from langchain_specdec.grammar.call_parts import Either, InOrder, Json, Maybe, Part, PartWriter, Raw, Repeated, parts_in
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import closed


@dataclass(frozen=True)
class CallGrammar(Grammar):
    """Calls, or an object. It has neither `schema` nor `regex`: what follows only those refuses it.

    The parts hold schemas that were checked. As of every grammar, objects have the properties that they name.

    Attributes:
        call: One call.
        begin: Text before the first call.
        separator: Text between two calls; None where an answer has one call only.
        end: Text after the last call.
        object: JSON schema of the other answer; None where the answer has to be calls.
        object_begin: Text before the object.
    """

    call: Part = field(kw_only=True)
    begin: str = field(default="", kw_only=True)
    separator: str | None = field(default=None, kw_only=True)
    end: str = field(default="", kw_only=True)
    object: Mapping[str, Any] | None = field(default=None, kw_only=True)
    object_begin: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "call", _closed(self.call))
        object.__setattr__(self, "object", None if self.object is None else closed(self.object))

    def __hash__(self) -> int:
        return hash(self.identity)

    @cached_property
    def identity(self) -> tuple[str, str]:
        """Tells grammars apart."""
        text = (self.begin, self.separator, self.end, self.object_begin, json.dumps(self.object))
        return "calls", repr((self.call, text))

    @property
    def schemas(self) -> list[Mapping[str, Any]]:
        """All schemas in it."""
        of_calls = [part.schema for part in parts_in(self.call) if isinstance(part, Json)]
        return of_calls if self.object is None else [*of_calls, self.object]

    @property
    def raw_ends(self) -> tuple[str, ...]:
        """Texts that end its raw parts."""
        return tuple(dict.fromkeys(part.end for part in parts_in(self.call) if isinstance(part, Raw)))

    def lark(self, schema_text: Callable[[Mapping[str, Any]], str], special_ids: Mapping[str, int]) -> str:
        """The grammar in llguidance's variant of Lark.

        Args:
            schema_text: Writes a schema as the compiler wants it.
            special_ids: Special tokens by their text, whose spelling is no text to a grammar.
        """
        writer = PartWriter(schema_text, special_ids)
        rules = {"call": writer.write(self.call)}
        calls = "call" if self.separator is None else f"call ({writer.fixed(self.separator)} call)*"
        rules["calls"] = " ".join(filter(None, (writer.fixed(self.begin), calls, writer.fixed(self.end))))
        start = "calls"
        if self.object is not None:
            rules["object"] = f"{writer.fixed(self.object_begin)} {writer.write(Json(self.object))}".strip()
            start = "calls | object"
        return "\n".join(f"{name}: {body}" for name, body in ({"start": start} | rules | writer.rules).items()) + "\n"


def _closed(part: Part) -> Part:
    """The part with closed schemas."""
    if isinstance(part, Json):
        return Json(closed(part.schema))
    if isinstance(part, (InOrder, Either)):
        return replace(part, parts=tuple(map(_closed, part.parts)))
    if isinstance(part, (Maybe, Repeated)):
        return replace(part, part=_closed(part.part))
    return part
