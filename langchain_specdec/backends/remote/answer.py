"""What a server answers, read as this package reads any completion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from langchain_specdec.backends.remote.frames import Frame
from langchain_specdec.completions.events import FinishReason, Token
from langchain_specdec.completions.thoughts import Thoughts, stops_of
from langchain_specdec.sampling.params import SamplingParams


class Answer:
    """The text of an answer as it comes: special tokens left out, cut at the first stop string and at the limit.

    Args:
        params: The limits.
        shown_specials: Special tokens that are part of the text, by id, with what they are in it.
        is_at_end: Told the text as it is released; whether the answer is cut there.
        thoughts: How thoughts stand in the text, where stop strings do not count; None where there are none.
        counts_limit: Whether the text ends at the limit by itself, and not where the server says so.
    """

    def __init__(
        self,
        params: SamplingParams,
        shown_specials: Mapping[int, str],
        is_at_end: Callable[[str], bool] | None = None,
        thoughts: Thoughts | None = None,
        *,
        counts_limit: bool = True,
    ) -> None:
        self._is_at_end = is_at_end
        self._shown_specials = shown_specials
        self._max_new_tokens = params.max_new_tokens if counts_limit else math.inf
        self._stop_text = stops_of(tuple(params.stop), thoughts)
        self._logprobs = params.logprobs
        self._length = 0
        self._released: list[str] = []
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, frame: Frame) -> Token:
        """Take a token; sets `finish_reason` if it is the last."""
        self.num_tokens += frame.num_tokens
        text = "" if frame.is_special else frame.text
        if frame.end is not None and frame.end.text is not None:
            text = self._last_text(text, frame.end.text, frame.end.finish_reason)
        self._length += len(text)
        is_end_token = frame.end is not None and frame.end.finish_reason == "eos_token"
        shown = None if is_end_token else self._shown_specials.get(frame.token_id)
        # Servers leave out some special tokens only.
        text = self._stop_text.add(text if shown is None or shown in text else text + shown)
        if frame.is_special and shown is None and not self._stop_text.is_found:
            text += self._stop_text.add_special(frame.text)
        if frame.end is not None:
            self.finish_reason = frame.end.finish_reason
        elif self.num_tokens >= self._max_new_tokens:
            # The server goes on past what it was asked for.
            self.finish_reason = "length"
        if self.finish_reason is not None and not self._stop_text.is_found:
            text += self._stop_text.flush()
        if self._stop_text.is_found:
            # The server sees a stop string only where a token ends with it, and goes on past any other.
            self.finish_reason = "stop_sequence"
        self._released.append(text)
        if self.finish_reason in (None, "length") and self._is_at_end is not None and self._is_at_end(text):
            self.finish_reason = "stop_sequence"
        if self._logprobs is None:
            return Token(frame.token_id, text, drafted=None)
        top = dict(frame.top[: self._logprobs])
        return Token(frame.token_id, text, None, frame.logprob, top)

    def end(self, reason: FinishReason, rest: str = "") -> str:
        """End it after its last token; the text that this releases, with the rest of an incomplete character."""
        text = self._stop_text.add(rest)
        if not self._stop_text.is_found:
            text += self._stop_text.flush()
        self.finish_reason = "stop_sequence" if self._stop_text.is_found else reason
        self._released.append(text)
        return text

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._released)

    def _last_text(self, text: str, whole: str, reason: FinishReason) -> str:
        """Text that the last token releases: with it goes what was held back of an incomplete character."""
        rest = whole[self._length :]
        if reason == "eos_token":
            # It has no text of its own, even where the tokenizer does not call it special.
            return rest.removesuffix(text)
        return rest if rest.endswith(text) else text
