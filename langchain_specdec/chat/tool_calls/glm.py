"""Calls as GLM-4.5 and later write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from langchain_specdec.chat.tool_calls.argument_types import Tell, arguments_of, raw_part, told_of, typed_call
from langchain_specdec.chat.tool_calls.base import Form, Piece
from langchain_specdec.chat.tool_calls.hermes import HermesParser
from langchain_specdec.chat.tool_calls.values import name_in
from langchain_specdec.grammar.call_parts import InOrder, Maybe, Part, Text

_END = "</tool_call>"
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"
_NAME = re.compile(r"\s*([^<>{}\[\]]+)")


class GlmParser(HermesParser):
    r"""`<tool_call>NAME\n<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>`, also on one line.

    What a value stands for, the tool's schema says. JSON between the tags is understood as Hermes writes it.

    A grammar writes texts as they are, and other values as JSON. It holds of texts their lengths, patterns and known
    values; beside the named arguments it writes none.
    """

    inner_marks: ClassVar[tuple[str, ...]] = (_END, _KEY, _KEY_END, _VALUE, _VALUE_END)
    name_followers: ClassVar[tuple[str, ...]] = (_KEY,)
    call_begin: ClassVar[str] = "<tool_call>"
    call_separator: ClassVar[str | None] = "\n</tool_call>\n<tool_call>"
    call_end: ClassVar[str] = "\n</tool_call>"
    form: ClassVar[Form] = "parts"
    holds_schemas: ClassVar[bool] = False

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return _KEY in template and _VALUE in template

    @classmethod
    def call_part(cls, name: str, parameters: Mapping[str, Any], tell: Tell) -> Part:
        """How a call of a tool is written."""
        parts: list[Part] = [Text(name)]
        for argument in arguments_of(parameters, tell):
            begin = Text(f"\n{_KEY}{argument.name}{_KEY_END}\n{_VALUE}")
            value = raw_part(argument.schema, _VALUE_END, _VALUE_END, told_of(tell, argument.name))
            part = InOrder((begin, value))
            parts.append(part if argument.is_needed else Maybe(part))
        return InOrder(tuple(parts))

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        start = self._skip_space(0)
        if start == len(self._buffer) and not is_end:
            return None
        if self._buffer[start : start + 1] in ("{", "["):
            return super()._read_marked(is_end=is_end)
        name = _NAME.match(self._buffer)
        if name is None:
            return self._read_broken(0, "There is no name.", is_end=is_end)
        position = name.end()
        written: list[tuple[str, str]] = []
        while not self._buffer.startswith(_END, position):
            parts: list[str] = []
            for begin, end in ((_KEY, _KEY_END), (_VALUE, _VALUE_END)):
                rest = self._buffer[position : position + len(begin)]
                if rest != begin:
                    is_begun = begin.startswith(rest) or (begin == _KEY and _END.startswith(rest))
                    return self._read_no_call(position, is_begun=is_begun, is_end=is_end)
                stop = self._buffer.find(end, position)
                if stop < 0:
                    return self._read_no_call(len(self._buffer), is_begun=True, is_end=is_end)
                parts.append(self._buffer[position + len(begin) : stop])
                position = self._skip_space(stop + len(end))
            written.append((parts[0].strip(), parts[1]))
        text = self._mark + self._consume(position + len(_END))
        return [typed_call(name[1].strip(), written, self._schemas, text)]

    def _read_no_call(self, start: int, *, is_begun: bool, is_end: bool) -> list[Piece] | None:
        """Wait for the rest of a tag, or give up on the call."""
        if is_begun and not is_end:
            return None
        error = "The text ended within the call." if is_begun else "A tag is missing."
        return self._read_broken(start, error, is_end=is_end)

    def _name_in(self, text: str) -> str | None:
        found = _NAME.match(text)
        return found[1].strip() if found else name_in(text)
