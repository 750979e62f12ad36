"""Thoughts of a model in the text that it writes: told from its answer as the text grows, however it is cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from langchain_specdec.completions.stop_strings import StopText, overlap
from langchain_specdec.grammar.text_patterns import one_of

# A quote that opens: a mark behind it is only mentioned.
_MENTIONING = re.compile(r"(?:^|[\s(\[{:,=])[`\"'\u201c]\Z")


@dataclass(frozen=True)
class Thoughts:
    """How thoughts stand in the text of a completion.

    Attributes:
        begins: Marks that begin one, each as good as the others.
        end: The mark that ends it.
        implied_ends: Texts that end it, too, where the model has forgotten that mark; they belong to what follows.
        strays: Marks that mean nothing, and are left out of the answer.
        is_open: Whether the prompt has begun one.
        is_single: Whether the text has one only, which comes first; what follows it has no marks.
        max_tokens: Most tokens of those before the answer, all but the last of an end mark that comes by itself
            included; the end mark is written then, with what follows it. None is without limit.
        closing: What ends a thought whose tokens are spent; the end mark is the last of it.
        following: What stands between the end of a thought and what a grammar or the model writes after it, where that
            is given.
        has_stops: Whether stop strings are looked for in thoughts, too.
        header_begins: Marks that begin a header of the answer, which is no part of its text; none where it has none.
        header_end: The mark that ends one.
        is_in_header: Whether the prompt has begun one.
        is_begun: Whether the prompt has begun the answer itself.
    """

    begins: tuple[str, ...]
    end: str
    strays: tuple[str, ...] = ()
    is_open: bool = False
    is_single: bool = False
    max_tokens: int | None = None
    closing: str = ""
    following: str = ""
    has_stops: bool = False
    header_begins: tuple[str, ...] = ()
    header_end: str = ""
    is_in_header: bool = False
    implied_ends: tuple[str, ...] = ()
    is_begun: bool = False


class Reasoning(NamedTuple):
    """A part of a thought.

    Attributes:
        text: The part.
        separator: What keeps it apart from the thought before, in a text of all thoughts; "" but for its first part.
    """

    text: str
    separator: str = ""


class _Part(NamedTuple):
    kind: Literal["answer", "thought", "mark"]
    text: str


def _never() -> bool:
    return False


class ThoughtScanner:
    """Follows marks in a growing text. All of the text is given back, and nothing else.

    What may still become a mark is held back, and no more. No text makes it raise.

    Args:
        thoughts: How thoughts stand in the text.
    """

    def __init__(self, thoughts: Thoughts) -> None:
        self._thoughts = thoughts
        self._held = ""
        self.is_thinking = thoughts.is_open
        """Whether the text so far has come to an end within a thought."""
        # Some models begin a thought once more that the prompt has begun.
        self._is_begin = thoughts.is_open
        self._has_more = True
        # The last characters since a mark, and whether any of them is no space.
        self._last = ""
        self._is_fresh = not thoughts.is_begun

    def feed(self, text: str, is_in_call: Callable[[], bool] = _never, *, is_end: bool = False) -> Iterator[_Part]:
        """Take more text; the parts of it that are decided. Read them all.

        Args:
            text: The text.
            is_in_call: Asked after each part: whether a call has begun, where marks are text.
            is_end: Whether nothing follows.
        """
        self._held += text
        while self._held:
            marks = self._marks()
            match = re.search(one_of(marks), self._held) if marks else None
            if match is None or self._may_grow(match, marks, is_end=is_end):
                # Where a mark may become a longer one, what stands before it is decided.
                size = len(self._held) - (0 if is_end else max((overlap(self._held, m) for m in marks), default=0))
                if match is not None:
                    size = match.start()
                yield from self._released(size)
                return
            if match.start():
                # Which marks mean something depends on what stands before them.
                yield from self._released(match.start())
            else:
                yield from self._marked(match[0], is_in_call)

    def _marks(self) -> Sequence[str]:
        """The marks that mean something here, longest first."""
        thoughts = self._thoughts
        marks: tuple[str, ...] = ()
        if self.is_thinking:
            # Before a form the end mark always comes, for it is forced.
            implied = () if thoughts.is_single else thoughts.implied_ends
            marks = (thoughts.end, *implied, *(thoughts.begins if self._is_begin else ()))
        elif self._has_more:
            # Some models end a thought once more that has ended, or that they do not think.
            again = (thoughts.end,) if self._is_fresh else ()
            marks = (*thoughts.begins, *thoughts.strays, *again)
        return sorted(marks, key=len, reverse=True)

    def _may_grow(self, match: re.Match[str], marks: Sequence[str], *, is_end: bool) -> bool:
        rest = self._held[match.start() :]
        return not is_end and any(mark.startswith(rest) and mark != match[0] for mark in marks)

    def _released(self, size: int) -> Iterator[_Part]:
        text = self._consume(size)
        if text:
            self._is_begin = self._is_begin and not text.strip()
            self._is_fresh = self._is_fresh and not text.strip()
            self._last = (self._last + text)[-2:]
            yield _Part("thought" if self.is_thinking else "answer", text)

    def _marked(self, mark: str, is_in_call: Callable[[], bool]) -> Iterator[_Part]:
        """Take a mark at the beginning of what is held."""
        thoughts = self._thoughts
        is_begin_again = self._is_begin and mark in thoughts.begins
        if self.is_thinking and mark != thoughts.end and not is_begin_again:
            if _MENTIONING.search(self._last):
                yield from self._released(len(mark))
                return
            # It is read once more, as part of what follows.
            mark = ""
        self._consume(len(mark))
        if self.is_thinking:
            self.is_thinking = is_begin_again
            self._has_more = is_begin_again or not thoughts.is_single
        elif is_in_call() or (mark in thoughts.begins and _MENTIONING.search(self._last)):
            self._last, self._is_fresh = mark[-2:], False
            yield _Part("answer", mark)
            return
        elif mark in thoughts.begins:
            self.is_thinking = self._is_begin = True
        self._last, self._is_fresh = "", True
        yield _Part("mark", mark)

    def _consume(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text


class ThoughtSplitter:
    """Tells thoughts from the answer in a growing text, without their marks and the white space around them.

    The thoughts, joined, and the answer, joined, are the same however the text is cut.

    Args:
        thoughts: How thoughts stand in the text.
    """

    def __init__(self, thoughts: Thoughts) -> None:
        self._scanner = ThoughtScanner(thoughts)
        # White space at the end of a thought, or at the beginning of the text, that may belong to nothing.
        self._space = ""
        # Whether nothing but white space has come since the last mark, or since the beginning.
        self._is_fresh = True
        self._has_thought = False
        # Whether a thought begins anew, and whether any has been read.
        self._is_new = True
        self._has_read = False

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far has come to an end within a thought."""
        return self._scanner.is_thinking

    def feed(self, text: str, is_in_call: Callable[[], bool] = _never) -> Iterator[str | Reasoning]:
        """Take more text; the parts that it completes. See `ThoughtScanner.feed`."""
        for part in self._scanner.feed(text, is_in_call):
            yield from self._read(part)

    def close(self, is_in_call: Callable[[], bool] = _never) -> Iterator[str | Reasoning]:
        """The text has ended; what is left of it."""
        for part in self._scanner.feed("", is_in_call, is_end=True):
            yield from self._read(part)
        if not self._scanner.is_thinking and self._space:
            yield self._space
        self._space = ""

    def _read(self, part: _Part) -> Iterator[str | Reasoning]:
        if part.kind == "mark":
            self._space, self._is_fresh = "", True
            # White space is dropped from here on: a thought has been, or begins.
            self._has_thought = self._is_new = True
        elif part.kind == "thought":
            yield from self._read_thought(part.text)
        else:
            yield from self._read_answer(part.text)

    def _read_thought(self, text: str) -> Iterator[Reasoning]:
        text = text.lstrip() if self._is_fresh else self._space + text
        stripped = text.rstrip()
        self._space = text[len(stripped) :]
        if stripped:
            separator = "\n\n" if self._is_new and self._has_read else ""
            self._has_read, self._is_new, self._is_fresh = True, False, False
            yield Reasoning(stripped, separator)
        elif self._is_fresh:
            self._space = ""

    def _read_answer(self, text: str) -> Iterator[str]:
        if self._is_fresh:
            text = text.lstrip() if self._has_thought else self._space + text
            self._space = ""
            if not text.strip():
                self._space = text
                return
            self._is_fresh = False
        yield text


class StopsOfAnswer:
    """`StopText` for a text with thoughts: stop strings are looked for in the answer only, and not in its headers.

    Args:
        stop: The stop strings.
        thoughts: How thoughts stand in the text.
    """

    def __init__(self, stop: Sequence[str], thoughts: Thoughts) -> None:
        self._thoughts = thoughts
        self._stop_text = StopText(stop)
        self._scanner = ThoughtScanner(thoughts)
        self._is_in_header = thoughts.is_in_header
        # The end of the answer so far, which may begin a mark of a header.
        self._held = ""

    @property
    def is_found(self) -> bool:
        """Whether a stop string was found."""
        return self._stop_text.is_found

    def add(self, text: str) -> str:
        """Text that is safe to release, see `StopText.add`."""
        return self._read(self._scanner.feed(text))

    def add_special(self, content: str) -> str:
        """The same for a special token, see `StopText.add_special`."""
        if self._scanner.is_thinking or self._is_in_header:
            return ""
        held, self._held = self._held, ""
        text = self._stop_text.add(held)
        return text if self.is_found else text + self._stop_text.add_special(content)

    def flush(self) -> str:
        """What was held back, up to a stop string in it."""
        text = self._read(self._scanner.feed("", is_end=True))
        return text if self.is_found else text + self._flushed()

    def _read(self, parts: Iterator[_Part]) -> str:
        released = ""
        for part in parts:
            if self.is_found:
                continue
            if part.kind == "answer":
                released += self._read_answer(part.text)
            else:
                # No stop string goes on behind a thought.
                released += self._flushed()
                if not self.is_found:
                    released += part.text
                self._is_in_header = False
        return released

    def _read_answer(self, text: str) -> str:
        """Text that is safe to release of an answer that goes on with this text."""
        thoughts, released = self._thoughts, ""
        self._held += text
        while self._held and not self.is_found:
            marks = (thoughts.header_end,) if self._is_in_header else thoughts.header_begins
            match = re.search(one_of(marks), self._held)
            size = match.start() if match else len(self._held) - max((overlap(self._held, m) for m in marks), default=0)
            before, self._held = self._held[:size], self._held[size:]
            if self._is_in_header:
                released += before
            else:
                released += self._stop_text.add(before)
            if match is None or self.is_found:
                break
            self._held = self._held[len(match[0]) :]
            # No stop string goes on behind a header either.
            released += self._stop_text.flush() + match[0]
            self._is_in_header = not self._is_in_header
        return released

    def _flushed(self) -> str:
        """What was held back of the answer."""
        held, self._held = self._held, ""
        text = held if self._is_in_header else self._stop_text.add(held)
        return text if self.is_found else text + self._stop_text.flush()


def stops_of(stop: Sequence[str], thoughts: Thoughts | None) -> StopText | StopsOfAnswer:
    """What looks for stop strings in a completion, wherever they count."""
    if not stop or thoughts is None or thoughts.has_stops:
        return StopText(stop)
    return StopsOfAnswer(stop, thoughts)
