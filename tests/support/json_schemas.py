"""Random JSON schemas of every kind that structured output meets."""

from __future__ import annotations

import random
from typing import Any

from langchain_specdec.grammar.constraint import Constraint
from langchain_specdec.grammar.token_masks import token_bits
from tests.support.tiny_models import EOS, byte_tokenizer

__all__ = ["can_write", "random_answer", "random_schema"]

_NAMES = ("name", "age", "city", "tags", "größe", "x y", "id", "price", 'quote"d', "名前", "notes", "kind")
_FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4", "hostname", "duration")
_CONSTANTS = ("red", "green", 'say "hi"', "naïve ☕", "", 0, 7, -3.5, True, None)
_PATTERNS = (r"^[A-Z]{2}-\d{3}$", r"^(yes|no|maybe)$", r"^#[0-9a-f]{6}$", r"^\w+ \w+$", r"\.pdf$", "[^ ]@[^ ]")


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """An object schema with nested objects, arrays, unions, enums, formats and bounds."""
    names = rng.sample(_NAMES, rng.randrange(1, 5))
    properties = {name: _value(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if rng.random() < 0.8:
        schema["additionalProperties"] = False
    return schema


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    makers = [_string, _number, _enum, _constant, _simple]
    if depth > 0:
        makers += [_array, _union, lambda rng, depth: random_schema(rng, depth)]
    return rng.choice(makers)(rng, depth)


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "string", "format": rng.choice(_FORMATS)}
    if kind == 1:
        return {"type": "string", "pattern": rng.choice(_PATTERNS)}
    shortest = rng.randrange(0, 4)
    return (
        {"type": "string", "minLength": shortest, "maxLength": shortest + rng.randrange(1, 12)}
        if kind == 2
        else {"type": "string"}
    )


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.choice([-100, -1, 0, 1, 17])
    bounds = rng.choice(
        [
            {},
            {"minimum": low},
            {"maximum": low},
            {"minimum": low, "maximum": low + rng.randrange(1, 300)},
            {"exclusiveMinimum": low, "exclusiveMaximum": low + rng.randrange(2, 50)},
        ]
    )
    return {"type": rng.choice(["integer", "number"]), **bounds}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(_CONSTANTS, rng.randrange(1, 5))}


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(_CONSTANTS)}


def _simple(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", "string", "integer", ["string", "null"]])}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": _value(rng, depth - 1)}
    if rng.random() < 0.7:
        schema["minItems"] = rng.randrange(0, 3)
        schema["maxItems"] = schema["minItems"] + rng.randrange(0, 3)
    return schema


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(rng, depth - 1) for _ in range(rng.randrange(2, 4))]}


def can_write(constraint: Constraint, text: str) -> bool:
    """Whether a text is an answer that a grammar allows, with the tokens of `byte_tokenizer`."""
    ids = list(byte_tokenizer()(text).input_ids)
    if constraint.mask_after(ids) is None:
        return False
    return constraint.allowed_after(ids, [EOS]) == [True]


def random_answer(constraint: Constraint, rng: random.Random, limit: int = 200) -> str:
    """A text of random tokens that a grammar allows, which ends in time."""
    tokens: list[int] = []
    while True:
        mask = constraint.mask_after(())
        assert mask is not None, "a dead end"
        allowed = [int(t) for t in token_bits(mask).nonzero()[0]]
        # Characters of one byte, where there is a choice: others would be nearly all.
        plain = [t for t in allowed if t < 128 or t == EOS]
        (token,) = constraint.in_time([rng.choice(plain or allowed)], limit - len(tokens))
        constraint.advance([token])
        if token == EOS:
            return str(byte_tokenizer().decode(tokens))
        tokens.append(token)
