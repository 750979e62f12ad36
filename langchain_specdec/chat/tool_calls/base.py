"""What all parsers of tool calls share: text is released, a mark and what follows it are held until a call is whole."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from langchain_specdec.chat.tool_calls.argument_types import Tell
from langchain_specdec.chat.tool_calls.values import BrokenToolCall, JsonExtent, ToolCall, calls_in, load_json, name_in
from langchain_specdec.completions.stop_strings import overlap
from langchain_specdec.grammar.call_parts import InOrder, Json, Part, Text

Piece = str | ToolCall | BrokenToolCall
Form = Literal["json", "parts", "none"]
Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each tool's arguments, by its name."""

# JSON that begins a line, perhaps fenced as in Markdown; and what may become that.
_BARE = re.compile(r"^[ \t]*(?:```(?:json|tool_calls?)?[ \t]*\n\s*)?[{\[]", re.MULTILINE)
_BARE_BEGUN = re.compile(r"^[ \t]*(?:`{1,2}|```[a-z_]{0,10}[ \t]*(?:\n\s*)?)?\Z", re.MULTILINE)
# How an object that is a call begins.
_CALL_KEYS = ("name", "arguments", "parameters", "type", "function", "id")
_FENCE = "```"
# A word that may be a name, and what shows that it has ended.
_WORD = re.compile(r"([^\s\[\]{}()<>`'\"\u201c\u201d]+)(.?)", re.DOTALL)


class ToolCallParser(ABC):
    """Takes a text in chunks of any size and gives back text and calls, in order.

    Every decision waits until no further text could change it, so the pieces, with neighbouring texts joined, do not
    depend on where the chunks were cut. Text that may be the beginning of a mark is held back. White space between
    text and a call, or between calls, belongs to neither and is dropped. No text makes a parser raise.

    A text may name a mark. It begins a call only where what follows looks like the beginning of one, also a broken one.

    Args:
        schemas: The tools there are. What has no mark is a call only if it names one of them.
    """

    mark: ClassVar[str]
    """What begins a call."""
    further_marks: ClassVar[tuple[str, ...]] = ()
    """Other texts that begin one, or that are no part of the text."""
    inner_marks: ClassVar[tuple[str, ...]] = ()
    """Further marks within a call that a tokenizer may hold as special tokens."""
    call_begin: ClassVar[str] = ""
    """What stands before the JSON of a call, as the templates write the calls of earlier turns."""
    call_openings: ClassVar[tuple[str, ...]] = ("{", "[")
    """What may follow the mark of a call, beside the name of a tool."""
    name_followers: ClassVar[tuple[str, ...]] = ()
    """What has to follow one word behind the mark that is the name of no tool."""
    call_separator: ClassVar[str | None] = None
    """What stands between two calls of one answer; None where the family writes one only."""
    call_end: ClassVar[str] = ""
    """What stands after it."""
    answer_begin: ClassVar[str] = ""
    """What stands before an answer that is no call."""
    form: ClassVar[Form] = "json"
    """How a grammar writes a call: as one JSON object with a name, of `call_part`, or not at all."""
    call_frame: ClassVar[tuple[str, str, str]] = ("", "", "")
    """What stands before a tool's name, between that and JSON of arguments, and after these, if calls are so made."""
    holds_schemas: ClassVar[bool] = True
    """Whether that grammar holds all of a schema that one of JSON does."""
    arguments_key: ClassVar[str] = "arguments"
    """Key of the arguments in that JSON; `name` is that of the tool."""
    takes_bare_calls: ClassVar[bool] = False
    """Whether what looks like a call at the beginning of a line, and names a tool, is one without a mark."""

    # How a call without a mark begins, from the beginning of its line; and what may become that.
    _bare: re.Pattern[str] = _BARE
    _bare_begun: re.Pattern[str] = _BARE_BEGUN
    # Whether a call is written in the notation of Python.
    _is_python = False

    def __init__(self, schemas: Schemas | None = None) -> None:
        self._schemas = schemas or {}
        self._names = frozenset(self._schemas)
        self._buffer = ""
        # The mark that was found.
        self._mark = self.mark
        # White space at the end of the text so far; dropped if a call follows.
        self._space = ""
        self._is_line_start = True
        self._is_after_text = True
        # Whether the call that has begun has a mark; None in text.
        self._is_marked: bool | None = None
        # Whether the mark is known to begin a call.
        self._is_meant = False
        self._is_whole = False
        self._start = 0
        self._extent = JsonExtent()
        self._takes_bare_calls = self.takes_bare_calls
        self._takes_one = False
        self.is_done = False
        """Whether the one call that was expected has come; what follows is dropped."""
        # The keys that bare JSON has to have; None where its name alone decides.
        self._bare_keys: frozenset[str] | None = None

    def expect_grammar(self) -> None:
        """Expect calls in just the form that a grammar gave them: what only looks like one is text."""
        # Where a grammar writes marks, JSON without one is no call.
        self._takes_bare_calls = self.takes_bare_calls and not self.call_begin
        self._bare_keys = frozenset({"name", self.arguments_key})

    def expect_one_call(self) -> None:
        """Expect no more than one call: it is given back as soon as it is whole, also of a list, and is the last."""
        self._takes_one = True

    def feed(self, text: str) -> list[Piece]:
        """Take more text; the pieces that it completes."""
        self._buffer += text
        return self._advance(is_end=False)

    def close(self, *, is_whole: bool = False) -> list[Piece]:
        """The text has ended; what is left of it.

        Args:
            is_whole: Whether the model has ended it: a mark that nothing follows is text then, and a call else.
        """
        self._is_whole = is_whole
        pieces = self._advance(is_end=True)
        # White space at the end belongs to the text before it; after a call it is dropped.
        if self._space and self._is_after_text:
            pieces.append(self._space)
        self._space = ""
        return pieces

    def skip(self, text: str) -> bool:
        """Take the text that the answer goes on with, before any other. Nothing of it is given back.

        Returns:
            Whether it is text to its end; False where a call stands in it, or may have begun.
        """
        is_text = all(isinstance(piece, str) for piece in self.feed(text)) and self._is_marked is None
        self._buffer = self._space = ""
        self._is_line_start = not text.rpartition("\n")[2].strip(" \t")
        return is_text

    @property
    def is_in_call(self) -> bool:
        """Whether a call has begun in the text so far: other marks in it are part of its arguments."""
        return self._is_marked is not None

    @classmethod
    def is_taught_by(cls, template: str) -> bool:
        """Whether a chat template teaches its model to write calls so."""
        return cls.mark in template

    @classmethod
    def call_part(cls, name: str, parameters: Mapping[str, Any], tell: Tell) -> Part:  # noqa: ARG003 - for others
        """How a call of a tool is written, without what stands around all calls.

        Args:
            name: The tool's name.
            parameters: The schema of its arguments, which a grammar of JSON holds.
            tell: Is told what of the schema is left out.
        """
        before, between, after = cls.call_frame
        return InOrder((Text(f"{before}{name}{between}"), Json(parameters), Text(after)))

    @classmethod
    def is_mark(cls, text: str) -> bool:
        """Whether a special token is part of the format, so that the parser has to see it."""
        return text in (cls.mark, *cls.further_marks, *cls.inner_marks)

    @abstractmethod
    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        """Read from the buffer what follows a mark; None where more text is needed."""

    def _advance(self, *, is_end: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while not self.is_done:
            if self._is_marked is None:
                is_stuck = not self._read_text(pieces, is_end=is_end)
            else:
                read = self._read_call(is_end=is_end)
                is_stuck = read is None
                self._take(read or [], pieces)
            if is_stuck:
                return pieces
        self._buffer = self._space = ""
        return pieces

    def _take(self, read: list[Piece], pieces: list[Piece]) -> None:
        for piece in read:
            if isinstance(piece, str):
                self._add_text(piece, pieces)
            else:
                self._space, self._is_after_text = "", False
                pieces.append(piece)
                if self._takes_one:
                    self.is_done = True
                    return

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
        marked, self._mark = self._find_mark()
        bare = self._find_bare(self._bare) if self._takes_bare_calls else None
        if marked < 0 and bare is None:
            keep = 0 if is_end else self._num_held()
            self._add_text(self._consume(len(self._buffer) - keep), pieces)
            return False
        self._is_marked, self._is_meant = bare is None or 0 <= marked <= bare.start(), False
        if bare is None or self._is_marked:
            self._add_text(self._consume(marked), pieces)
            self._consume(len(self._mark))
        else:
            self._mark = self.mark
            self._add_text(self._consume(bare.start()), pieces)
            self._start = bare.end() - bare.start() - 1
        # A list is in no form that a grammar gives calls without marks.
        takes_first = self._takes_one and (self._is_marked or self._bare_keys is None)
        self._extent = JsonExtent(takes_first=takes_first, is_python=self._is_python)
        return True

    def _find_mark(self) -> tuple[int, str]:
        """Where the first mark begins, and which it is; -1 where there is none."""
        marks = (self.mark, *self.further_marks)
        found = [(self._buffer.find(mark), -len(mark), mark) for mark in marks]
        position, _, mark = min((place for place in found if place[0] >= 0), default=(-1, 0, self.mark))
        return position, mark

    def _find_bare(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        # "^" also matches at the beginning of the buffer, which may be within a line. So the search begins on the next
        # line then: a match within this line would hide one there.
        start = 0 if self._is_line_start else self._buffer.find("\n") + 1
        return pattern.search(self._buffer, start) if start or self._is_line_start else None

    def _num_held(self) -> int:
        """How many characters at the end may be the beginning of a mark."""
        held = max(overlap(self._buffer, mark) for mark in (self.mark, *self.further_marks))
        if self._takes_bare_calls and (begun := self._find_bare(self._bare_begun)):
            held = max(held, len(self._buffer) - begun.start())
        return held

    def _read_call(self, *, is_end: bool) -> list[Piece] | None:
        read: list[Piece] | None
        if self._is_marked and not self._is_meant:
            meant = self._begins_call(is_end=is_end)
            if meant is None:
                return None
            self._is_meant = meant
        if self._is_marked:
            read = self._read_marked(is_end=is_end) if self._is_meant else [self._mark]
        else:
            read = self._read_bare(is_end=is_end)
        if read is not None:
            self._is_marked = None
            if any(not isinstance(piece, str) for piece in read):
                # Another call may follow on the same line.
                self._is_line_start = True
        return read

    def _begins_call(self, *, is_end: bool) -> bool | None:
        """Whether a call follows the mark, which a text may only name; None: not known yet."""
        return self._mark != self.mark or self._opens_with(self.call_openings, self.name_followers, is_end=is_end)

    def _opens_with(self, openings: Sequence[str], followers: Sequence[str] = (), *, is_end: bool) -> bool | None:
        """Whether the buffer begins with one of these, the name of a tool, or a word and a follower, but for space."""
        rest = self._buffer.lstrip()
        if not rest:
            # What was cut off is a call.
            return not self._is_whole if is_end else None
        word = _WORD.match(rest)
        if rest.startswith(tuple(openings)) or (word and word[1] in self._names and (is_end or word[2])):
            return True
        if any(opening.startswith(rest) for opening in (*openings, *self._names)):
            return True if is_end else None
        behind = rest[word.end(1) :].lstrip() if word else rest
        if word is None or behind.startswith(tuple(followers)):
            return word is not None
        return None if not is_end and any(follower.startswith(behind) for follower in followers) else False

    def _read_bare(self, *, is_end: bool) -> list[Piece] | None:
        """Read JSON without a mark: a call if it names a tool, else text."""
        if not _may_be_call(self._buffer[self._start : self._start + 200]):
            return [self._consume(self._start + 1)]
        if not self._extent.scan(self._buffer, self._start):
            if not is_end:
                return None
            name = name_in(self._buffer)
            if name not in self._names or not self._is_expected(self._buffer[self._start :]):
                return [self._consume(self._start + 1)]
            text = self._consume(len(self._buffer))[self._start :]
            return [BrokenToolCall(self._mark + text, "The text ended within the call.", name)]
        end = self._extent.end
        if not self._is_expected(self._buffer[self._start : end]):
            return [self._consume(end)]
        if self._extent.is_broken:
            name = name_in(self._buffer[:end])
            if name not in self._names:
                return [self._consume(end)]
            if (line_end := self._buffer.find("\n", end)) < 0 and not is_end:
                return None
            text = self._consume(line_end if line_end >= 0 else len(self._buffer))[self._start :]
            return [BrokenToolCall(self._mark + text, "A bracket does not match.", name)]
        calls = self._calls_in(self._buffer[self._start : end])
        if not calls or any(call.name not in self._names for call in calls):
            if self._is_item(self._buffer[self._start : end]):
                # The list is no call, whatever its other items look like.
                self._extent = JsonExtent()
                return self._read_bare(is_end=is_end)
            return [self._consume(end)]
        if not self._takes_one and (end := self._bare_end(end, is_end=is_end)) < 0:
            return None
        self._consume(end)
        return list(calls)

    def _bare_end(self, end: int, *, is_end: bool) -> int:
        """Where bare JSON ends with its fence, or with what separates it from the next call; -1: not known yet."""
        if _FENCE not in self._buffer[: self._start]:
            return self._separator_end(end, is_end=is_end)
        closing = self._skip_space(end)
        rest = self._buffer[closing : closing + len(_FENCE)]
        if _FENCE.startswith(rest) and rest != _FENCE and not is_end:
            return -1
        return closing + len(_FENCE) if rest == _FENCE else end

    def _is_expected(self, text: str) -> bool:
        """Whether bare JSON can be a call, where it has to be just as a grammar writes it."""
        if self._bare_keys is None:
            return True
        try:
            value = load_json(text)
        except ValueError:
            return f'"{self.arguments_key}"' in text
        return isinstance(value, dict) and value.keys() == self._bare_keys

    def _read_json(self, start: int, *, is_end: bool, is_separated: bool = False) -> list[Piece] | None:
        """Read the calls of the JSON that begins at `start`, and where it is separated from the next, up to that."""
        if not self._extent.scan(self._buffer, start):
            return self._unfinished(is_end=is_end)
        end = following = self._extent.end
        if self._extent.is_broken:
            return [self._broken(end, "A bracket does not match.")]
        if is_separated and not self._takes_one and (following := self._separator_end(end, is_end=is_end)) < 0:
            return None
        return list(self._calls_in(self._consume(following)[start:end]))

    def _calls_in(self, text: str) -> list[ToolCall | BrokenToolCall]:
        """The calls of JSON that has ended, as a whole or with the first item of a list."""
        return calls_in(text[1:] if self._is_item(text) else text, self._mark)

    def _is_item(self, text: str) -> bool:
        return self._takes_one and text.startswith("[") and text.endswith("}")

    def _unfinished(self, *, is_end: bool) -> list[Piece] | None:
        """Wait for more text; a call that gets none is broken."""
        return [self._broken(len(self._buffer), "The text ended within the call.")] if is_end else None

    def _broken(self, end: int, error: str) -> BrokenToolCall:
        text = self._consume(end)
        return BrokenToolCall(self._mark + text, error, self._name_in(text))

    def _name_in(self, text: str) -> str | None:
        """The name in a call that cannot be read."""
        return name_in(text)

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


def _may_be_call(text: str) -> bool:
    head = "".join(text.split()).removeprefix("[")
    begins = [f'{{"{key}"' for key in _CALL_KEYS]
    return any(head.startswith(begin) or begin.startswith(head) for begin in begins)
