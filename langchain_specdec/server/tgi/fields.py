"""What the parameters of `/generate` may be, and TGI's words where they are not: for the check, and for OpenAPI.

Sources: router/src/lib.rs and router/src/validation.rs of TGI 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from langchain_specdec.options import Option, options_of
from langchain_specdec.sampling.params import SamplingParams

GRAMMARS = ("json", "json_object", "regex", "json_schema")
"""The kinds of grammars."""
# What 64 bits hold.
_LARGEST = 2**64 - 1
# The router computes in 32 bits, where numbers closer to 0 and 1 are 0 and 1.
_0, _1 = 2.0**-150, 1.0 - 2.0**-25
_TYPES: dict[str, tuple[type, ...]] = {
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}
_GRAMMAR = {
    "oneOf": [
        {
            "required": ["type", "value"],
            "properties": {
                "type": {"enum": ["json", "json_object"]},
                "value": {"type": ["object", "string"], "required": ["properties"]},
            },
        },
        {
            "required": ["type", "value"],
            "properties": {"type": {"const": "regex"}, "value": {"type": "string", "minLength": 1}},
        },
        {
            "required": ["type", "value"],
            "properties": {
                "type": {"const": "json_schema"},
                "value": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": {"schema": {"type": "object", "required": ["properties"]}},
                },
            },
        },
    ]
}


@dataclass(frozen=True)
class Limits:
    """Limits of the router, as `/info` tells them; TGI's own where nobody says."""

    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_input_tokens: int = 1023
    max_total_tokens: int = 1024
    max_client_batch_size: int = 4
    max_top_n_tokens: int = 5


@dataclass(frozen=True)
class Field:
    """What is checked of a parameter.

    Attributes:
        name: The parameter.
        kind: Its type, as JSON schemas call it.
        rule: TGI's words where a value of the type is refused.
        is_unsigned: Whether the type holds no numbers below 0, and none beyond 64 bits.
        is_told: Whether the refusal tells what was given.
        above: Numbers have to be greater.
        low: The least number.
        below: Numbers have to be smaller.
        high: The greatest number; of a list, most items.
        allowed: All values, if they are few.
        about: What it is.
    """

    name: str
    kind: str
    rule: str = ""
    is_unsigned: bool = False
    is_told: bool = False
    above: float | None = None
    low: float | None = None
    below: float | None = None
    high: float | None = None
    allowed: Sequence[Any] | None = None
    about: str = ""

    def is_of_type(self, value: Any) -> bool:
        """Whether a value can be read at all."""
        is_right: bool = isinstance(value, _TYPES[self.kind])
        if not is_right or (isinstance(value, bool) and self.kind != "boolean"):
            return False
        if self.kind == "array":
            return all(isinstance(item, str) for item in value)
        return not self.is_unsigned or 0 <= value <= _LARGEST

    def allows(self, value: Any) -> bool:
        """Whether a value of the type is allowed."""
        if self.allowed is not None:
            return value in self.allowed
        size = len(value) if self.kind == "array" else value
        return not (
            (self.above is not None and size <= self.above)
            or (self.low is not None and size < self.low)
            or (self.below is not None and size >= self.below)
            or (self.high is not None and size > self.high)
        )

    def schema(self, option: Option | None) -> dict[str, Any]:
        """The JSON schema of the parameter, which may always be null.

        Args:
            option: What the engine's own parameter may be, if it has one.
        """
        told: dict[str, Any] = {"type": [self.kind, "null"]}
        if self.allowed is not None:
            told = {"enum": [*self.allowed, None]}
        elif self.kind == "array":
            told |= {"items": {"type": "string", "minLength": 1}, "maxItems": self.high}
        elif self.name == "grammar":
            told |= {"anyOf": [{"type": "null"}, _GRAMMAR]}
        elif self.kind in ("number", "integer"):
            low = 0 if self.is_unsigned and self.above is None and self.low is None else self.low
            high = self.high
            if high is None and self.below is None and option is not None:
                high = _LARGEST if self.is_unsigned else option.high
            ends = {"exclusiveMinimum": self.above, "minimum": low, "exclusiveMaximum": self.below, "maximum": high}
            told |= {key: value for key, value in ends.items() if value is not None}
        about = self.about or (option.help if option is not None else "")
        return {**told, "description": about} if about else told


@lru_cache(maxsize=4)
def fields_of(limits: Limits, *, is_stream: bool = False) -> Sequence[Field]:
    """All parameters, in the order in which TGI checks them; what TGI has and this engine has not comes last."""
    best_of, stops, top_n = limits.max_best_of, limits.max_stop_sequences, limits.max_top_n_tokens
    strictly = "must be strictly positive"
    return (
        Field(
            "best_of",
            "integer",
            f"must be > 0 and <= {best_of}",
            is_unsigned=True,
            is_told=True,
            low=1,
            high=best_of,
            about="Has one value here.",
        ),
        Field(
            "decoder_input_details",
            "boolean",
            "== true is not supported when streaming tokens",
            allowed=(False,) if is_stream else None,
            about="The same as `details` here.",
        ),
        Field("temperature", "number", strictly, above=0),
        Field("repetition_penalty", "number", strictly, above=0),
        Field("frequency_penalty", "number", "must be >= -2.0 and <= 2.0", low=-2.0, high=2.0),
        Field("top_p", "number", "must be > 0.0 and < 1.0", above=_0, below=_1),
        Field("typical_p", "number", "must be > 0.0 and < 1.0", above=_0, below=_1),
        Field("top_k", "integer", strictly, above=0),
        Field("max_new_tokens", "integer", strictly, is_unsigned=True, above=0),
        Field(
            "stop",
            "array",
            f"supports up to {stops} stop sequences",
            is_told=True,
            high=stops,
            about="Strings that end the text, and stay in it.",
        ),
        Field(
            "top_n_tokens",
            "integer",
            f"must be >= 0 and <= {top_n}",
            is_unsigned=True,
            is_told=True,
            high=top_n,
            about="How many of the most probable tokens to tell of each place.",
        ),
        Field("seed", "integer", is_unsigned=True),
        Field(
            "truncate",
            "integer",
            is_unsigned=True,
            low=1,
            high=limits.max_input_tokens,
            about="Tokens of the prompt that are kept, from its end.",
        ),
        Field("do_sample", "boolean", about="Whether to sample; without any `parameters` it does."),
        Field("details", "boolean", about="Whether to tell tokens and counts."),
        Field("return_full_text", "boolean", about="Whether the prompt goes before the text."),
        Field("adapter_id", "string", about="The adapter that the text goes by."),
        Field("grammar", "object", about="The form of the text."),
        # This server's own; TGI ignores it, as all that it does not know.
        Field("speculation_details", "boolean", about="Whether `details` tell what speculation did."),
        Field("typical_p", "number", "is not supported by this server", allowed=()),
        Field("watermark", "boolean", "is not supported by this server", allowed=(False,)),
    )


def parameters_schema(limits: Limits) -> dict[str, Any]:
    """The JSON schema of all parameters."""
    options = options_of(SamplingParams)
    # The last of a name counts: that of what is not supported.
    properties = {field.name: field.schema(options.get(field.name)) for field in fields_of(limits)}
    return {"type": ["object", "null"], "properties": properties}
