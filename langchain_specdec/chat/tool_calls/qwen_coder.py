"""Calls in tags, as Qwen3-Coder and Qwen3.5 write them, and others that were trained to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from langchain_specdec.chat.tool_calls.argument_types import Tell, arguments_of, raw_part, told_of, typed_call
from langchain_specdec.chat.tool_calls.base import Form, Piece
from langchain_specdec.chat.tool_calls.hermes import HermesParser
from langchain_specdec.chat.tool_calls.values import name_in
from langchain_specdec.grammar.call_parts import InOrder, Maybe, Part, Text
from langchain_specdec.grammar.text_patterns import one_of

_BEGIN, _END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_NAME = re.compile(r"([^<>\n]+)>")
_FUNCTION_NAME = re.compile(r"<function=([^<>\n]+)")
# The end of a function: behind which another call begins, behind which its call ends, and any.
_END_BEFORE_CALL = re.compile(r"</function>\s*(?:</tool_call>\s*)?(?:<tool_call>|<function=)")
_END_OF_CALL = re.compile(r"</function>\s*</tool_call>")
_END_OF_FUNCTION = re.compile(r"</function>")
_NAME_BEGUN = re.compile(r"[^<>\n]*\Z")


class QwenCoderParser(HermesParser):
    r"""`<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>`.

    The outer tags may be missing, and the end of a value before the next argument or the end of the function. A value
    is text without the first and the last line break; what it stands for, the schema says. JSON between the outer
    tags is understood as Hermes writes it.

    A grammar writes texts as they are, and other values as JSON. It holds of texts their lengths, patterns and known
    values; beside the named arguments it writes none.
    """

    further_marks: ClassVar[tuple[str, ...]] = (_FUNCTION,)
    inner_marks: ClassVar[tuple[str, ...]] = (_END, _FUNCTION_END, _PARAMETER, _PARAMETER_END)
    form: ClassVar[Form] = "parts"
    holds_schemas: ClassVar[bool] = False

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return _FUNCTION in template and _PARAMETER in template

    @classmethod
    def call_part(cls, name: str, parameters: Mapping[str, Any], tell: Tell) -> Part:
        """How a call of a tool is written."""
        parts: list[Part] = [Text(f"{_FUNCTION}{name}>\n")]
        for argument in arguments_of(parameters, tell):
            end = f"\n{_PARAMETER_END}"
            value = raw_part(argument.schema, end, _PARAMETER_END, told_of(tell, argument.name))
            part = InOrder((Text(f"{_PARAMETER}{argument.name}>\n"), value, Text("\n")))
            parts.append(part if argument.is_needed else Maybe(part))
        return InOrder((*parts, Text(_FUNCTION_END)))

    def _begins_call(self, *, is_end: bool) -> bool | None:
        if self._mark != _FUNCTION:
            return super()._begins_call(is_end=is_end)
        name = _NAME.match(self._buffer)
        if name is None:
            # It may be that of a tool, cut off.
            is_begun = bool(self._buffer) and any(tool.startswith(self._buffer) for tool in self._names)
            return is_begun if is_end or _NAME_BEGUN.match(self._buffer) is None else None
        if name[1].strip() in self._names:
            return True
        rest, tags = self._buffer[name.end() :].lstrip(), (_PARAMETER, _FUNCTION_END)
        return rest.startswith(tags) or (None if not is_end and any(tag.startswith(rest) for tag in tags) else False)

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        if self._mark == _FUNCTION:
            return self._read_function(0, is_end=is_end)
        start = self._skip_space(0)
        rest = self._buffer[start : start + len(_FUNCTION)]
        if rest == _FUNCTION:
            return self._read_function(start + len(_FUNCTION), is_end=is_end)
        is_begun = _FUNCTION.startswith(rest) and not is_end
        return None if is_begun else super()._read_marked(is_end=is_end)

    def _read_function(self, start: int, *, is_end: bool) -> list[Piece] | None:
        """Read a call from its name on."""
        name = _NAME.match(self._buffer, start)
        if name is None:
            is_begun = _NAME_BEGUN.match(self._buffer, start) is not None
            return self._read_no_call(start, "There is no name.", is_begun=is_begun, is_end=is_end)
        position = self._skip_space(name.end())
        written: list[tuple[str, str]] = []
        while not self._buffer.startswith(_FUNCTION_END, position):
            key_start = position + len(_PARAMETER)
            if not self._buffer.startswith(_PARAMETER, position):
                rest = self._buffer[position:]
                is_begun = _PARAMETER.startswith(rest) or _FUNCTION_END.startswith(rest)
                return self._read_no_call(position, "A tag is missing.", is_begun=is_begun, is_end=is_end)
            key = _NAME.match(self._buffer, key_start)
            if key is None:
                is_begun = _NAME_BEGUN.match(self._buffer, key_start) is not None
                error = "An argument has no name."
                return self._read_no_call(key_start, error, is_begun=is_begun, is_end=is_end)
            end = self._buffer.find(_PARAMETER_END, key.end())
            following = end + len(_PARAMETER_END)
            if (unclosed := self._end_of_function(key.end(), end, is_end=is_end)) >= 0:
                end = following = unclosed
            if end < 0:
                return self._read_no_call(len(self._buffer), "", is_begun=True, is_end=is_end)
            known = {key[1].strip(), *(argument for argument, _ in written)}
            if (unclosed := self._next_argument(name[1].strip(), known, key.end(), end)) >= 0:
                end = following = unclosed
            written.append((key[1].strip(), _value(self._buffer[key.end() : end])))
            position = self._skip_space(following)
        position += len(_FUNCTION_END)
        closing = self._skip_space(position)
        rest = self._buffer[closing : closing + len(_END)]
        if rest == _END:
            position = closing + len(_END)
        elif _END.startswith(rest) and not is_end and not self._takes_one:
            return None
        return [typed_call(name[1].strip(), written, self._schemas, self._mark + self._consume(position))]

    def _read_no_call(self, start: int, error: str, *, is_begun: bool, is_end: bool) -> list[Piece] | None:
        """Wait for the rest of a tag, or give up on the call."""
        if is_begun and not is_end:
            return None
        error = "The text ended within the call." if is_begun else error
        if self._mark == _FUNCTION:
            opening = (_BEGIN, _FUNCTION)
            return self._read_broken(start, error, is_end=is_end, closing=(_FUNCTION_END,), opening=opening)
        return self._read_broken(start, error, is_end=is_end)

    def _end_of_function(self, start: int, end: int, *, is_end: bool) -> int:
        """Where the function ends within a value that may go on to `end`; -1: nowhere, or not known yet.

        A value may hold the tag. It is the end of the function where another call begins behind it; at the end of the
        text, where the call ends, too, or the model has ended the text, which was not cut then within the value.
        """
        ends = [_END_BEFORE_CALL]
        if is_end and end < 0:
            ends += [_END_OF_CALL, *([_END_OF_FUNCTION] if self._is_whole else [])]
        size = end if end >= 0 else len(self._buffer)
        matches = (pattern.search(self._buffer, start, size) for pattern in ends)
        return next((match.start() for match in matches if match), -1)

    def _next_argument(self, tool: str, known: set[str], start: int, end: int) -> int:
        """Where another argument of the tool begins within a value, which was not closed then; -1: nowhere."""
        if self._buffer.find(f"\n{_PARAMETER}", start, end) < 0:
            return -1
        names = {argument.name for argument in arguments_of(self._schemas.get(tool, {}))}
        others = one_of(names - known)
        found = re.compile(rf"\n{_PARAMETER}(?:{others})>").search(self._buffer, start, end)
        return found.start() if found else -1

    def _name_in(self, text: str) -> str | None:
        found = _FUNCTION_NAME.search(self._mark + text)
        return found[1].strip() if found else name_in(text)


def _value(text: str) -> str:
    """A value without the line breaks around it."""
    return text.removeprefix("\n").removesuffix("\n")
