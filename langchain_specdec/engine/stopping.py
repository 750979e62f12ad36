"""Where a completion ends: end-of-sequence tokens, stop strings and the token limit, token by token.

Every token of an accepted run passes here one by one, so the text ends exactly where plain decoding would end it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from langchain_specdec.completions.events import FinishReason
from langchain_specdec.completions.thoughts import Thoughts, stops_of


class _Detokenizer(Protocol):
    def add(self, token: int) -> str: ...

    def flush(self) -> str: ...


class StopChecker:
    """Decides after each token whether the completion ends, and which text may be released.

    Args:
        detokenizer: Turns tokens into text.
        max_new_tokens: Most tokens to emit.
        stop: Stop strings.
        eos_token_ids: Tokens that end the text; they have no text of their own. Empty to go on after them.
        special_texts: What special tokens are called, by id. They are no part of the text, but may be of a stop string.
        shown_specials: Special tokens that are part of the text, by id, with what they are in it.
        is_at_end: Told the text as it is released; whether the completion ends there.
        thoughts: How thoughts stand in the text, where stop strings do not count; None where there are none.
    """

    def __init__(
        self,
        detokenizer: _Detokenizer,
        max_new_tokens: int,
        stop: Sequence[str],
        eos_token_ids: Collection[int],
        special_texts: Mapping[int, str],
        shown_specials: Mapping[int, str],
        is_at_end: Callable[[str], bool] | None = None,
        thoughts: Thoughts | None = None,
    ) -> None:
        self._detokenizer = detokenizer
        self._max_new_tokens = max_new_tokens
        self._stop_text = stops_of(stop, thoughts)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._special_texts = special_texts
        self._shown_specials = shown_specials
        self._is_at_end = is_at_end
        self._num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, token: int, *, is_end: bool = False) -> str:
        """Take one token; text that it releases. Sets `finish_reason` if it is the last.

        Args:
            token: The token.
            is_end: Whether it is known to end the text, as a server's may be that tells what its model's ends are.
        """
        text = self._add(token, is_end=is_end or token in self._eos_token_ids)
        if self.finish_reason in (None, "length") and self._is_at_end is not None and self._is_at_end(text):
            self.finish_reason = "stop_sequence"
        return text

    def end(self, reason: FinishReason) -> str:
        """End the text after its last token, where somebody else says so; text that this releases."""
        self.finish_reason = reason
        return self._end("")

    def _add(self, token: int, *, is_end: bool) -> str:
        self._num_tokens += 1
        special = self._special_texts.get(token)
        if is_end:
            self.finish_reason = "eos_token"
            return self._end("", special or "")
        if token in self._shown_specials:
            text = self._stop_text.add(self._detokenizer.flush() + self._shown_specials[token])
        elif special is not None:
            text = self._stop_text.add_special(special)
        else:
            text = self._stop_text.add(self._detokenizer.add(token))
        if self._stop_text.is_found:
            self.finish_reason = "stop_sequence"
            return text
        if self._num_tokens >= self._max_new_tokens:
            self.finish_reason = "length"
            return self._end(text)
        return text

    def _end(self, text: str, special: str = "") -> str:
        text += self._stop_text.add(self._detokenizer.flush())
        if special and not self._stop_text.is_found:
            text += self._stop_text.add_special(special)
        if not self._stop_text.is_found:
            text += self._stop_text.flush()
        if self._stop_text.is_found:
            self.finish_reason = "stop_sequence"
        return text
