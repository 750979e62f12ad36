"""An option, declared once for those who check it, make a flag of it, and write it into the documentation."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from langchain_specdec.errors import InvalidParameterError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What is declared of an option, beside its name and its type.

    Attributes:
        default: The value where none is given, or None is.
        help: What the option is.
        kind: What a flag of it takes; `check` looks at `int`, `float`, `bool`, and `str` with words. None: an object of
            Python, which has no flag and is checked by who takes it.
        low: Least number.
        high: Greatest number.
        words: All texts that a `str` may be, if they are limited; those that an `int` may be beside numbers.
        range: What is allowed, in words, where they do not follow from the above.
        unset: What None stands for.
    """

    default: Any
    help: str
    kind: type | None = None
    low: float = 0
    high: float = 0
    words: tuple[str, ...] = ()
    range: str = ""
    unset: str = ""

    @property
    def allowed(self) -> str:
        """What is allowed, in words; "" where nothing is said of it."""
        words = ", ".join(map(repr, self.words))
        if self.range or self.kind in (None, float):
            return self.range
        if self.kind is int:
            return f"{words}{' or ' if words else ''}a whole number from {self.low} to {self.high}"
        return "True or False" if self.kind is bool else words and f"one of {words}"

    @property
    def bounds(self) -> dict[str, Any]:
        """The keywords of a JSON schema that say which numbers are allowed; none where it is no number."""
        if self.kind not in (int, float):
            return {}
        # Readers of JSON differ in whether the least number above 0 is 0.
        is_above_0 = 0 < self.low < sys.float_info.min
        return {"exclusiveMinimum" if is_above_0 else "minimum": 0 if is_above_0 else self.low, "maximum": self.high}

    def or_default(self, value: Any) -> Any:
        """The value; the default where it is None."""
        return self.default if value is None else value

    def check(self, name: str, value: Any) -> None:
        """Raise unless the value is allowed.

        Raises:
            InvalidParameterError: It is not; the message says what is.
        """
        if (value is None and self.default is None) or (isinstance(value, str) and value in self.words):
            return
        if self.kind in (int, float):
            types = int if self.kind is int else (int, float)
            # The ends are finite, so they also keep out infinity and NaN.
            is_allowed = isinstance(value, types) and not isinstance(value, bool) and self.low <= value <= self.high
        else:
            is_allowed = isinstance(value, bool) if self.kind is bool else not self.words
        if not is_allowed:
            msg = f"{name} must be {self.allowed}, got {value!r}."
            raise InvalidParameterError(msg)


def option_field(*declaration: Any, **more: Any) -> Any:
    """A field of a dataclass, declared as an `Option` is made."""
    option = Option(*declaration, **more)
    return field(default=option.default, metadata={"option": option})


@cache
def options_of(declared: Any) -> dict[str, Option]:
    """The options that a dataclass has for fields, or that annotate the keys of a `TypedDict`."""
    if fields := getattr(declared, "__dataclass_fields__", None):
        return {name: found.metadata["option"] for name, found in fields.items()}
    return {name: hint.__metadata__[0] for name, hint in declared.__annotations__.items()}


def spelled_out(declared: Any, rest: str = "") -> Callable[[F], F]:
    """Give a function that takes a `TypedDict` as its `**options` a signature with each of the keys, for `help`.

    Args:
        declared: The `TypedDict`. None is the default of a key that no `Option` annotates.
        rest: Name of what the function takes beside these as `**rest`; "" where that is nothing.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [
            each for each in signature.parameters.values() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        ]
        named = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, default, annotation in map(_parameter, *zip(*declared.__annotations__.items(), strict=True))
        ]
        others = [inspect.Parameter(rest, inspect.Parameter.VAR_KEYWORD)] if rest else []
        function.__signature__ = signature.replace(parameters=[*own, *named, *others])  # type: ignore[attr-defined]
        return function

    return decorate


def _parameter(name: str, hint: Any) -> tuple[str, Any, Any]:
    """The name, the default and the type of a key."""
    options = getattr(hint, "__metadata__", ())
    kind = getattr(hint, "__origin__", hint) if options else hint
    return name, options[0].default if options else None, getattr(kind, "__forward_arg__", kind)


def check_unicode(what: str, text: str) -> None:
    """Refuse text that no UTF-8 can hold, as what was decoded by `surrogateescape` may be.

    Args:
        what: What the text is, for the message.
        text: The text.

    Raises:
        InvalidParameterError: It holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start}"
        msg = f"{what} is not valid Unicode text: it holds half of a surrogate pair ({found}). Leave that out."
        raise InvalidParameterError(msg) from error
