"""Calls in a format that a tokenizer describes itself, by its `response_template`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from langchain_specdec.chat.tool_calls.base import Form, Piece, Schemas, ToolCallParser
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, ToolCall, calls_in

_BACKSLASH = re.compile(r"\\(.)")
_CALLS, _TEXT = "tool_calls", "content"


class ResponseTemplateParser(ToolCallParser):
    """Reads answers by transformers' own parser, where nobody here knows the format.

    Thoughts are left out of the text, and what transformers cannot read is a broken call.
    """

    mark: ClassVar[str] = ""
    template: ClassVar[dict[str, Any]] = {}
    """What the tokenizer brings."""
    form: ClassVar[Form] = "none"

    def __init__(self, schemas: Schemas | None = None) -> None:
        super().__init__(schemas)
        self._tools: list[Any] = [
            {"type": "function", "function": {"name": name, "parameters": dict(parameters)}}
            for name, parameters in self._schemas.items()
        ]
        self._response = self._begun()
        # The text since the last piece.
        self._since = ""

    @classmethod
    def of(cls, template: dict[str, Any]) -> type[ResponseTemplateParser]:
        """A parser of answers that a template describes."""
        return type(cls.__name__, (cls,), {"template": template})

    @classmethod
    def is_mark(cls, text: str) -> bool:
        """Whether a special token is part of the format, perhaps within a regular expression."""
        return text in _BACKSLASH.sub(r"\1", "\n".join(_strings(cls.template)))

    def _advance(self, *, is_end: bool) -> list[Piece]:
        pieces: list[Piece] = []
        text, self._buffer = self._buffer, ""
        # One at a time, so that what raises is known to be the call that just ended.
        for character in text:
            self._feed(character, pieces)
        if is_end and not self.is_done:
            self._feed("", pieces, is_end=True)
        return pieces

    def _feed(self, character: str, pieces: list[Piece], *, is_end: bool = False) -> None:
        if self.is_done:
            return
        self._since += character
        try:
            events = self._response.finalize()[1] if is_end else self._response.feed(character)
        except Exception as error:  # whatever a template makes of a text
            reason = " ".join(str(error).split()).partition(" Content:")[0]
            self._take([BrokenToolCall(self._since.strip(), reason)], pieces)
            self._response, self._since = self._begun(), ""
            return
        for event in events:
            self._take(self._pieces_of(event), pieces)

    def _pieces_of(self, event: dict[str, Any]) -> list[Piece]:
        place = event["type"], event["field"]
        if place == ("region_close", _CALLS):
            self._since = ""
            return list(_calls(event["value"]))
        if place == ("region_chunk", _TEXT):
            self._since = ""
            return [event["text"]]
        return []

    def _begun(self) -> Any:
        from transformers.utils.chat_parsing import ResponseParser

        # Thoughts that the prompt begins are taken out before, so the answer begins anew.
        return ResponseParser(self.template, prefix="", tools=self._tools)

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        raise NotImplementedError  # transformers' parser finds what is marked


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(inner)


def _calls(value: Any) -> list[ToolCall | BrokenToolCall]:
    return calls_in(json.dumps(value, ensure_ascii=False), "")
