"""Calls that a server tells apart from the text of its answer."""

from __future__ import annotations

from typing import ClassVar

from langchain_specdec.chat.tool_calls.base import Piece, ToolCallParser
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, calls_in
from langchain_specdec.completions.server_chat import CALL_BEGIN, CALL_END, shown


class ToldCallParser(ToolCallParser):
    """Calls as `completions/server_chat.py` writes them."""

    mark: ClassVar[str] = CALL_BEGIN

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        end = self._buffer.find(CALL_END)
        if end < 0:
            # A stop string may stand within a call.
            error = "The text ended within the call."
            return [BrokenToolCall(shown(CALL_BEGIN + self._consume(len(self._buffer))), error)] if is_end else None
        text = self._consume(end + len(CALL_END)).removesuffix(CALL_END)
        return list(calls_in(text, shown(CALL_BEGIN)))
