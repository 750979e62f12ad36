"""Answers that are tool calls or an object: a response format beside tools that the model may call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_specdec.chat.structured_output import CheckGrammar, OutputForm, call_of
from langchain_specdec.chat.tool_calls import Piece, ToolCallParser
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.call_parts import Part
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import resolved


@dataclass(frozen=True)
class CallsOrObjectForm(OutputForm):
    """The form of an answer that is calls of tools, or the object of a response format, whose schema it bears.

    Attributes:
        call: One call.
        parser: Reads calls, and knows what stands around them.
        separator: Text between two calls; None where there is one only.
    """

    call: Part = field(kw_only=True)
    parser: type[ToolCallParser] = field(kw_only=True)
    separator: str | None = field(kw_only=True)

    @property
    def grammar(self) -> Grammar:
        """What constrains the whole answer, the marks of calls included."""
        parser = self.parser
        return CallGrammar(
            call=self.call,
            begin=parser.call_begin,
            separator=self.separator,
            end=parser.call_end,
            object=self.schema,
            object_begin=parser.answer_begin,
        )


def form_of_calls_or_object(
    response: OutputForm,
    tools: Sequence[Mapping[str, Any]],
    parser: type[ToolCallParser],
    check: CheckGrammar,
    *,
    takes_one_call: bool = False,
) -> CallsOrObjectForm:
    """The form of an answer that is calls of these tools, or one call, as the parser reads them, or the object.

    Args:
        response: The form of the object.
        tools: Tools as OpenAI describes them.
        parser: Reads the calls.
        check: Raises where a grammar cannot be held; what it refuses of a tool's schema is left out.
        takes_one_call: Whether the answer is one call at most.

    Raises:
        InvalidParameterError: The object can look like a call of this family, which has no mark.
    """
    keys = {"name", parser.arguments_key}
    if not parser.call_begin and _may_have_just(keys, dict(response.schema), response.schema):
        msg = (
            f"The response format can have just the properties 'name' and {parser.arguments_key!r}, as the calls of "
            f"this model have, and nobody could tell them apart. Rename one, or add another that is required."
        )
        raise InvalidParameterError(msg)
    call = call_of(tools, parser, check)
    separator = None if takes_one_call else parser.call_separator
    return CallsOrObjectForm(response.schema, call=call, parser=parser, separator=separator)


def _may_have_just(keys: Collection[str], schema: Any, root: Mapping[str, Any], depth: int = 20) -> bool:
    """Whether an object with these properties and no others fits a schema that names them."""
    if not isinstance(schema, dict) or depth == 0:
        return False
    schema = resolved(root, schema)
    members = [member for keyword in ("anyOf", "oneOf", "allOf") for member in schema.get(keyword, ())]
    is_named = set(keys) <= set(schema.get("properties", ())) and set(keys) >= set(schema.get("required", ()))
    return is_named or any(_may_have_just(keys, member, root, depth - 1) for member in members)


class CallsFirst:
    """Reads an answer that begins with calls, or has none: strings of an object may look like calls.

    Args:
        parser: Reads the calls.
    """

    def __init__(self, parser: ToolCallParser) -> None:
        self._parser = parser
        parser.expect_grammar()
        # What came before it was known whether the answer is calls; None once it is.
        self._undecided: str | None = ""
        self._is_text = False

    @property
    def is_done(self) -> bool:
        """Whether the one call that was expected has come."""
        return self._parser.is_done and not self._is_text

    @property
    def is_in_call(self) -> bool:
        """Whether a call has begun in the text so far."""
        return self._parser.is_in_call and not self._is_text

    def feed(self, text: str) -> list[Piece]:
        """Take more text; the pieces that it completes."""
        if self._is_text:
            return [text]
        return self._decided(text, self._parser.feed(text))

    def close(self, *, is_whole: bool = False) -> list[Piece]:
        """The text has ended; what is left of it. See `ToolCallParser.close`."""
        return [] if self._is_text else self._decided("", self._parser.close(is_whole=is_whole))

    def _decided(self, text: str, pieces: list[Piece]) -> list[Piece]:
        if self._undecided is None:
            return pieces
        self._undecided += text
        if not pieces:
            return []
        undecided, self._undecided = self._undecided, None
        self._is_text = isinstance(pieces[0], str)
        if not self._is_text:
            return pieces
        # What some families write before an answer is no part of it.
        begin = self._parser.answer_begin
        return [undecided.rpartition(begin)[2] if begin else undecided]
