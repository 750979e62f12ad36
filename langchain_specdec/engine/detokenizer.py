"""Token ids to text, one token at a time, never half a character."""

from __future__ import annotations

from typing import Any

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Incremental decoding of one completion.

    A token's text can depend on its neighbours (spaces of SentencePiece models) and a character can span tokens, so a
    short window is decoded with and without the new tokens and the difference is released once it is whole.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        # How many tokens of the window have been released; they stay to give the others their context.
        self._num_released = 0

    def add(self, token: int) -> str:
        """Text that the token completes; empty while a character is incomplete."""
        self._window.append(token)
        before = self._decode(self._window[: self._num_released])
        after = self._decode(self._window)
        if after.endswith(_REPLACEMENT) or len(after) <= len(before):
            return ""
        self._window = self._window[self._num_released :]
        self._num_released = len(self._window)
        return after[len(before) :]

    def flush(self) -> str:
        """What is left at the end of the text; an incomplete character becomes U+FFFD, as in a whole decode."""
        before = self._decode(self._window[: self._num_released])
        after = self._decode(self._window)
        self._num_released = len(self._window)
        return after[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        if not tokens:
            return ""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
