"""A completion as TGI tells it: one frame for each token, stop strings left in the text."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.server.tgi.parameters import Generation

if TYPE_CHECKING:
    from langchain_specdec.models.private_tokenizer import PrivateTokenizer


class StopEnd:
    """Cuts a growing text behind the first stop string in it.

    TGI looks for stop strings only where a token ends, and goes on past those that end within one. Here the text ends
    behind the stop string all the same, so that it always ends with it, as clients of TGI take it to.

    Args:
        stop: The stop strings.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self._tail = ""
        self.is_found = False

    def add(self, text: str) -> str:
        """The part of a further text that belongs to the whole."""
        if not self._longest:
            return text
        grown = self._tail + text
        ends = [place + len(stop) for stop in self._stop if (place := grown.find(stop)) >= 0]
        if ends:
            self.is_found = True
            return text[: min(ends) - len(self._tail)]
        self._tail = grown[max(0, len(grown) - self._longest + 1) :]
        return text


def request_of(generation: Generation, make_end: Callable[[Sequence[str]], StopEnd]) -> CompletionRequest:
    """What the engine is asked for.

    Args:
        generation: What was asked for.
        make_end: Makes what ends the text at stop strings.
    """

    def make_end_check() -> Callable[[str], bool]:
        end = make_end(generation.stop)

        def is_at_end(text: str) -> bool:
            end.add(text)
            return end.is_found

        return is_at_end

    return CompletionRequest(
        generation.prompt, generation.params, make_end_check=make_end_check if generation.stop else None
    )


@dataclass(frozen=True)
class Frame:
    """One token of an answer."""

    index: int
    token: dict[str, Any]
    top_tokens: list[dict[str, Any]]

    def as_json(self, end: End | None) -> dict[str, Any]:
        """The frame of a stream; the last has the end."""
        frame: dict[str, Any] = {"index": self.index, "token": self.token}
        if self.top_tokens:
            frame["top_tokens"] = self.top_tokens
        if end is None:
            return {**frame, "generated_text": None, "details": None}
        return {**frame, "generated_text": end.text, "details": end.details}


@dataclass(frozen=True)
class End:
    """How an answer ended: its whole text, and the details where they are asked for."""

    text: str
    details: dict[str, Any] | None


class Answer:
    """Turns the events of one completion into frames.

    Args:
        generation: What was asked for.
        tokenizer: The model's.
        eos_token_ids: Tokens that end a text.
        stop: Ends the text at stop strings; nothing has been added to it.
    """

    def __init__(
        self, generation: Generation, tokenizer: PrivateTokenizer, eos_token_ids: Collection[int], stop: StopEnd
    ) -> None:
        self._generation = generation
        self._eos_token_ids = eos_token_ids
        self._tokenizer = tokenizer
        self._special = tokenizer.special_texts
        self._stop = stop
        self._texts: list[str] = []
        self.frames: list[Frame] = []

    def add(self, event: TokenEvent) -> list[Frame]:
        """The frames of a step."""
        first = len(self.frames)
        for token in event.tokens:
            self.frames.append(self._frame(token))
        return self.frames[first:]

    def may_end(self, frame: Frame) -> bool:
        """Whether nothing may follow a frame that was just added: if so, the end follows at once."""
        is_full = frame.index >= self._generation.params.max_new_tokens
        is_end = frame.token["special"] or frame.token["id"] in self._eos_token_ids
        return is_full or is_end or self._stop.is_found

    def end(self, finish: FinishEvent) -> End:
        """The end of the stream."""
        text = self._text
        if not self._generation.has_details:
            return End(text, None)
        counts = {**self._counts(finish), "input_length": finish.prompt_tokens}
        return End(text, {**counts, **self._speculation(finish)})

    def whole(self, finish: FinishEvent) -> dict[str, Any]:
        """The answer of `/generate`."""
        answer: dict[str, Any] = {"generated_text": self._text}
        if self._generation.has_details:
            details: dict[str, Any] = {
                **self._counts(finish),
                "prefill": [],
                "tokens": [frame.token for frame in self.frames],
            }
            if any(frame.top_tokens for frame in self.frames):
                details["top_tokens"] = [frame.top_tokens for frame in self.frames]
            answer["details"] = {**details, **self._speculation(finish)}
        return answer

    @property
    def _text(self) -> str:
        return (self._generation.inputs if self._generation.is_full_text else "") + "".join(self._texts)

    def _counts(self, finish: FinishEvent) -> dict[str, Any]:
        return {
            "finish_reason": finish.finish_reason,
            "generated_tokens": finish.completion_tokens,
            "seed": finish.seed if self._generation.is_sampled else None,
        }

    def _speculation(self, finish: FinishEvent) -> dict[str, Any]:
        return {"speculation": finish.speculation.as_dict()} if self._generation.has_speculation else {}

    def _frame(self, token: Token) -> Frame:
        text = self._stop.add(token.text)
        self._texts.append(text)
        top = sorted((token.top_logprobs or {}).items(), key=lambda pair: -pair[1])
        told = [self._token(other, self._tokenizer.decode([other]), logprob) for other, logprob in top]
        # Half a character at the end is part of the whole only.
        shown = "" if text.endswith("\ufffd") else text
        return Frame(len(self.frames) + 1, self._token(token.id, shown, token.logprob), told)

    def _token(self, token: int, text: str, logprob: float | None) -> dict[str, Any]:
        # A special token has its name for a text, which is no part of the whole.
        name = self._special.get(token)
        return {
            "id": token,
            "text": text if name is None else name,
            "logprob": None if logprob is None or not math.isfinite(logprob) else shortest(logprob),
            "special": name is not None,
        }


def shortest(value: float) -> float:
    """A number as Rust writes one of 32 bits: by the fewest digits that tell it from its neighbours."""
    value = _in_32_bits(value)
    written = (float(f"{value:.{digits}g}") for digits in range(1, 9))
    return next((short for short in written if _in_32_bits(short) == value), float(f"{value:.9g}"))


def _in_32_bits(value: float) -> float:
    """The number of 32 bits that is closest."""
    try:
        return float(struct.unpack("f", struct.pack("f", float(value)))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
