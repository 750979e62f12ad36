"""Parts of which the calls of a family are written: fixed text, JSON, raw text, and how these follow each other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_specdec.grammar.text_patterns import one_of

ANY_TEXT = "(?s:.*)"
"""The pattern of any text."""


@dataclass(frozen=True)
class Text:
    """Fixed text; special tokens in it are meant as such."""

    text: str


@dataclass(frozen=True)
class Json:
    """JSON that fits a schema."""

    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Raw:
    """Text that matches patterns, up to a text that does not stand in it, or rather whose last part does not.

    Attributes:
        end: What ends it: `mark`, after what has to stand before that.
        mark: The part of `end` that the text cannot hold.
        patterns: Regular expressions of the whole text, as llguidance knows them.
    """

    end: str
    mark: str
    patterns: tuple[str, ...] = (ANY_TEXT,)


@dataclass(frozen=True)
class InOrder:
    """Parts one after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Either:
    """One of several parts."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Maybe:
    """A part or nothing."""

    part: Part


@dataclass(frozen=True)
class Repeated:
    """A part any number of times: `least` at least, `most` at most where that is given."""

    part: Part
    least: int = 0
    most: int | None = None


Part = Text | Json | Raw | InOrder | Either | Maybe | Repeated


def in_order(*parts: Part) -> Part:
    """Parts one after the other."""
    return parts[0] if len(parts) == 1 else InOrder(parts)


def either(parts: Sequence[Part]) -> Part:
    """One of several parts."""
    return parts[0] if len(parts) == 1 else Either(tuple(parts))


def listed(items: Sequence[tuple[Part, bool]], separator: str) -> Part:
    """Items in their order, with a text between any two that are there.

    Args:
        items: The items, and whether each has to be there.
        separator: The text.
    """
    first_needed = next((index for index, (_, is_needed) in enumerate(items) if is_needed), None)
    between = Text(separator)
    if first_needed is not None:
        before = [Maybe(in_order(item, between)) for item, _ in items[:first_needed]]
        return in_order(*before, items[first_needed][0], *_following(items[first_needed + 1 :], between))
    begun = [in_order(item, *_following(items[index + 1 :], between)) for index, (item, _) in enumerate(items)]
    return Maybe(either(begun)) if begun else Text("")


def _following(items: Sequence[tuple[Part, bool]], between: Text) -> list[Part]:
    return [in_order(between, item) if is_needed else Maybe(in_order(between, item)) for item, is_needed in items]


def parts_in(part: Part) -> Iterator[Part]:
    """A part, and all parts within it."""
    yield part
    inner = part.parts if isinstance(part, (InOrder, Either)) else ()
    if isinstance(part, (Maybe, Repeated)):
        inner = (part.part,)
    for other in inner:
        yield from parts_in(other)


class PartWriter:
    """Writes parts in llguidance's variant of Lark.

    Args:
        schema_text: Writes a schema as the compiler wants it.
        special_ids: Special tokens by their text, whose spelling is no text to a grammar.

    Attributes:
        rules: The rules that what was written refers to.
    """

    def __init__(self, schema_text: Callable[[Mapping[str, Any]], str], special_ids: Mapping[str, int]) -> None:
        self._schema_text = schema_text
        self._special_ids = special_ids
        self.rules: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def write(self, part: Part) -> str:
        """The part as an expression."""
        if isinstance(part, Text):
            return self.fixed(part.text) or '""'
        if isinstance(part, Json):
            return self._rule("json", f"%json {self._schema_text(part.schema)}")
        if isinstance(part, Raw):
            return self._raw(part)
        if isinstance(part, InOrder):
            return " ".join(self.write(inner) for inner in part.parts)
        if isinstance(part, Either):
            return f"({' | '.join(self.write(inner) for inner in part.parts)})"
        if isinstance(part, Maybe):
            return f"({self.write(part.part)})?"
        most = "" if part.most is None else part.most
        return f"({self.write(part.part)}){{{part.least},{most}}}"

    def fixed(self, text: str) -> str:
        """Fixed text; empty where there is none."""
        pieces = re.split(f"({one_of(self._special_ids)})", text)
        return " ".join(
            f"<[{self._special_ids[p]}]>" if p in self._special_ids else json.dumps(p, ensure_ascii=False)
            for p in pieces
            if p
        )

    def _raw(self, part: Raw) -> str:
        texts = [f"/{pattern}/" for pattern in part.patterns]
        if part.mark in self._special_ids:
            # No text holds a special token, and no rule of a text is empty.
            text = f"({self._rule('RAW', ' & '.join([*texts, '/(?s:.+)/']))})"
            return f"{text}{'?' if all(map(_takes_nothing, part.patterns)) else ''} {self.fixed(part.end)}"
        without_mark = f"~/(?s:.*){_escaped(part.mark)}(?s:.*)/"
        return self._rule("RAW", f"({' & '.join([*texts, without_mark])}) {json.dumps(part.end, ensure_ascii=False)}")

    def _rule(self, kind: str, body: str) -> str:
        if body not in self._names:
            self._names[body] = name = f"{kind}{len(self.rules)}"
            self.rules[name] = body
        return self._names[body]


def _takes_nothing(pattern: str) -> bool:
    """Whether an empty text matches a pattern."""
    try:
        return re.fullmatch(pattern, "") is not None
    except re.error:  # Rust's patterns are not all Python's
        return False


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
