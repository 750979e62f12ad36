"""Calls in the notation of Python, as Llama 4 and others write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from langchain_specdec.chat.tool_calls.argument_types import Tell, arguments_of, types_of
from langchain_specdec.chat.tool_calls.base import Form, Piece, Schemas, ToolCallParser
from langchain_specdec.chat.tool_calls.python_values import read_calls
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, ToolCall, carried
from langchain_specdec.grammar.call_parts import InOrder, Json, Part, Text, either, listed
from langchain_specdec.grammar.text_patterns import one_of

_NAME = re.compile(r"\s*\[?\s*([^\W\d][\w.\-]*)\s*\(")
_WORDS = {"boolean": ("True", "False"), "null": ("None",)}


class PythonicParser(ToolCallParser):
    """`[first(a=1, b="x"), second()]` at the beginning of a line, if it names a tool, or behind `<|python_start|>`.

    A grammar writes values as JSON, whose texts and numbers are Python's, but for `True`, `False` and `None`.
    """

    mark: ClassVar[str] = "<|python_start|>"
    further_marks: ClassVar[tuple[str, ...]] = ("<|python_end|>",)
    call_begin: ClassVar[str] = "["
    call_separator: ClassVar[str | None] = ", "
    call_end: ClassVar[str] = "]"
    form: ClassVar[Form] = "parts"
    holds_schemas: ClassVar[bool] = False
    takes_bare_calls: ClassVar[bool] = True
    _is_python = True
    _bare_begun = re.compile(r"^[ \t]*\[?\s*(?:[^\W\d][\w.\-]*)?\Z", re.MULTILINE)

    def __init__(self, schemas: Schemas | None = None) -> None:
        super().__init__(schemas)
        self._bare = re.compile(rf"^[ \t]*\[(?=\s*(?:{one_of(self._names)})\()", re.MULTILINE)

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return "[func_name1(" in template

    @classmethod
    def call_part(cls, name: str, parameters: Mapping[str, Any], tell: Tell) -> Part:
        """How a call of a tool is written."""
        items = [
            (InOrder((Text(f"{argument.name}="), _value_part(argument.schema))), argument.is_needed)
            for argument in arguments_of(parameters, tell)
        ]
        return InOrder((Text(f"{name}("), listed(items, ", "), Text(")")))

    def expect_grammar(self) -> None:
        """Expect calls in just the form that a grammar gave them."""
        # A list of calls is nothing else.

    def _begins_call(self, *, is_end: bool) -> bool | None:
        # Llama 4 has text between its marks, too.
        return self._mark == PythonicParser.mark or super()._begins_call(is_end=is_end)

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        if self._mark != self.mark:
            return []
        start = self._skip_space(0)
        if start == len(self._buffer):
            return self._unfinished(is_end=is_end)
        if self._buffer[start] == "{":
            return self._read_json(start, is_end=is_end, is_separated=True)
        if self._buffer[start] != "[" and self._mark == PythonicParser.mark:
            return []
        if self._buffer[start] != "[":
            return [self._broken(len(self._buffer), "There is no list of calls.")] if is_end else None
        return self._read_list(start, is_end=is_end)

    def _read_bare(self, *, is_end: bool) -> list[Piece] | None:
        # It is no JSON, which somebody could complete.
        self._mark = ""
        return self._read_list(self._start, is_end=is_end)

    def _read_list(self, start: int, *, is_end: bool) -> list[Piece] | None:
        """Read the list of calls that begins at `start`."""
        if not self._extent.scan(self._buffer, start):
            return self._unfinished(is_end=is_end)
        text = self._consume(self._extent.end)
        if self._extent.is_broken:
            return [BrokenToolCall(self._mark + text, "A bracket does not match.", self._name_in(text))]
        written = text[start:] if text.endswith("]") else f"{text[start:]}]"
        try:
            return [ToolCall(name, carried(arguments)) for name, arguments in read_calls(written)]
        except ValueError as error:
            return [BrokenToolCall(self._mark + text, f"The calls cannot be read: {error}.", self._name_in(text))]

    def _name_in(self, text: str) -> str | None:
        found = _NAME.match(text)
        return found[1] if found else None


class LfmParser(PythonicParser):
    """The same between marks, as LFM2 writes it: `<|tool_call_start|>[first(a=1)]<|tool_call_end|>`."""

    mark: ClassVar[str] = "<|tool_call_start|>"
    further_marks: ClassVar[tuple[str, ...]] = ("<|tool_call_end|>",)
    call_begin: ClassVar[str] = "<|tool_call_start|>["
    call_end: ClassVar[str] = "]<|tool_call_end|>"

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return cls.mark in template


def _value_part(schema: Mapping[str, Any]) -> Part:
    types = types_of(schema)
    if types and types <= _WORDS.keys() and not schema.keys() & {"enum", "const"}:
        return either([Text(word) for name in sorted(types) for word in _WORDS[name]])
    return Json(schema)
