"""Options of thinking, as chat models and the command line take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import option_field, options_of


@dataclass(frozen=True)
class ReasoningOptions:
    """Options of thinking: each is a field of the chat model, and can be given per call."""

    # fmt: off
    reasoning: bool | str | None = option_field(
        None, "Whether the model thinks before it answers, or how much, by the variables of its chat template.",
        range="`True`, `False`, or an effort that its template knows, such as `\"low\"`", unset="the template's")
    max_reasoning_tokens: int | None = option_field(
        None, "Most tokens of the thoughts before an answer, which end then; it has what `max_new_tokens` leaves.",
        int, 0, 2**31, range="a whole number from 0, or None",
        unset="half of `max_new_tokens` before an answer of a given form, else without limit")
    stop_in_reasoning: bool = option_field(
        False, "Whether stop strings are looked for in thoughts, too, and not in the answer only.", bool)
    # fmt: on


REASONING_OPTIONS = options_of(ReasoningOptions)


def check_reasoning_options(options: Mapping[str, Any]) -> None:
    """Refuse what none of them may be. What a template knows of efforts is asked later.

    Raises:
        InvalidParameterError: A value is not allowed.
    """
    for name, option in REASONING_OPTIONS.items():
        option.check(name, option.or_default(options.get(name)))
    if not isinstance(reasoning := options.get("reasoning"), bool | str | None):
        msg = f"reasoning must be True, False, None, or an effort such as 'low', got {reasoning!r}."
        raise InvalidParameterError(msg)
