"""Calls as DeepSeek's models write them: V3 and R1 with a fenced block of JSON, V3.1 and later without."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from langchain_specdec.chat.tool_calls.base import Form, Piece, ToolCallParser
from langchain_specdec.chat.tool_calls.values import ToolCall, load_json

_CALLS, _CALLS_END = "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"
_CALL, _CALL_END = "<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>"
_SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
# What stands before the arguments: the kind of the tool, its name and a fence, or the name alone.
_FENCED = re.compile(r"\s*\w*\s*" + re.escape(_SEPARATOR) + r"\s*([^\s<>`{]+)\s*```(?:json)?\s*")
_BARE = re.compile(r"\s*([^\s<>`{]+?)\s*" + re.escape(_SEPARATOR) + r"\s*")
_NAME = re.compile(re.escape(_SEPARATOR) + r"\s*([^\s<>`{]+)")


class DeepSeekParser(ToolCallParser):
    """Any number of calls, each between marks, as the mark of a call, a name, the separator and `{...}`.

    Calls of older models are read too. All marks are special tokens.
    """

    mark: ClassVar[str] = _CALLS
    further_marks: ClassVar[tuple[str, ...]] = (_CALL, _CALL_END, _CALLS_END)
    inner_marks: ClassVar[tuple[str, ...]] = (_SEPARATOR,)
    call_begin: ClassVar[str] = _CALLS + _CALL
    call_separator: ClassVar[str | None] = _CALL_END + _CALL
    call_end: ClassVar[str] = _CALL_END + _CALLS_END
    form: ClassVar[Form] = "parts"
    call_frame: ClassVar[tuple[str, str, str]] = ("", _SEPARATOR, "")

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return _CALL in template

    def _begins_call(self, *, is_end: bool) -> bool | None:
        return self._mark != _CALL or self._opens_with((_SEPARATOR,), (_SEPARATOR,), is_end=is_end)

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        if self._mark != _CALL:
            # What stands around calls says nothing.
            return []
        brace = self._buffer.find("{")
        stops = [place for mark in (_CALL_END, _CALL, _CALLS_END) if (place := self._buffer.find(mark)) >= 0]
        if stops and (brace < 0 or min(stops) < brace):
            return [self._broken(min(stops), "There are no arguments.")]
        if brace < 0:
            return self._unfinished(is_end=is_end)
        head = _FENCED.fullmatch(self._buffer[:brace]) or _BARE.fullmatch(self._buffer[:brace])
        if not self._extent.scan(self._buffer, brace):
            return self._unfinished(is_end=is_end)
        end = self._extent.end
        following = self._fence_end(end, is_end=is_end)
        if following < 0:
            return None
        if head is None or self._extent.is_broken:
            return [self._broken(following, "There is no name." if head is None else "A bracket does not match.")]
        try:
            arguments: dict[str, Any] = load_json(self._buffer[brace:end])
        except ValueError as error:
            return [self._broken(following, f"The arguments are not JSON: {error}.")]
        self._consume(following)
        return [ToolCall(head[1], arguments)]

    def _fence_end(self, end: int, *, is_end: bool) -> int:
        """Where the fence behind the arguments ends, `end` where there is none; -1: not known yet."""
        if "```" not in self._buffer[: self._buffer.find("{")] or self._takes_one:
            return end
        closing = self._skip_space(end)
        rest = self._buffer[closing : closing + 3]
        if rest == "```":
            return closing + 3
        return -1 if "```".startswith(rest) and not is_end else end

    def _name_in(self, text: str) -> str | None:
        found = _FENCED.match(text) or _BARE.match(text) or _NAME.search(text)
        return found[1] if found else None


class DeepSeekV3Parser(DeepSeekParser):
    """The same for V3 and R1: `function`, the separator, a name, and the arguments fenced as in Markdown."""

    call_frame: ClassVar[tuple[str, str, str]] = (f"function{_SEPARATOR}", "\n```json\n", "\n```")

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return _CALL in template and "```json" in template
