"""A piece of a server's answer, in the same words for every kind of server."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from langchain_specdec.completions.events import FinishReason
from langchain_specdec.completions.stats import SpeculationStats


@dataclass(frozen=True)
class ChunkToken:
    """A token of a piece, as far as the server tells.

    Attributes:
        id: Its id; -1 where the server keeps it to itself.
        logprob: Its log probability, where asked for.
        top: Id and log probability of the best tokens, best first.
        num_tokens: How many tokens it stands for; more than 1 where their text comes together.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    num_tokens: int = 1

    def best(self, number: int, named: Collection[int]) -> dict[int, float]:
        """The log probabilities of so many of the best tokens, and of those that are named."""
        return dict(self.top[:number]) | {index: logprob for index, logprob in self.top if index in named}


@dataclass(frozen=True)
class Chunk:
    """One piece.

    Attributes:
        text: Its text.
        tokens: Its tokens. A piece of text has one at least.
        finish_reason: Why the answer has ended, on the piece that ends it.
        prompt_tokens: Number of prompt tokens, where it tells.
        completion_tokens: Number of tokens of the whole answer, on the piece that tells.
        cached_tokens: Prompt tokens that needed no prefill, where it tells.
        reasoning_tokens: Tokens of thoughts, where it tells.
        stats: What speculation did, on the piece that tells.
        is_last: Whether the server tells no more.
        decodes_here: Whether the ids of all tokens are told, so that they can be decoded here.
    """

    text: str = ""
    tokens: tuple[ChunkToken, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    stats: SpeculationStats | None = None
    is_last: bool = False
    decodes_here: bool = False
    reasoning_tokens: int | None = None


_TOLD = ("finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "stats")


@dataclass
class Told:
    """What a server has told of an answer beside its text."""

    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    stats: SpeculationStats | None = None
    reasoning_tokens: int | None = None
    is_whole: bool = False

    def add(self, chunk: Chunk) -> None:
        """Take what a piece tells."""
        for name in _TOLD:
            value: Any = getattr(chunk, name)
            if value is not None:
                setattr(self, name, value)
        # Some begin with counts.
        self.is_whole = self.is_whole or (chunk.is_last and self.finish_reason is not None)


def stats_of(num_tokens: int, drafted: int, accepted: int, num_steps: int = 0) -> SpeculationStats:
    """What speculation did, by a server's counts.

    Args:
        num_tokens: Of the answer.
        drafted: Tokens that were proposed.
        accepted: Those that stood; servers count them beyond the limit and a stop string, too.
        num_steps: Forwards that the server tells of, if it does; it may leave out those without a draft.
    """
    # Each forward brought a token of its own, and the one that read the prompt brought the first.
    kept = max(min(accepted, num_tokens - 1), 0)
    least = 1 if num_tokens else 0
    return SpeculationStats(drafted, kept, max(num_tokens - accepted, min(num_steps, num_tokens), least), num_tokens)
