"""Parameters as callers name them: unknown names are refused, other names of the same thing are understood."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from langchain_specdec.errors import InvalidParameterError

ALIASES: Mapping[str, str] = {"max_tokens": "max_new_tokens", "stop_sequences": "stop"}
"""What other LangChain packages call our parameters."""
LOADING_ALIASES: Mapping[str, str] = {"model_id": "model", "model_name": "model", "draft_model_id": "draft_model"}
"""What they call the model, where one is loaded."""


def refuse_unknown(given: Collection[str], known: Collection[str]) -> None:
    """Raise unless all names are known. Those that begin with an underscore are the package's own, and never told.

    Raises:
        InvalidParameterError: A name is unknown; the message has the nearest known one, and lists all.
    """
    if unknown := sorted(set(given) - set(known)):
        told = sorted(name for name in known if not name.startswith("_"))
        nearest = [match for name in unknown for match in get_close_matches(name, told, 1, 0.7)]
        hint = f"Did you mean {', '.join(map(repr, nearest))}? " if nearest else ""
        msg = f"Unknown parameter {', '.join(map(repr, unknown))}. {hint}Known are: {', '.join(told)}."
        raise InvalidParameterError(msg)


def named_parameters(
    values: Mapping[str, Any], known: Collection[str], aliases: Mapping[str, str] = ALIASES
) -> dict[str, Any]:
    """The values under this package's own names, without those that are None: those are not given.

    Raises:
        InvalidParameterError: A name is unknown, or a parameter is given under two names.
    """
    aliases = {alias: name for alias, name in aliases.items() if name in known}
    refuse_unknown(values, {*known, *aliases})
    given: dict[str, str] = {}
    # Names of our own come last, so that a message has the other name first.
    for alias in sorted((name for name, value in values.items() if value is not None), key=lambda n: n not in aliases):
        name = aliases.get(alias, alias)
        if name in given:
            msg = f"{given[name]} and {alias} are one parameter: give only one of them."
            raise InvalidParameterError(msg)
        given[name] = alias
    return {aliases.get(name, name): value for name, value in values.items() if value is not None}


def join_stops(*sources: Any) -> list[Any]:
    """Stop strings of several sources, each once. What is not a string stays in, for `SamplingParams` to refuse."""
    stops: list[Any] = []
    for source in sources:
        if source is not None:
            several = [source] if isinstance(source, str) or not isinstance(source, Sequence) else source
            stops += [stop for stop in several if stop not in stops]
    return stops
