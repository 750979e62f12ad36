"""What the tokens of a tokenizer spell, as grammars need to know it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import llguidance
import llguidance.numpy

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.token_masks import TokenMask, only_token, tokens_mask
from langchain_specdec.grammar.token_names import renamed_json, secret_names, special_names


class Vocabulary:
    """What the tokens of a tokenizer spell.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        vocab_size: Number of logits.
        eos_token_ids: Tokens that end a text.

    Raises:
        InvalidParameterError: The tokenizer is of a kind whose tokens' spelling cannot be known.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        if not eos_token_ids:
            msg = "The model has no end-of-sequence token, so an answer in a given form could not end."
            raise InvalidParameterError(msg)
        try:
            # Some tokenizers have tokens beyond the logits; they can never be picked.
            size = max(vocab_size, len(tokenizer))
            self.tokens = _read(tokenizer, size, eos_token_ids)
        except Exception as error:
            msg = (
                f"The grammar of an answer can only be followed with a fast Hugging Face tokenizer, and "
                f"{type(tokenizer).__name__} is none that can be read: {error}"
            )
            raise InvalidParameterError(msg) from error
        self.size = size
        self._tokenizer = tokenizer
        self._added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        self.eos_token_ids = tuple(eos_token_ids)

    @cached_property
    def spellings(self) -> list[bytes]:
        """The bytes of each token."""
        return [b"" if self.tokens.is_special_token(t) else self.tokens.decode_bytes([t]) for t in range(self.size)]

    @cached_property
    def texts(self) -> list[bytes]:
        """The same, with the texts of special tokens, which stand in no other text."""
        names = {index: content.encode() for content, index in self.special_ids.items()}
        return [names.get(token, spelling) for token, spelling in enumerate(self.spellings)]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text that stands within another; the special ones in it are special."""
        ids, dot = (list(self._tokenizer(each, add_special_tokens=False).input_ids) for each in (f".{text}", "."))
        if ids[: len(dot)] == dot:
            return ids[len(dot) :]
        # Some tokenizers begin with a space that is not there.
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The first token that spells some bytes."""
        ids: dict[bytes, int] = {}
        for token, spelling in enumerate(self.spellings):
            ids.setdefault(spelling, token)
        return ids

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Added tokens, by their text, whose spelling means nothing to llguidance: more than are special elsewhere."""
        return {content: index for index, content in self._added.items() if self.tokens.is_special_token(index)}

    @cached_property
    def words(self) -> TokenMask:
        """Tokens that text may begin with, and those that end it; no white space, and no marks."""
        words = [t for t, spelling in enumerate(self.spellings) if spelling.strip() and t not in self._added]
        return tokens_mask([*words, *self.eos_token_ids], self.size)

    def mask(self, matcher: llguidance.LLMatcher) -> TokenMask:
        """The tokens that may follow where the matcher stands. Where it fails, that is its error, and no token may."""
        if matcher.is_stopped() and not matcher.is_error():
            # All end tokens mean the same here, so the first one stands for them.
            return only_token(self.eos_token_ids[0], self.size)
        masks = llguidance.numpy.allocate_token_bitmask(1, self.size)
        llguidance.numpy.fill_next_token_bitmask(matcher, masks)
        mask: TokenMask = masks[0]
        return mask


def _read(tokenizer: Any, size: int, eos_token_ids: Sequence[int]) -> llguidance.LLTokenizer:
    """What llguidance makes of a tokenizer, with names for its special tokens that stand in no text.

    It encodes what a grammar forces, and would take the text of a special token for that token, which spells nothing.
    """
    # To it, tags are special too.
    source = renamed_json(tokenizer.backend_tokenizer, secret_names(special_names(tokenizer)))
    return llguidance.LLTokenizer(source, n_vocab=size, eos_token=list(eos_token_ids))
