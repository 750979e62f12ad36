"""JSON in the text of a model: where it ends, and what calls a value holds."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

_CLOSING = {"{": "}", "[": "]"}
_CLOSING_IN_PYTHON = {**_CLOSING, "(": ")"}
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]+)"')
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ToolCall:
    """A call that the model wrote.

    Attributes:
        name: The tool's name.
        arguments: Its arguments.
        id: The id that the model gave the call, where its format has one.
    """

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class BrokenToolCall:
    """Text that was meant as a call and is none.

    Attributes:
        text: The text as the model wrote it, from the mark that begins a call.
        error: What is wrong with it.
        name: The tool's name, if that much can be read.
    """

    text: str
    error: str
    name: str | None = None


class JsonExtent:
    """Finds the end of a JSON object or array in a text that grows; brackets within strings do not count.

    Args:
        takes_first: Whether an array ends with its first item.
        is_python: Whether it is written in Python instead, which has parentheses and a second kind of quotes.
    """

    def __init__(self, *, takes_first: bool = False, is_python: bool = False) -> None:
        self._takes_first = takes_first
        self._closing = _CLOSING_IN_PYTHON if is_python else _CLOSING
        self._quotes = "\"'" if is_python else '"'
        self._position = 0
        self._open: list[str] = []
        # The quote that the string began with; empty outside of strings.
        self._quote = ""
        self._is_escaped = False
        self.end = -1
        """Where the value ends, once it does."""
        self.is_broken = False
        """Whether a bracket at `end - 1` closes what was never opened."""

    def scan(self, text: str, start: int = 0) -> bool:
        """Go on to the end of the text; whether the value has ended.

        Args:
            text: What was scanned before, and more.
            start: Where the value begins.
        """
        position = max(self._position, start)
        while self.end < 0 and position < len(text):
            character = text[position]
            position += 1
            if self._quote:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == self._quote:
                    self._quote = ""
            elif character in self._quotes:
                self._quote = character
            elif character in self._closing:
                self._open.append(self._closing[character])
            elif character in self._closing.values():
                self.is_broken = not self._open or self._open.pop() != character
                is_item = self._takes_first and self._open == ["]"]
                if self.is_broken or not self._open or (is_item and text[start] == "["):
                    self.end = position
        self._position = position
        return self.end >= 0


def load_json(text: str) -> Any:
    """Read JSON as models write it: line breaks within strings pass, infinite numbers do not.

    Raises:
        ValueError: It is not JSON, or holds what JSON cannot carry onwards.
    """
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse_constant)
    except RecursionError as error:
        msg = "it is nested too deeply"
        raise ValueError(msg) from error
    return carried(value)


def carried(value: Any) -> Any:
    """The value, if JSON can carry it onwards.

    Raises:
        ValueError: It cannot.
    """
    try:
        if _SURROGATE.search(json.dumps(value, ensure_ascii=False, allow_nan=False)):
            msg = "half of a surrogate pair"
            raise ValueError(msg)
    except RecursionError as error:
        msg = "it is nested too deeply"
        raise ValueError(msg) from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def calls_in(text: str, mark: str) -> list[ToolCall | BrokenToolCall]:
    """The calls of a JSON text: an object with a name and arguments, or a list of such objects.

    Args:
        text: The JSON.
        mark: What begins a call in this format; broken calls are given back with it.
    """
    try:
        value = load_json(text)
    except ValueError as error:
        return [BrokenToolCall(mark + text, f"This is not JSON: {error}.", name_in(text))]
    return [_call(item, mark) for item in (value if isinstance(value, list) else [value])]


def _call(value: Any, mark: str) -> ToolCall | BrokenToolCall:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {**value, **value["function"]}  # as in OpenAI's interface
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name:
        return BrokenToolCall(mark + json.dumps(value, ensure_ascii=False), "The call has no name.")
    arguments: Any = next((value[key] for key in ("arguments", "parameters") if value.get(key) is not None), {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = load_json(arguments)
    if not isinstance(arguments, dict):
        error = "The arguments are not an object."
        return BrokenToolCall(mark + json.dumps(value, ensure_ascii=False), error, name)
    given = value.get("id")
    return ToolCall(name, arguments, given if isinstance(given, str) and given else None)


def name_in(text: str) -> str | None:
    """The name of a call in JSON that cannot be read as a whole."""
    match = _NAME.search(text)
    return match[1] if match else None
