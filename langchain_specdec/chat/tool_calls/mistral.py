"""Calls as Mistral's models write them."""

from __future__ import annotations

import re
from typing import ClassVar

from langchain_specdec.chat.tool_calls.base import Piece, ToolCallParser
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, ToolCall, calls_in, load_json, name_in

__all__ = ["MistralParser"]

_BEGIN, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_HEAD = re.compile(r"\s*([^\s\[\]{}]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*")


class MistralParser(ToolCallParser):
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and of newer models `[TOOL_CALLS]name[ARGS]{...}`."""

    family: ClassVar[str] = "mistral"
    marks: ClassVar[tuple[str, ...]] = (_BEGIN,)
    inner_marks: ClassVar[tuple[str, ...]] = (_ID, _ARGUMENTS)

    def _read_marked(self, mark: str, *, is_end: bool) -> list[Piece] | None:
        start = self._skip_space(0)
        if self._buffer[start : start + 1] == "[":
            # A list, unless it is a mark.
            following = self._skip_space(start + 1)
            if following == len(self._buffer) and not is_end:
                return None
            if self._buffer[following : following + 1] in ("{", "]"):
                return self._read_json(mark, start, is_end=is_end)
        if self._buffer[start : start + 1] == "{":
            return self._read_json(mark, start, is_end=is_end)
        brace = self._buffer.find("{", start)
        next_mark = self._buffer.find(_BEGIN, start)
        if next_mark >= 0 and (brace < 0 or next_mark < brace):
            return [self._broken(mark, next_mark, "There are no arguments.")]
        if brace < 0:
            return [self._broken(mark, len(self._buffer), "There are no arguments.")] if is_end else None
        head = _HEAD.fullmatch(self._buffer[:brace])
        if not self._extent.scan(self._buffer, brace):
            return [self._broken(mark, len(self._buffer), "The text ended within the call.")] if is_end else None
        end = self._extent.end
        if head is None or self._extent.is_broken:
            error = "There is no name before the arguments." if head is None else "A bracket does not match."
            return [self._broken(mark, end, error)]
        try:
            arguments = load_json(self._buffer[brace:end])
        except ValueError as error:
            return [self._broken(mark, end, f"The arguments are not JSON: {error}.", head[1])]
        self._consume(end)
        return [ToolCall(head[1], arguments, head[2])]

    def _read_json(self, mark: str, start: int, *, is_end: bool) -> list[Piece] | None:
        if not self._extent.scan(self._buffer, start):
            return [self._broken(mark, len(self._buffer), "The text ended within the call.")] if is_end else None
        if self._extent.is_broken:
            return [self._broken(mark, self._extent.end, "A bracket does not match.")]
        text = self._consume(self._extent.end)[start:]
        return list(calls_in(text, mark))

    def _broken(self, mark: str, end: int, error: str, name: str | None = None) -> BrokenToolCall:
        text = self._consume(end)
        if name is None and (head := _HEAD.match(text)) and not text.lstrip().startswith(("[", "{")):
            name = head[1]
        return BrokenToolCall(mark + text, error, name or name_in(text))
