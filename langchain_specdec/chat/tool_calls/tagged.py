"""Calls as JSON behind a special token, as Granite 3 and Phi-4-mini write them."""

from __future__ import annotations

from typing import ClassVar

from langchain_specdec.chat.tool_calls.base import Piece, ToolCallParser


class GraniteParser(ToolCallParser):
    """`<|tool_call|>[{"name": ..., "arguments": {...}}, ...]`, or one such object. Granite 4 writes as Hermes does."""

    mark: ClassVar[str] = "<|tool_call|>"
    call_begin: ClassVar[str] = "<|tool_call|>["
    call_separator: ClassVar[str | None] = ", "
    call_end: ClassVar[str] = "]"

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return cls.mark in template and "<|start_of_role|>" in template

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        if self._mark != self.mark:
            return []
        start = self._skip_space(0)
        if start == len(self._buffer):
            return self._unfinished(is_end=is_end)
        if self._buffer[start] not in "{[":
            return [self._broken(len(self._buffer), "There is no JSON object.")] if is_end else None
        return self._read_json(start, is_end=is_end, is_separated=True)


class PhiParser(GraniteParser):
    """The same between marks, `<|tool_call|>[...]<|/tool_call|>`, as Phi-4-mini writes it."""

    further_marks: ClassVar[tuple[str, ...]] = ("<|/tool_call|>",)
    call_end: ClassVar[str] = "]<|/tool_call|>"

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return cls.mark in template
