"""Token ids to text, one token at a time, never half a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
# How much of the text before decides what the next token's text is: more than any character has bytes.
_CONTEXT = 8


class _Tokenizer(Protocol):
    def decode(self, tokens: Sequence[int]) -> str: ...


class Detokenizer:
    """Incremental decoding of one completion.

    A token's text can depend on its neighbours (spaces of SentencePiece models) and a character can span tokens, so a
    short window is decoded with and without the new tokens and the difference is released once it is whole.

    Args:
        tokenizer: Decodes tokens, without special ones.
        context: Tokens that stand before the first one: a completion's prompt. Without any, the text begins here, and
            some tokenizers leave out the space before its first word.
    """

    def __init__(self, tokenizer: _Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(context[-_CONTEXT:])
        # Half a character in front would make what follows look broken, too.
        while len(self._window) > _CONTEXT // 2 and tokenizer.decode(self._window).startswith(_REPLACEMENT):
            del self._window[0]
        # How many tokens of the window have been released, and their text; they stay to give the others their context.
        self._num_released = len(self._window)
        self._released = tokenizer.decode(self._window)

    def add(self, token: int) -> str:
        """Text that the token completes; empty while a character is incomplete."""
        self._window.append(token)
        before, after = self._released, self._tokenizer.decode(self._window)
        if after.endswith(_REPLACEMENT) or len(after) <= len(before):
            return ""
        self._released = after
        if len(self._window) > _CONTEXT // 2:
            del self._window[: self._num_released]
            self._released = self._tokenizer.decode(self._window)
        self._num_released = len(self._window)
        return after[len(before) :]

    def flush(self) -> str:
        """What is left at the end of the text; an incomplete character becomes U+FFFD, as in a whole decode."""
        before, self._released = self._released, self._tokenizer.decode(self._window)
        self._num_released = len(self._window)
        return self._released[len(before) :]
