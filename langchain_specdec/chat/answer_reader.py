"""Reads what a model writes: thoughts, text and tool calls, in order."""

from __future__ import annotations

from collections.abc import Iterable

from langchain_specdec.chat.calls_or_object import CallsFirst
from langchain_specdec.chat.tool_calls import Piece, ToolCallParser
from langchain_specdec.completions.thoughts import Reasoning, Thoughts, ThoughtSplitter

ReplyPiece = Piece | Reasoning


class AnswerReader:
    """Takes a text in chunks of any size and gives back thoughts, and the texts and calls of the answer.

    A call that is only mentioned in a thought is none, and marks of thoughts within a call are part of it.

    Args:
        parser: Finds calls; None where all is text.
        thoughts: How thoughts stand in the text; None where there are none.
    """

    def __init__(self, parser: ToolCallParser | CallsFirst | None, thoughts: Thoughts | None) -> None:
        self._parser = parser
        self._splitter = ThoughtSplitter(thoughts) if thoughts is not None else None

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far has come to an end within a thought."""
        return self._splitter is not None and self._splitter.is_thinking

    @property
    def is_done(self) -> bool:
        """Whether the one call that was expected has come."""
        return self._parser is not None and self._parser.is_done

    def feed(self, text: str) -> list[ReplyPiece]:
        """Take more text; the pieces that it completes."""
        return self._read([text] if self._splitter is None else self._splitter.feed(text, self._is_in_call))

    def close(self) -> list[ReplyPiece]:
        """The text has ended; what is left of it."""
        pieces = [] if self._splitter is None else self._read(self._splitter.close(self._is_in_call))
        return pieces if self._parser is None else [*pieces, *self._parser.close()]

    def _read(self, parts: Iterable[str | Reasoning]) -> list[ReplyPiece]:
        pieces: list[ReplyPiece] = []
        for part in parts:
            # What stands before a mark is read before it is asked whether a call has begun.
            if isinstance(part, Reasoning) or self._parser is None:
                pieces.append(part)
            else:
                pieces += self._parser.feed(part)
        return pieces

    def _is_in_call(self) -> bool:
        return self._parser is not None and self._parser.is_in_call
