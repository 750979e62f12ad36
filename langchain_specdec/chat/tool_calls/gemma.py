"""Calls as Gemma 4 writes them, in a notation of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

from langchain_specdec.chat.tool_calls.argument_types import Tell, arguments_of, raw_part, told_of, types_of, within
from langchain_specdec.chat.tool_calls.base import Form, Piece, ToolCallParser
from langchain_specdec.chat.tool_calls.values import ToolCall, carried, load_json
from langchain_specdec.grammar.call_parts import (
    InOrder,
    Json,
    Maybe,
    Part,
    Repeated,
    Text,
    either,
    listed,
)
from langchain_specdec.grammar.json_schema import resolved

_END = "<tool_call|>"
_QUOTE = '<|"|>'
_MARKS = re.compile(f"{re.escape(_END)}|{re.escape(_QUOTE)}")
_HEAD = re.compile(r"\s*call:\s*([^\s{}]+?)\s*(?=\{)")
_NAME = re.compile(r"\s*call:\s*([^\s{}]+)")
_SPACE = re.compile(r"\s*")
_KEY = re.compile(r"[^:,{}\[\]]+")
_BARE = re.compile(r"[^,{}\[\]]*")
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_MAX_DEPTH = 100
# How often a definition may stand within itself where a grammar writes it.
_MAX_WITHIN_ITSELF = 2

T = TypeVar("T")


class GemmaParser(ToolCallParser):
    """`<|tool_call>call:NAME{key:<|"|>text<|"|>,other:[1,true,{inner:2.5}]}<tool_call|>`, any number of times.

    Keys stand without quotes, and texts between marks of their own. The last mark may be missing at the end.

    A grammar holds of texts their lengths, patterns and known values, of lists their items and lengths, and of objects
    the properties that they name; what is none of these is JSON.
    """

    mark: ClassVar[str] = "<|tool_call>"
    inner_marks: ClassVar[tuple[str, ...]] = (_END, _QUOTE)
    call_openings: ClassVar[tuple[str, ...]] = ("call:",)
    call_begin: ClassVar[str] = "<|tool_call>call:"
    call_separator: ClassVar[str | None] = "<tool_call|><|tool_call>call:"
    call_end: ClassVar[str] = "<tool_call|>"
    form: ClassVar[Form] = "parts"
    holds_schemas: ClassVar[bool] = False

    @classmethod
    def call_part(cls, name: str, parameters: Mapping[str, Any], tell: Tell) -> Part:
        """How a call of a tool is written."""
        return InOrder((Text(name), _object_part(parameters, tell, ())))

    def _read_marked(self, *, is_end: bool) -> list[Piece] | None:
        # An end within a text is none.
        end, is_quoted = -1, False
        for found in _MARKS.finditer(self._buffer):
            if found[0] == _QUOTE:
                is_quoted = not is_quoted
            elif not is_quoted:
                end = found.start()
                break
        if end < 0:
            if not is_end:
                return None
            # A text without its end would hide the calls behind it.
            end = self._buffer.find(_END)
        written = self._buffer[:end] if end >= 0 else self._buffer
        head = _HEAD.match(written)
        try:
            if head is None:
                return [self._broken_up_to(end, "There is no name, or there are no arguments.")]
            arguments = _Reader(written, head.end()).whole()
        except ValueError as error:
            reason = "The text ended within the call." if end < 0 else f"The arguments cannot be read: {error}."
            return [self._broken_up_to(end, reason)]
        self._consume(len(self._buffer) if end < 0 else end + len(_END))
        return [ToolCall(head[1], arguments)]

    def _broken_up_to(self, end: int, error: str) -> Piece:
        return self._broken(len(self._buffer) if end < 0 else end + len(_END), error)

    def _name_in(self, text: str) -> str | None:
        found = _NAME.match(text)
        return found[1] if found else None


class _Reader:
    """Reads arguments in Gemma's notation."""

    def __init__(self, text: str, position: int) -> None:
        self._text = text
        self._position = position

    def whole(self) -> dict[str, Any]:
        """The arguments, which end with the text.

        Raises:
            ValueError: They are none.
        """
        value: dict[str, Any] = carried(self._named(0))
        self._match(_SPACE)
        if self._position < len(self._text):
            self._fail("more text follows")
        return value

    def _value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            self._fail("it is nested too deeply")
        if self._at(_QUOTE):
            return self._quoted()
        if self._at("{"):
            return self._named(depth)
        if self._at("["):
            return self._items("[", "]", lambda: self._value(depth + 1))
        word = self._match(_BARE).strip()
        if not word:
            self._fail("a value is missing")
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        try:
            return load_json(word)
        except ValueError:
            # Texts without their marks.
            return word

    def _named(self, depth: int) -> dict[str, Any]:
        pairs = self._items("{", "}", lambda: self._pair(depth + 1))
        named = dict(pairs)
        if len(named) < len(pairs):
            self._fail("a name is there twice")
        return named

    def _pair(self, depth: int) -> tuple[str, Any]:
        key = self._quoted() if self._at(_QUOTE) else self._match(_KEY).strip()
        if not key or not self._take(":"):
            self._fail("a name is missing")
        return key, self._value(depth)

    def _quoted(self) -> str:
        start = self._position + len(_QUOTE)
        end = self._text.find(_QUOTE, start)
        if end < 0:
            self._fail("a text does not end")
        self._position = end + len(_QUOTE)
        return self._text[start:end]

    def _items(self, opening: str, closing: str, item: Callable[[], T]) -> list[T]:
        if not self._take(opening):
            self._fail(f"{opening!r} is missing")
        items: list[T] = []
        while not self._take(closing):
            if items and not self._take(","):
                self._fail(f"{closing!r} is missing")
            items.append(item())
        return items

    def _at(self, sign: str) -> bool:
        self._match(_SPACE)
        return self._text.startswith(sign, self._position)

    def _take(self, sign: str) -> bool:
        if not self._at(sign):
            return False
        self._position += len(sign)
        return True

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._position)
        if match is None:
            return ""
        self._position = match.end()
        return match[0]

    def _fail(self, reason: str) -> NoReturn:
        msg = f"{reason} at character {self._position + 1}"
        raise ValueError(msg)


def _object_part(schema: Mapping[str, Any], tell: Tell, outer: tuple[str, ...]) -> Part:
    items = []
    for argument in arguments_of(schema, tell):
        value = _value_part(argument.schema, told_of(tell, argument.name), outer)
        items.append((InOrder((Text(f"{argument.name}:"), value)), argument.is_needed))
    return InOrder((Text("{"), listed(items, ","), Text("}")))


def _value_part(schema: Mapping[str, Any], tell: Tell, outer: tuple[str, ...]) -> Part:
    """How a value that fits a schema, which stands alone, is written within those that the outer references name."""
    if isinstance(reference := schema.get("$ref"), str):
        if outer.count(reference) > _MAX_WITHIN_ITSELF:
            tell("recursion")
            return Text("null")
        outer = (*outer, reference)
    types = types_of(schema)
    said = resolved(schema, dict(schema))
    values = said["enum"] if isinstance(said.get("enum"), list) else [said["const"]] if "const" in said else None
    if values is not None:
        return either(
            [Text(_written(value)) for value in values if _END not in _written(value)] or [Json({"enum": []})]
        )
    members = next((said[keyword] for keyword in ("anyOf", "oneOf") if isinstance(said.get(keyword), list)), None)
    if members and "type" not in said:
        return either([_value_part(within(schema, member), tell, outer) for member in members])
    parts: list[Part] = []
    if "array" in types:
        parts.append(_array_part(schema, said, tell, outer))
    if "object" in types:
        parts.append(_object_part(within(schema, said), tell, outer))
    if "string" in types or not types:
        texts = {**said, "type": "string"} if types - {"string"} else schema
        parts.append(InOrder((Text(_QUOTE), raw_part(texts, _QUOTE, _QUOTE, tell))))
    others = sorted(types & {"boolean", "integer", "number", "null"})
    if others:
        parts.append(Json({**schema, "type": others} if types - set(others) else schema))
    return either(parts)


def _written(value: Any) -> str:
    """A value in Gemma's notation."""
    if isinstance(value, str):
        return f"{_QUOTE}{value}{_QUOTE}"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return json.dumps(value)


def _array_part(root: Mapping[str, Any], said: Mapping[str, Any], tell: Tell, outer: tuple[str, ...]) -> Part:
    for keyword in ("uniqueItems", "prefixItems", "contains"):
        if said.get(keyword):
            tell(keyword)
    item = _value_part(within(root, said.get("items")), tell, outer)
    least, most = said.get("minItems", 0), said.get("maxItems")
    if most == 0:
        return Text("[]")
    following = Repeated(InOrder((Text(","), item)), max(0, least - 1), None if most is None else most - 1)
    filled = InOrder((item, following))
    return InOrder((Text("["), filled if least else Maybe(filled), Text("]")))
