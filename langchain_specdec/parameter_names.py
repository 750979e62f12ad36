"""Parameters as callers name them: unknown names are refused, other names of the same thing are understood."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langchain_specdec.errors import InvalidParameterError

ALIASES: Mapping[str, str] = {"max_tokens": "max_new_tokens", "stop_sequences": "stop"}
"""What other LangChain packages call our parameters."""


def refuse_unknown(given: Collection[str], known: Collection[str]) -> None:
    """Raise unless all names are known.

    Raises:
        InvalidParameterError: A name is unknown; the message lists the known ones.
    """
    if unknown := sorted(set(given) - set(known)):
        msg = f"Unknown parameter {', '.join(map(repr, unknown))}. Known are: {', '.join(sorted(known))}."
        raise InvalidParameterError(msg)


def named_parameters(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The values under this package's own names, without those that are None: those are not given.

    Raises:
        InvalidParameterError: A name is unknown, or a parameter is given under two names.
    """
    refuse_unknown(values, {*known, *ALIASES})
    values = {name: value for name, value in values.items() if value is not None}
    for alias, name in ALIASES.items():
        if alias in values and name in values:
            msg = f"{alias} and {name} are one parameter: give only one of them."
            raise InvalidParameterError(msg)
    return {ALIASES.get(name, name): value for name, value in values.items()}


def join_stops(*sources: Any) -> list[Any]:
    """Stop strings of several sources, each once. What is not a string stays in, for `SamplingParams` to refuse."""
    stops: list[Any] = []
    for source in sources:
        if source is not None:
            several = [source] if isinstance(source, str) or not isinstance(source, Sequence) else source
            stops += [stop for stop in several if stop not in stops]
    return stops
