"""Where a completion ends: end-of-sequence tokens, stop strings and the token limit, token by token.

Every token of an accepted run passes here one by one, so the text ends exactly where plain decoding would end it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from langchain_specdec.events import FinishReason

__all__ = ["StopChecker", "StopText"]


class _Detokenizer(Protocol):
    def add(self, token: int) -> str: ...

    def flush(self) -> str: ...


class StopText:
    """Cuts a growing text at the first stop string and holds back what may become one.

    Args:
        stop: The stop strings.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.is_found = False

    def add(self, text: str) -> str:
        """Text that is safe to release, without the stop string if that is complete now."""
        if not self._stop:
            return text
        text = self._held + text
        found = [position for position in (text.find(s) for s in self._stop) if position >= 0]
        if found:
            self.is_found = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, s) for s in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back; the text ended and it did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class StopChecker:
    """Decides after each token whether the completion ends, and which text may be released.

    Args:
        detokenizer: Turns tokens into text.
        max_new_tokens: Most tokens to emit.
        stop: Stop strings.
        eos_token_ids: Tokens that end the text; they have no text of their own. Empty to go on after them.
    """

    def __init__(
        self, detokenizer: _Detokenizer, max_new_tokens: int, stop: Sequence[str], eos_token_ids: Collection[int]
    ) -> None:
        self._detokenizer = detokenizer
        self._max_new_tokens = max_new_tokens
        self._stop_text = StopText(stop)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, token: int) -> str:
        """Take one token; text that it releases. Sets `finish_reason` if it is the last."""
        self._num_tokens += 1
        if token in self._eos_token_ids:
            self.finish_reason = "eos_token"
            return self._end("")
        text = self._stop_text.add(self._detokenizer.add(token))
        if self._stop_text.is_found:
            self.finish_reason = "stop_sequence"
            return text
        if self._num_tokens >= self._max_new_tokens:
            self.finish_reason = "length"
            return self._end(text)
        return text

    def _end(self, text: str) -> str:
        text += self._stop_text.add(self._detokenizer.flush())
        if self._stop_text.is_found:
            self.finish_reason = "stop_sequence"
            return text
        return text + self._stop_text.flush()
