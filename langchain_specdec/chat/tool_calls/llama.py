"""Calls as Llama 3 writes them: bare JSON, or JSON after a special token."""

from __future__ import annotations

from typing import ClassVar

from langchain_specdec.chat.tool_calls.base import Piece, ToolCallParser
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, calls_in, name_in

__all__ = ["LlamaParser"]


class LlamaParser(ToolCallParser):
    """`{"name": ..., "parameters": {...}}` at the beginning of a line, with or without `<|python_tag|>` before it.

    Several calls are separated by semicolons or white space. Code after the mark, which the built-in tools of
    Llama 3.1 are called with, is a broken call.
    """

    family: ClassVar[str] = "llama3"
    marks: ClassVar[tuple[str, ...]] = ("<|python_tag|>",)
    takes_bare_json: ClassVar[bool] = True

    def _read_marked(self, mark: str, *, is_end: bool) -> list[Piece] | None:
        start = self._skip_space(0)
        if start == len(self._buffer) and not is_end:
            return None
        is_json = self._buffer[start : start + 1] in ("{", "[")
        if not is_json or not self._extent.scan(self._buffer, start):
            if not is_end:
                return None
            error = "The text ended within the call." if is_json else "There is no JSON object."
            return [self._broken(mark, len(self._buffer), error)]
        end = self._extent.end
        if self._extent.is_broken:
            return [self._broken(mark, end, "A bracket does not match.")]
        if (following := self._separator_end(end, is_end=is_end)) < 0:
            return None
        text = self._consume(following)[start:end]
        return list(calls_in(text, mark))

    def _broken(self, mark: str, end: int, error: str) -> BrokenToolCall:
        text = self._consume(end)
        return BrokenToolCall(mark + text, error, name_in(text))
