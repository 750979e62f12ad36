"""What all parsers of tool calls share: text is released, a mark and what follows it are held until a call is whole."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

from langchain_specdec.chat.tool_calls.values import BrokenToolCall, JsonExtent, ToolCall, calls_in, name_in

__all__ = ["BrokenToolCall", "Piece", "ToolCall", "ToolCallParser"]

Piece = str | ToolCall | BrokenToolCall

# JSON that begins a line, perhaps fenced as in Markdown; and what may become that.
_BARE = re.compile(r"^[ \t]*(?:```(?:json|tool_calls?)?[ \t]*\n\s*)?[{\[]", re.MULTILINE)
_BARE_BEGUN = re.compile(r"^[ \t]*(?:`{1,2}|```[a-z_]{0,10}[ \t]*(?:\n\s*)?)?\Z", re.MULTILINE)
# How an object that is a call begins.
_CALL_KEYS = ("name", "arguments", "parameters", "type", "function", "id")
_FENCE = "```"


class ToolCallParser(ABC):
    """Takes a text in chunks of any size and gives back text and calls, in order.

    Every decision waits until no further text could change it, so the pieces, with neighbouring texts joined, do not
    depend on where the chunks were cut. Text that may be the beginning of a mark is held back. White space between
    text and a call, or between calls, belongs to neither and is dropped. No text makes a parser raise.

    Args:
        tool_names: Names of the tools there are. JSON without a mark is a call only if it names one of them.
    """

    family: ClassVar[str]
    """Name of the format."""
    marks: ClassVar[tuple[str, ...]]
    """What begins a call, the usual one first."""
    inner_marks: ClassVar[tuple[str, ...]] = ()
    """Further marks within a call that a tokenizer may hold as special tokens."""
    takes_bare_json: ClassVar[bool] = False
    """Whether JSON at the beginning of a line that names a tool is a call without a mark."""

    def __init__(self, tool_names: Collection[str] = ()) -> None:
        self._names = frozenset(tool_names)
        self._mark_pattern = re.compile("|".join(re.escape(mark) for mark in self.marks))
        self._buffer = ""
        # White space at the end of the text so far; dropped if a call follows.
        self._space = ""
        self._is_line_start = True
        self._is_after_text = True
        # The mark of the call that has begun; "" for one without, None in text.
        self._mark: str | None = None
        self._start = 0
        self._extent = JsonExtent()

    def feed(self, text: str) -> list[Piece]:
        """Take more text; the pieces that it completes."""
        self._buffer += text
        return self._advance(is_end=False)

    def close(self) -> list[Piece]:
        """The text has ended; what is left of it."""
        pieces = self._advance(is_end=True)
        # White space at the end is text, if it is not all there is after a call.
        if self._space and self._is_after_text:
            pieces.append(self._space)
        self._space = ""
        return pieces

    @abstractmethod
    def _read_marked(self, mark: str, *, is_end: bool) -> list[Piece] | None:
        """Read from the buffer what follows a mark; None where more text is needed."""

    def _advance(self, *, is_end: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while True:
            if self._mark is None:
                is_stuck = not self._read_text(pieces, is_end=is_end)
            else:
                found = self._read_call(is_end=is_end)
                is_stuck = found is None
                self._take(found or [], pieces)
            if is_stuck:
                return pieces

    def _take(self, found: list[Piece], pieces: list[Piece]) -> None:
        for piece in found:
            if isinstance(piece, str):
                self._add_text(piece, pieces)
            else:
                self._space, self._is_after_text = "", False
                pieces.append(piece)

    def _add_text(self, text: str, pieces: list[Piece]) -> None:
        if not text:
            return
        self._is_line_start = text.endswith("\n")
        text = self._space + text
        stripped = text.rstrip()
        self._space = text[len(stripped) :]
        if stripped:
            pieces.append(stripped)
            self._is_after_text = True

    def _read_text(self, pieces: list[Piece], *, is_end: bool) -> bool:
        """Release text up to a call; whether one begins."""
        mark = self._mark_pattern.search(self._buffer)
        bare = self._find_bare(_BARE) if self.takes_bare_json else None
        begins = min((found.start() for found in (mark, bare) if found), default=None)
        if begins is None:
            keep = 0 if is_end else self._num_held()
            self._add_text(self._consume(len(self._buffer) - keep), pieces)
            return False
        self._add_text(self._consume(begins), pieces)
        if mark is not None and begins == mark.start():
            self._consume(len(mark[0]))
            self._mark, self._start = mark[0], 0
        elif bare is not None:
            self._mark, self._start = "", bare.end() - begins - 1
        self._extent = JsonExtent()
        return True

    def _find_bare(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        # "^" also matches where the buffer begins, which is not always the beginning of a line. What would match there
        # may hide a match that begins on the next line.
        start = 0 if self._is_line_start else self._buffer.find("\n") + 1
        return pattern.search(self._buffer, start) if start or self._is_line_start else None

    def _num_held(self) -> int:
        """How many characters at the end may be the beginning of a mark."""
        held = max(overlap(self._buffer, mark) for mark in self.marks)
        if self.takes_bare_json and (begun := self._find_bare(_BARE_BEGUN)):
            held = max(held, len(self._buffer) - begun.start())
        return held

    def _read_call(self, *, is_end: bool) -> list[Piece] | None:
        mark = self._mark or ""
        found = self._read_marked(mark, is_end=is_end) if mark else self._read_bare(is_end=is_end)
        if found is not None:
            self._mark = None
            if any(not isinstance(piece, str) for piece in found):
                # Another call may follow on the same line.
                self._is_line_start = True
        return found

    def _read_bare(self, *, is_end: bool) -> list[Piece] | None:
        """Read JSON without a mark: a call if it names a tool, else text."""
        if not _may_be_call(self._buffer[self._start : self._start + 200]):
            return [self._consume(self._start + 1)]
        if not self._extent.scan(self._buffer, self._start):
            if not is_end:
                return None
            name = name_in(self._buffer)
            if name not in self._names:
                return [self._consume(self._start + 1)]
            text = self._consume(len(self._buffer))[self._start :]
            return [BrokenToolCall(self.marks[0] + text, "The text ended within the call.", name)]
        end = self._extent.end
        if self._extent.is_broken:
            name = name_in(self._buffer[:end])
            if name not in self._names:
                return [self._consume(end)]
            if (line_end := self._buffer.find("\n", end)) < 0 and not is_end:
                return None
            text = self._consume(line_end if line_end >= 0 else len(self._buffer))[self._start :]
            return [BrokenToolCall(self.marks[0] + text, "A bracket does not match.", name)]
        calls = calls_in(self._buffer[self._start : end], self.marks[0])
        if not calls or any(call.name not in self._names for call in calls):
            return [self._consume(end)]
        if _FENCE in self._buffer[: self._start]:
            closing = self._skip_space(end)
            rest = self._buffer[closing : closing + len(_FENCE)]
            if _FENCE.startswith(rest) and rest != _FENCE and not is_end:
                return None
            end = closing + len(_FENCE) if rest == _FENCE else end
        elif (end := self._separator_end(end, is_end=is_end)) < 0:
            return None
        self._consume(end)
        return list(calls)

    def _separator_end(self, start: int, *, is_end: bool) -> int:
        """Where the next call begins if only semicolons or commas stand before it, else `start`; -1: not known yet."""
        position = start
        while position < len(self._buffer) and (self._buffer[position].isspace() or self._buffer[position] in ";,"):
            position += 1
        if position == len(self._buffer):
            return position if is_end else -1
        return position if self._buffer[position] == "{" else start

    def _skip_space(self, start: int) -> int:
        while start < len(self._buffer) and self._buffer[start].isspace():
            start += 1
        return start

    def _consume(self, count: int) -> str:
        text, self._buffer = self._buffer[:count], self._buffer[count:]
        return text


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark` and is not all of it."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


def _may_be_call(text: str) -> bool:
    head = "".join(text.split()).removeprefix("[")
    begins = [f'{{"{key}"' for key in _CALL_KEYS]
    return any(head.startswith(begin) or begin.startswith(head) for begin in begins)
