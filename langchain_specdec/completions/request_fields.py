"""What of a completion's request OpenAI's protocol has no word for, as JSON.

This package's client sends it to this package's server, which so runs the same request as a model in the client's
process, and writes the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, get_type_hints

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.call_parts import Either, InOrder, Json, Maybe, Part, Raw, Repeated, Text
from langchain_specdec.grammar.json_schema import checked_schema

_FIELDS = ("continues_prompt", "shown_specials", "banned", "thoughts", "calls")
_CALL_TEXTS = ("begin", "end", "object_begin")
_MAX_DEPTH = 64


def fields_of(request: CompletionRequest) -> dict[str, Any]:
    """Those of a request, as plain values; empty where it has none."""
    told: dict[str, Any] = {}
    if not request.continues_prompt:
        told["continues_prompt"] = False
    if request.shown_specials:
        told["shown_specials"] = {str(token): text for token, text in request.shown_specials.items()}
    if request.banned:
        told["banned"] = sorted(request.banned)
    if request.thoughts is not None:
        told["thoughts"] = asdict(request.thoughts)
    if isinstance(request.params.grammar, CallGrammar):
        told["calls"] = _told_grammar(request.params.grammar)
    return told


def with_fields(request: CompletionRequest, told: Mapping[str, Any]) -> CompletionRequest:
    """The request with those that `fields_of` has told.

    Raises:
        InvalidParameterError: One of them is unknown, or none of that kind.
    """
    if unknown := sorted(set(told) - set(_FIELDS)):
        msg = f"specdec.{unknown[0]}: this server does not know the field. It knows {', '.join(_FIELDS)}."
        raise InvalidParameterError(msg)
    changes: dict[str, Any] = {}
    name = ""
    try:
        for name, value in told.items():
            if name == "calls":
                changes["params"] = replace(request.params, grammar=_grammar(value))
            else:
                changes[name] = _READ[name](value)
    except InvalidParameterError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        msg = f"specdec.{name} is not in the form in which this package's client sends it."
        raise InvalidParameterError(msg) from None
    return replace(request, **changes)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _schema(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    return checked_schema(value)


def _token(value: Any) -> int:
    if isinstance(value, bool) or not 0 <= int(value) < 2**31:
        raise ValueError
    return int(value)


def _thoughts(value: Mapping[str, Any]) -> Thoughts:
    kinds = get_type_hints(Thoughts)
    read: dict[str, Any] = {}
    for name, given in value.items():
        kind = kinds[name]
        if kind is bool:
            read[name] = _flag(given)
        elif kind is str:
            read[name] = _text(given)
        elif name == "max_tokens":
            read[name] = None if given is None else _token(given)
        else:
            read[name] = _texts(given)
    return Thoughts(**read)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(map(_text, value))


_READ = {
    "continues_prompt": _flag,
    "shown_specials": lambda value: {_token(token): _text(text) for token, text in value.items()},
    "banned": lambda value: tuple(map(_token, value)),
    "thoughts": _thoughts,
}


def _told_grammar(grammar: CallGrammar) -> dict[str, Any]:
    texts = {name: getattr(grammar, name) for name in _CALL_TEXTS}
    return {"call": _told(grammar.call), **texts, "separator": grammar.separator, "object": grammar.object}


def _grammar(value: Mapping[str, Any]) -> CallGrammar:
    texts: dict[str, Any] = {name: _text(value[name]) for name in _CALL_TEXTS}
    separator = None if value["separator"] is None else _text(value["separator"])
    answer = None if value["object"] is None else _schema(value["object"])
    return CallGrammar(call=_part(value["call"], 0), separator=separator, object=answer, **texts)


def _told(part: Part) -> dict[str, Any]:
    """A part as an object with one key, its kind."""
    if isinstance(part, (InOrder, Either)):
        return {_name(part): [_told(inner) for inner in part.parts]}
    own = {field.name: getattr(part, field.name) for field in fields(part)}
    if isinstance(part, (Maybe, Repeated)):
        own["part"] = _told(part.part)
    return {_name(part): own}


def _name(part: Part) -> str:
    return type(part).__name__


def _part(value: Mapping[str, Any], depth: int) -> Part:
    if depth > _MAX_DEPTH:
        raise RecursionError
    ((kind, own),) = value.items()
    if kind == "Text":
        return Text(_text(own["text"]))
    if kind == "Json":
        return Json(_schema(own["schema"]))
    if kind == "Raw":
        return Raw(_text(own["end"]), _text(own["mark"]), _texts(own["patterns"]))
    if kind == "Maybe":
        return Maybe(_part(own["part"], depth + 1))
    if kind == "Repeated":
        most = None if own["most"] is None else _token(own["most"])
        return Repeated(_part(own["part"], depth + 1), _token(own["least"]), most)
    parts: Sequence[Any] = own
    kinds: dict[str, type[InOrder | Either]] = {"InOrder": InOrder, "Either": Either}
    return kinds[kind](tuple(_part(inner, depth + 1) for inner in parts))
