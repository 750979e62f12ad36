"""Answers that are tool calls or an object: a response format beside tools that the model may call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_specdec.chat.structured_output import OutputForm, form_of_calls
from langchain_specdec.chat.tool_calls import Piece, ToolCallParser
from langchain_specdec.grammar.calls_or_object import CallsOrObject
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import closed


@dataclass(frozen=True)
class CallsOrObjectForm(OutputForm):
    """The form of an answer that is calls of tools, or the object of a response format, whose schema it bears.

    Attributes:
        calls: The form of one call.
        separator: Text between two calls; None where there is one only.
    """

    calls: OutputForm = field(kw_only=True)
    separator: str | None = field(kw_only=True)

    @property
    def grammar(self) -> Grammar:
        """What constrains the whole answer, the marks of calls included."""
        calls = self.calls
        return CallsOrObject(
            call=closed(calls.schema),
            object=closed(self.schema),
            begin=calls.begin,
            separator=self.separator,
            end=calls.end,
        )


def form_of_calls_or_object(
    response: OutputForm, tools: Sequence[Mapping[str, Any]], parser: type[ToolCallParser]
) -> CallsOrObjectForm:
    """The form of an answer that is calls of these tools, as the parser reads them, or the object."""
    calls = form_of_calls(tools, parser)
    return CallsOrObjectForm(response.schema, calls=calls, separator=parser.call_separator)


class CallsFirst:
    """Reads an answer that begins with calls, or has none: strings of an object may look like calls.

    Args:
        parser: Reads the calls.
    """

    def __init__(self, parser: ToolCallParser) -> None:
        self._parser = parser
        # What came before it was known whether the answer is calls; None once it is.
        self._undecided: str | None = ""
        self._is_text = False

    def feed(self, text: str) -> list[Piece]:
        """Take more text; the pieces that it completes."""
        if self._is_text:
            return [text]
        return self._decided(text, self._parser.feed(text))

    def close(self) -> list[Piece]:
        """The text has ended; what is left of it."""
        return [] if self._is_text else self._decided("", self._parser.close())

    def _decided(self, text: str, pieces: list[Piece]) -> list[Piece]:
        if self._undecided is None:
            return pieces
        self._undecided += text
        if not pieces:
            return []
        undecided, self._undecided = self._undecided, None
        self._is_text = isinstance(pieces[0], str)
        return [undecided] if self._is_text else pieces
