"""What a server sends of a completion: its tokens one by one, and with the last of them how it ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from langchain_specdec.completions.events import FinishReason

# What a server sends is of these types, or no answer of such a server's.
_STRICT = ConfigDict(strict=True)
_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=_STRICT)
class FrameEnd:
    """What the last frame says of the whole answer.

    Attributes:
        finish_reason: Why it ended.
        text: The generated text, special tokens left out, a stop string at its end left in. None where the frames have
            all of it.
        prompt_tokens: Number of prompt tokens, where the client passes it on.
    """

    finish_reason: FinishReason
    text: str | None
    prompt_tokens: _Count | None


@dataclass(frozen=True, config=_STRICT)
class Frame:
    """One token of an answer.

    Attributes:
        token_id: The token; -1 where a server keeps its id to itself.
        text: Its text; empty while a character is incomplete.
        is_special: Whether it has no part in the text, as an end-of-sequence token.
        logprob: Its log probability.
        top: Id and log probability of the best tokens, best first.
        end: Set on the last frame.
        num_tokens: How many tokens it stands for; 1 but where a server keeps the others to itself, and sends their text
            together.
    """

    token_id: Annotated[int, Field(ge=-1)]
    text: str
    is_special: bool
    logprob: float | None
    top: tuple[tuple[_Count, float], ...]
    end: FrameEnd | None
    num_tokens: _Count = 1
