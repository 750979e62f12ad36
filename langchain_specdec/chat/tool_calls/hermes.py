"""Calls between tags, as Hermes, Qwen and SmolLM write them."""

from __future__ import annotations

from typing import ClassVar

from langchain_specdec.chat.tool_calls.base import Piece, ToolCallParser
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, JsonExtent

_BEGIN, _END = "<tool_call>", "</tool_call>"


class HermesParser(ToolCallParser):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of times.

    A list of such objects within one pair of tags is understood too, as SmolLM2 was trained on; an empty list is no
    call. The closing tag may be missing at the end of the text.
    """

    mark: ClassVar[str] = _BEGIN
    inner_marks: ClassVar[tuple[str, ...]] = (_END,)
    call_openings: ClassVar[tuple[str, ...]] = ("{", "[", "```json", "<function=")
    call_begin: ClassVar[str] = "<tool_call>\n"
    call_separator: ClassVar[str | None] = "\n</tool_call>\n<tool_call>\n"
    call_end: ClassVar[str] = "\n</tool_call>"

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        start = self._skip_space(0)
        if start == len(self._buffer) and not is_end:
            return None
        if self._buffer[start : start + 1] not in ("{", "["):
            return self._read_broken(0, "There is no JSON object.", is_end=is_end)
        if not self._extent.scan(self._buffer, start):
            # A closing tag may stand within a string of the JSON, so only the end of the text ends the call.
            return self._read_broken(0, "The text ended within the call.", is_end=True) if is_end else None
        if self._extent.is_broken:
            return self._read_broken(self._extent.end, "A bracket does not match.", is_end=is_end)
        text = self._buffer[start : self._extent.end]
        if self._is_item(text):
            return list(self._calls_in(text))
        end = self._skip_space(self._extent.end)
        rest = self._buffer[end:]
        if not rest.startswith((_END, _BEGIN)):
            if not _END.startswith(rest) and not _BEGIN.startswith(rest):
                return self._read_broken(end, "The JSON object is followed by more text.", is_end=is_end)
            if not is_end:
                return None
        # Where the closing tag is missing, the opening tag of the next call stays in the buffer.
        has_tag = not rest.startswith(_BEGIN)
        self._consume(end + (len(_END) if has_tag else 0))
        return list(self._calls_in(text))

    def _read_broken(
        self,
        start: int,
        error: str,
        *,
        is_end: bool,
        closing: tuple[str, ...] = (_END,),
        opening: tuple[str, ...] = (_BEGIN,),
    ) -> list[Piece] | None:
        """Give up on this call, up to a closing tag, the next opening one, or the end of the text."""
        positions = [(self._buffer.find(tag, start), tag) for tag in (*closing, *opening)]
        position, tag = min((place for place in positions if place[0] >= 0), default=(-1, ""))
        if position < 0 and not is_end:
            return None
        self._extent = JsonExtent()
        text = self._consume(position if position >= 0 else len(self._buffer))
        closed = self._consume(len(tag)) if tag in closing else ""
        return [BrokenToolCall(self._mark + text + closed, error, self._name_in(text))]


class GenericParser(HermesParser):
    """Calls between `<tool_call>` tags; also bare or fenced JSON at the beginning of a line, if it names a tool."""

    call_begin: ClassVar[str] = "<tool_call>["
    call_separator: ClassVar[str | None] = ", "
    call_end: ClassVar[str] = "]</tool_call>"
    takes_bare_calls: ClassVar[bool] = True
