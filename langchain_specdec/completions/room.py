"""What is told where a prompt and its completion have no room: what was set, and what can be set instead."""

from __future__ import annotations

from langchain_specdec.errors import PromptTooLongError

IN_PIECES = "DocumentSummarizer summarises a long text in pieces."
"""What else there is. The command line names its own command instead."""


def larger_max_length(num_tokens: int, most: int | None) -> str | None:
    """How to load a model with room for so many tokens of a prompt and its completion; None where it takes fewer.

    Args:
        num_tokens: How many.
        most: Positions that the model was made for; None where that is not known.
    """
    if most is None:
        return f"load the model with max_length={num_tokens} or more"
    return f"load the model with max_length={num_tokens} or more (up to {most})" if num_tokens <= most else None


def prompt_too_long(
    num_tokens: int, max_new_tokens: int, limit: int, limit_name: str, more_room: str | None
) -> PromptTooLongError:
    """The error for a prompt that has no room beside its new tokens.

    Args:
        num_tokens: Of the prompt.
        max_new_tokens: Tokens asked for.
        limit: Most tokens of both together.
        limit_name: What that is called where the user sets it.
        more_room: How to get more; None where one cannot.
    """
    ways = [f"lower max_new_tokens to {limit - num_tokens} or less"] if num_tokens < limit else []
    ways += [more_room] if more_room else []
    advice = ", or ".join([*ways, "shorten the prompt"])
    return PromptTooLongError(
        f"The prompt has {num_tokens} tokens and max_new_tokens is {max_new_tokens}, together "
        f"{num_tokens + max_new_tokens}, but {limit_name} is {limit}. {advice[0].upper()}{advice[1:]}. {IN_PIECES}"
    )
