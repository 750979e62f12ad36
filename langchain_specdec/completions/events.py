"""What a completion tells its reader: tokens as they come, then how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from langchain_specdec.completions.stats import SpeculationStats

FinishReason = Literal["length", "stop_sequence", "eos_token"]


@dataclass(frozen=True)
class Token:
    """One emitted token.

    Attributes:
        id: Its id in the target's vocabulary; -1 where a server does not tell.
        text: Text that this token released. Empty while a character or a possible stop string is incomplete.
        drafted: Whether it was proposed by the drafter (and confirmed by the target). None where a server does not
            tell.
        logprob: Its natural-log probability, where asked for.
        top_logprobs: Token id -> log probability of the most probable tokens, where asked for, and of those that the
            request names.
    """

    id: int
    text: str
    drafted: bool | None
    logprob: float | None = None
    top_logprobs: Mapping[int, float] | None = None


@dataclass(frozen=True)
class TokenEvent:
    """The tokens of one decoding step, at least one.

    Attributes:
        tokens: The tokens, those of the draft before the target's own.
        drafted_tokens: Tokens that were proposed for the step, the rejected ones included; 0 also where a server does
            not tell.
    """

    tokens: tuple[Token, ...]
    drafted_tokens: int = 0

    @property
    def text(self) -> str:
        """Text that the step released."""
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True)
class FinishEvent:
    """The end of a completion.

    Attributes:
        finish_reason: `length`, `stop_sequence` (also where the request's own check ended it) or `eos_token`.
        prompt_tokens: Number of prompt tokens; 0 where an answer was cut before its server told them, and no tokenizer
            is known.
        completion_tokens: Number of generated tokens, an end-of-sequence token and those of a stop string included.
        seed: The seed in force, drawn where none was given.
        speculation: What speculation did for this request.
        cached_tokens: Prompt tokens that needed no prefill because a resting slot already held them. None where a
            server does not tell.
        grammar_error: Why the text, by the doing of a server, does not fit the grammar asked for, in whole sentences.
            None where it fits, where it was cut and fits so far, and where no grammar was asked for.
        reasoning_tokens: Tokens of thoughts, where a server that tells thoughts apart by itself has counted them.
        time_to_first_token: Seconds from the call to the arrival of the first token, waiting for a slot and reading the
            prompt included. The stream fills it in; None where there was no token.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seed: int
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    cached_tokens: int | None = 0
    grammar_error: str | None = None
    reasoning_tokens: int | None = None
    time_to_first_token: float | None = field(default=None, compare=False)


Event = TokenEvent | FinishEvent
