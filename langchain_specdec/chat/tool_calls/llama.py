"""Calls as Llama 3, and Llama 4 by its first template, write them: bare JSON, or JSON after a special token."""

from __future__ import annotations

from typing import ClassVar

from langchain_specdec.chat.tool_calls.base import Piece, ToolCallParser


class LlamaParser(ToolCallParser):
    """`{"name": ..., "parameters": {...}}` at the beginning of a line, with or without `<|python_tag|>` before it.

    Several calls are separated by semicolons or white space. Code after the mark, which the built-in tools of
    Llama 3.1 are called with, is a broken call. Between the marks of Llama 4 text may stand, too.
    """

    mark: ClassVar[str] = "<|python_tag|>"
    further_marks: ClassVar[tuple[str, ...]] = ("<|python_start|>", "<|python_end|>")
    arguments_key: ClassVar[str] = "parameters"
    takes_bare_calls: ClassVar[bool] = True

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        has_headers = "<|start_header_id|>" in template or "<|header_start|>" in template
        return cls.mark in template or (has_headers and '"parameters"' in template)

    def _begins_call(self, *, is_end: bool) -> bool | None:
        return True  # code may follow, which may be any text

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        start = self._skip_space(0)
        if self._mark != self.mark and (start < len(self._buffer) or is_end):
            is_json = self._mark == self.further_marks[0] and self._buffer[start : start + 1] in ("{", "[")
            return self._read_json(start, is_end=is_end, is_separated=True) if is_json else []
        if self._buffer[start : start + 1] not in ("{", "["):
            return [self._broken(len(self._buffer), "There is no JSON object.")] if is_end else None
        return self._read_json(start, is_end=is_end, is_separated=True)
