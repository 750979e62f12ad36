"""Values and calls in the notation of Python, as models write them: keyword arguments, either kind of quotes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[^\W\d][\w.\-]*")
_KEY = re.compile(r"[^\s=(),\[\]{}\"']+")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_STRING = re.compile(r"""(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_PLAIN = "\\'\"/"
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_MAX_DEPTH = 100

T = TypeVar("T")


def read_python(text: str) -> Any:
    """The value of a text.

    Raises:
        ValueError: It is none that JSON has too.
    """
    reader = _Reader(text)
    value = reader.value(0)
    reader.end()
    return value


def read_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The names and arguments of calls, as `[f(a=1), g(b="x")]`, or of one call.

    Raises:
        ValueError: They are none.
    """
    reader = _Reader(text)
    calls = reader.items("[", "]", reader.call) if reader.at("[") else [reader.call()]
    reader.end()
    return calls


class _Reader:
    """Reads one text from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def at(self, sign: str) -> bool:
        self._match(_SPACE)
        return self._text.startswith(sign, self._position)

    def end(self) -> None:
        if self._match(_SPACE) is not None and self._position < len(self._text):
            self._fail("more text follows")

    def items(self, opening: str, closing: str, item: Callable[[], T]) -> list[T]:
        self._expect(opening)
        items: list[T] = []
        while not self._take(closing):
            if items:
                self._expect(",")
                # Python allows one behind the last item.
                if self._take(closing):
                    break
            items.append(item())
        return items

    def call(self) -> tuple[str, dict[str, Any]]:
        self.at("")
        name = self._match(_NAME)
        if name is None:
            self._fail("a name of a tool is missing")
        return name[0], self._named(self.items("(", ")", self._argument))

    def value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            self._fail("it is nested too deeply")
        for opening, closing in (("[", "]"), ("(", ")")):
            if self.at(opening):
                return self.items(opening, closing, lambda: self.value(depth + 1))
        if self.at("{"):
            return self._named(self.items("{", "}", lambda: self._pair(depth + 1)))
        if (string := self._match(_STRING)) is not None:
            return _unescaped(string[1] if string[1] is not None else string[2])
        if (number := self._match(_NUMBER)) is not None:
            digits = number[0]
            return int(digits) if digits.lstrip("+-").isdigit() else float(digits)
        if (name := self._match(_NAME)) is not None and name[0] in _WORDS:
            return _WORDS[name[0]]
        return self._fail("no value")

    def _argument(self) -> tuple[str, Any]:
        self.at("")
        name = self._match(_KEY)
        if name is None or not self._take("="):
            self._fail("an argument has no name")
        return name[0], self.value(0)

    def _pair(self, depth: int) -> tuple[str, Any]:
        key = self.value(depth)
        if not isinstance(key, str):
            self._fail("a key is no text")
        self._expect(":")
        return key, self.value(depth)

    def _named(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        named = dict(pairs)
        if len(named) < len(pairs):
            self._fail("a name is there twice")
        return named

    def _take(self, sign: str) -> bool:
        if not self.at(sign):
            return False
        self._position += len(sign)
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            self._fail(f"{sign!r} is missing")

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._position)
        if match is not None:
            self._position = match.end()
        return match

    def _fail(self, reason: str) -> NoReturn:
        msg = f"{reason} at character {self._position + 1}"
        raise ValueError(msg)


def _unescaped(text: str) -> str:
    """A string without its escapes; pairs of surrogates are one character."""

    def plain(match: re.Match[str]) -> str:
        code = match[1] or match[2]
        if code:
            return chr(int(code, 16))
        return match[3] if match[3] in _PLAIN else _ESCAPED.get(match[3], match[0])

    unescaped = _ESCAPE.sub(plain, text)
    return unescaped.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if "\\u" in text else unescaped
