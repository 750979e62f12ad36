"""Reads what a model writes: thoughts, text and tool calls, in order."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from langchain_specdec.chat.calls_or_object import CallsFirst
from langchain_specdec.chat.tool_calls import Piece, ToolCall, ToolCallParser
from langchain_specdec.completions.thoughts import Reasoning, Thoughts, ThoughtSplitter

ReplyPiece = Piece | Reasoning


class AnswerReader:
    """Takes a text in chunks of any size and gives back thoughts, and the texts and calls of the answer.

    A call that is only mentioned in a thought is none, and marks of thoughts within a call are part of it. Where the
    model ends its text behind a call, within a thought, it has forgotten to end that: the call is meant.

    Args:
        parser: Finds calls; None where all is text.
        thoughts: How thoughts stand in the text; None where there are none.
    """

    def __init__(self, parser: ToolCallParser | CallsFirst | None, thoughts: Thoughts | None) -> None:
        self._parser = parser
        self._splitter = ThoughtSplitter(thoughts) if thoughts is not None else None
        # The thought that was read last.
        self._thought: list[str] = []

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

    def close(self, *, is_whole: bool = False) -> list[ReplyPiece]:
        """The text has ended; what is left of it.

        Args:
            is_whole: Whether the model has ended it.
        """
        pieces = [] if self._splitter is None else self._read(self._splitter.close(self._is_in_call))
        if self._parser is not None:
            pieces += self._parser.close(is_whole=is_whole)
        return [*pieces, *self._calls_of_thought()] if is_whole and self.is_thinking else pieces

    def _calls_of_thought(self) -> list[ReplyPiece]:
        """The calls at the very end of the thought."""
        if not isinstance(self._parser, ToolCallParser):
            return []
        read = [*self._parser.feed("".join(self._thought)), *self._parser.close()]
        # Of one call that was expected nobody knows whether it is the last.
        last = [] if self._parser.is_done else reversed(read)
        calls: list[ReplyPiece] = [*takewhile(lambda piece: isinstance(piece, ToolCall), last)]
        return calls[::-1]

    def _read(self, parts: Iterable[str | Reasoning]) -> list[ReplyPiece]:
        pieces: list[ReplyPiece] = []
        for part in parts:
            if isinstance(part, Reasoning):
                if part.separator:
                    self._thought.clear()
                self._thought.append(part.text)
            # What stands before a mark is read before it is asked whether a call has begun.
            if isinstance(part, Reasoning) or self._parser is None:
                pieces.append(part)
            else:
                pieces += self._parser.feed(part)
        return pieces

    def _is_in_call(self) -> bool:
        return self._parser is not None and self._parser.is_in_call
