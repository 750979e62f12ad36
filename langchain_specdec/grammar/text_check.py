"""Whether a text that somebody else wrote has the form that a grammar asks for."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

import llguidance

from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.matching import JSON_AS_READ, matcher_of, one_line, source_of

# Parts of JSON that can be spelled in several ways: strings, numbers with an exponent or with zeros at the end of a
# fraction, and a zero with a sign.
_SPELLED = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?[eE][+-]?\d+|-?\d+\.\d*0(?![\d.eE])|-0(?![.\d])')
# The same, and at the end of a text that was cut: a string with part of an escape after it, or part of an exponent.
_SPELLED_OR_CUT = re.compile(
    r'"(?P<string>(?:[^"\\]|\\(?:[^u]|u[0-9a-fA-F]{4}))*)(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z'
    r"|(?P<number>-?\d[\d.]*)[eE][+-]?\Z|" + _SPELLED.pattern
)
_HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_SPACES = " \t\r\n"
# Longer texts are not looked at: half a second's work.
_MAX_BYTES = 2**20
# Bytes that are matched at a time; other threads run in between.
_STEP = 4096


@dataclass(frozen=True)
class Fit:
    """How far a text fits a grammar.

    Attributes:
        is_whole: Whether the whole text fits.
        is_begun: Whether all of it fits and more has to follow.
        num_fitting: Characters at its beginning that fit.
        failure: Why it could not be looked at to its end; empty where it could.
    """

    is_whole: bool
    is_begun: bool = False
    num_fitting: int = 0
    failure: str = ""


class TextCheck:
    """Says whether texts fit a grammar, in time and space that grow with their length only. May be used by any thread.

    It is the grammar that answers in this process are decoded under, with any white space in JSON, and any spelling of
    its numbers and strings; the order of properties counts.

    Args:
        grammar: The grammar.

    Raises:
        InvalidParameterError: The grammar cannot be followed, so no text can be checked.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._is_json = grammar.regex is None
        self._source = source_of(grammar, JSON_AS_READ, {})
        self._start()

    def fit(self, text: str) -> Fit:
        """How far a text fits. White space around JSON counts for nothing."""
        if not self._is_json:
            return self._matched(text)
        spaces = len(text) - len(text.lstrip(_SPACES))
        found = self._matched(text.strip(_SPACES))
        if not (found.is_whole or found.is_begun or found.failure):
            plain = _plain_json(text)
            if plain is not None and self._matched(plain).is_whole:
                return Fit(is_whole=True, num_fitting=len(text))
            part = _plain_part(text) if plain is None else None
            if part is not None and self._matched(part).is_begun:
                return Fit(is_whole=False, is_begun=True, num_fitting=len(text))
        return replace(found, num_fitting=found.num_fitting + spaces)

    def _start(self) -> llguidance.LLMatcher:
        return matcher_of(self._grammar, self._source, _bytes())

    def _matched(self, text: str) -> Fit:
        data = text.encode(errors="replace")
        if len(data) > _MAX_BYTES:
            return Fit(is_whole=False, failure=f"it is longer than {_MAX_BYTES} bytes")
        matcher = self._start()
        taken = 0
        while taken < len(data):
            step = data[taken : taken + _STEP]
            num = matcher.try_consume_tokens(list(step))
            taken += num
            if matcher.is_error():
                return Fit(is_whole=False, failure=one_line(matcher.get_error()))
            if num < len(step):
                return Fit(is_whole=False, num_fitting=len(data[:taken].decode(errors="ignore")))
        is_whole = matcher.is_accepting() or matcher.is_stopped()
        return Fit(is_whole, is_begun=not is_whole, num_fitting=len(text))


@lru_cache(maxsize=128)
def text_check(grammar: Grammar) -> TextCheck:
    """The check of a grammar, made once.

    Raises:
        InvalidParameterError: The grammar cannot be followed.
    """
    return TextCheck(grammar)


@lru_cache(maxsize=1)
def _bytes() -> llguidance.LLTokenizer:
    """A vocabulary of single bytes, whose ids are their values."""
    return llguidance.LLTokenizer("byte")


def _plain_json(text: str) -> str | None:
    """JSON with the plainest spelling of each number and string; None where it is none that can be read surely."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        named = dict(pairs)
        if len(named) < len(pairs):
            # Readers differ in which of two values counts.
            raise ValueError
        return named

    try:
        json.loads(text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=once)
        plain = _SPELLED.sub(lambda match: _plainly(match[0]), text)
        plain.encode()  # raises where an escape stands for half a character
    except (ValueError, RecursionError):
        return None
    return plain


def _plain_part(text: str) -> str | None:
    """The beginning of JSON in the plainest spelling; None where it is none that can be read surely."""

    def plainly(match: re.Match[str]) -> str:
        if (string := match["string"]) is not None:
            return _plainly(f'"{_HALF.sub("", string)}"')[:-1]
        return match["number"] or _plainly(match[0])

    try:
        plain = _SPELLED_OR_CUT.sub(plainly, text.strip(_SPACES))
        plain.encode()  # raises where an escape stands for half a character
    except ValueError:
        return None
    return plain


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError
    return number


def _plainly(part: str) -> str:
    if part.startswith('"'):
        # The grammar library takes this one character as an escape only.
        return json.dumps(json.loads(part), ensure_ascii=False).replace("\x7f", "\\u007f")
    if "e" in part.lower():
        # Of a float, since the digits of what an exponent alone says may fill the memory.
        part = format(Decimal(repr(_finite(part))), "f")
    if "." in part:
        part = part.rstrip("0").rstrip(".")
    return "0" if part == "-0" else part
