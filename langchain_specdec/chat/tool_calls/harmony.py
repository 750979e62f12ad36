"""Calls and channels of gpt-oss, in OpenAI's Harmony format."""

from __future__ import annotations

import re
from typing import ClassVar

from langchain_specdec.chat.tool_calls.base import Form, Piece, Schemas, ToolCallParser
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, ToolCall, load_json

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
# What follows a thought whose end was forgotten.
_ANSWERS = (f"{_CHANNEL}final", f"{_CHANNEL}commentary")
# What a header goes on with behind a mark in a message that has not ended.
_OPENINGS = {_CHANNEL: ("analysis", "commentary", "final"), _START: ("assistant",)}
_TO = " to="
# Who reads a message that is no call.
_READERS = r"(?:assistant|user|all)(?![^\s<>])"
_RECIPIENT = re.compile(rf"\bto=(?!{_READERS})(?:functions\.)?([^\s<>]+)")
_THOUGHT = re.compile(re.escape(_CHANNEL) + r"\s*analysis\b")


class HarmonyParser(ToolCallParser):
    """`<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>`, and text in other channels.

    The recipient may stand before the channel. An answer has one call. Text of the channels `final` and `commentary`
    is text, and that of `analysis` is left out; the headers of messages are no part of it.
    """

    mark: ClassVar[str] = _CHANNEL
    further_marks: ClassVar[tuple[str, ...]] = (_START, _MESSAGE, *_ENDS)
    inner_marks: ClassVar[tuple[str, ...]] = ("<|constrain|>",)
    call_begin: ClassVar[str] = f"{_TO}functions."
    call_separator: ClassVar[str | None] = None
    form: ClassVar[Form] = "parts"
    call_frame: ClassVar[tuple[str, str, str]] = ("", f"{_CHANNEL}commentary json{_MESSAGE}", "")
    answer_begin: ClassVar[str] = f"{_CHANNEL}final{_MESSAGE}"

    def __init__(self, schemas: Schemas | None = None) -> None:
        super().__init__(schemas)
        # The prompt ends where the header of a message begins, which may name its recipient first.
        self._is_at_begin = True
        self._has_text = False
        # Whether the text so far has come to the body of a message, where marks may be named.
        self._is_in_body = False

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return _CHANNEL in template and _MESSAGE in template

    def _read_text(self, pieces: list[Piece], *, is_end: bool) -> bool:
        if self._is_at_begin:
            if _TO.startswith(self._buffer[: len(_TO)]) and len(self._buffer) < len(_TO) and not is_end:
                return False
            self._is_at_begin = False
            if self._buffer.startswith(_TO):
                self._is_marked, self._is_meant, self._mark = True, True, ""
                return True
        return super()._read_text(pieces, is_end=is_end)

    def _add_text(self, text: str, pieces: list[Piece]) -> None:
        super()._add_text(text, pieces)
        self._has_text = self._has_text or bool(text.strip())

    def _begins_call(self, *, is_end: bool) -> bool | None:
        openings = _OPENINGS.get(self._mark)
        return not self._is_in_body or openings is None or self._opens_with(openings, is_end=is_end)

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        if self._mark in (_MESSAGE, *_ENDS):
            self._is_in_body = self._mark == _MESSAGE
            return []
        self._is_in_body = False
        body = self._buffer.find(_MESSAGE)
        next_message = self._first((_START, *_ENDS), 0)
        if body < 0 or 0 <= next_message < body:
            return self._without_body(next_message, is_end=is_end)
        head = self._mark + self._buffer[:body]
        recipient = _RECIPIENT.search(head)
        start = body + len(_MESSAGE)
        if recipient is None:
            if _THOUGHT.search(head, max(head.rfind(_CHANNEL), 0)) is None:
                # The text itself follows.
                self._is_in_body = True
                self._consume(start)
                return ["\n\n"] if self._has_text else []
            end = self._first((_START, *_ANSWERS, *_ENDS), start)
            if end < 0 and not is_end:
                return None
            self._consume(end if end >= 0 else len(self._buffer))
            return []
        return self._read_arguments(recipient[1], start, is_end=is_end)

    def _read_arguments(self, name: str, start: int, *, is_end: bool) -> list[Piece] | None:
        """Read the body of a message to a tool."""
        brace = self._skip_space(start)
        if brace == len(self._buffer):
            return self._unfinished(is_end=is_end)
        if self._buffer[brace] != "{":
            end = self._first((_START, *_ENDS), start)
            if end < 0 and not is_end:
                return None
            return [self._broken(end if end >= 0 else len(self._buffer), "The arguments are no JSON object.")]
        if not self._extent.scan(self._buffer, brace):
            return self._unfinished(is_end=is_end)
        end = self._extent.end
        text = self._consume(end)
        if self._extent.is_broken:
            return [BrokenToolCall(self._mark + text, "A bracket does not match.", name)]
        try:
            return [ToolCall(name, load_json(text[brace:]))]
        except ValueError as error:
            return [BrokenToolCall(self._mark + text, f"The arguments are not JSON: {error}.", name)]

    def _without_body(self, end: int, *, is_end: bool) -> list[Piece] | None:
        """A header that no message follows: a broken call where it names a tool, and nothing else."""
        if end < 0 and not is_end:
            return None
        text = self._consume(end if end >= 0 else len(self._buffer))
        if _RECIPIENT.search(self._mark + text) is None:
            return []
        return [BrokenToolCall(self._mark + text, "There are no arguments.", self._name_in(text))]

    def _first(self, marks: tuple[str, ...], start: int) -> int:
        found = [place for mark in marks if (place := self._buffer.find(mark, start)) >= 0]
        return min(found, default=-1)

    def _name_in(self, text: str) -> str | None:
        found = _RECIPIENT.search(text)
        return found[1] if found else None
