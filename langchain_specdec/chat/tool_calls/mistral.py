"""Calls as Mistral's models write them: those up to Small 3.1 in a list, and newer ones one after the other."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from langchain_specdec.chat.tool_calls.base import Form, Piece, ToolCallParser
from langchain_specdec.chat.tool_calls.values import ToolCall, load_json, name_in

_HEAD = re.compile(r"\s*([^\s\[\]{}]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*")


class MistralParser(ToolCallParser):
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and of newer models `[TOOL_CALLS]name[ARGS]{...}`."""

    mark: ClassVar[str] = "[TOOL_CALLS]"
    inner_marks: ClassVar[tuple[str, ...]] = ("[CALL_ID]", "[ARGS]")
    name_followers: ClassVar[tuple[str, ...]] = ("[CALL_ID]", "[ARGS]", "{")
    call_begin: ClassVar[str] = "[TOOL_CALLS]["
    call_separator: ClassVar[str | None] = ", "
    call_end: ClassVar[str] = "]"

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        start = self._skip_space(0)
        if self._buffer[start : start + 1] == "[":
            # The bracket begins a list of calls, or a mark such as [ARGS].
            following = self._skip_space(start + 1)
            if following == len(self._buffer) and not is_end:
                return None
            if self._buffer[following : following + 1] in ("{", "]"):
                return self._read_json(start, is_end=is_end)
        if self._buffer[start : start + 1] == "{":
            return self._read_json(start, is_end=is_end)
        brace = self._buffer.find("{", start)
        next_mark = self._buffer.find(self.mark, start)
        if next_mark >= 0 and (brace < 0 or next_mark < brace):
            return [self._broken(next_mark, "There are no arguments.")]
        if brace < 0:
            return [self._broken(len(self._buffer), "There are no arguments.")] if is_end else None
        head = _HEAD.fullmatch(self._buffer[:brace])
        if not self._extent.scan(self._buffer, brace):
            return self._unfinished(is_end=is_end)
        end = self._extent.end
        if head is None or self._extent.is_broken:
            error = "There is no name before the arguments." if head is None else "A bracket does not match."
            return [self._broken(end, error)]
        try:
            arguments: dict[str, Any] = load_json(self._buffer[brace:end])
        except ValueError as error:
            return [self._broken(end, f"The arguments are not JSON: {error}.")]
        self._consume(end)
        return [ToolCall(head[1], arguments, head[2])]

    def _name_in(self, text: str) -> str | None:
        head = None if text.lstrip().startswith(("[", "{")) else _HEAD.match(text)
        return head[1] if head else name_in(text)


class TekkenParser(MistralParser):
    """The same for models whose template writes `[TOOL_CALLS]name[ARGS]{...}`.

    The id of a call, which some of them write too (`[CALL_ID]`), is understood, and no part of a call that is forced.
    """

    call_begin: ClassVar[str] = "[TOOL_CALLS]"
    call_separator: ClassVar[str | None] = "[TOOL_CALLS]"
    call_end: ClassVar[str] = ""
    form: ClassVar[Form] = "parts"
    call_frame: ClassVar[tuple[str, str, str]] = ("", "[ARGS]", "")

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return cls.mark in template and "[ARGS]" in template
