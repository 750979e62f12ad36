"""Constrained decoding: which tokens a grammar allows after any path of a draft, and which it forces.

A grammar is followed by llguidance (https://github.com/guidance-ai/llguidance), which computes exact masks over the
vocabulary while it decodes. Here is what speculation needs beside it: states at all nodes of a draft tree, the tokens
that drafts get for nothing because nothing else may follow, and answers that end before their tokens do.

Everything is a function of the text so far, so that plain and speculative decoding choose the same tokens.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar import Grammar
from langchain_specdec.token_masks import TokenMask, has_token, only_token, token_bits

__all__ = ["Constraint", "GrammarCompiler"]

# As models write JSON, but on one line: what is fixed is forced, and need not be decided.
_JSON_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Grammars that are kept compiled.
_MAX_GRAMMARS = 128
# What ends JSON soonest, outside of strings and within; each also with a space before it.
_CLOSERS = (b"}", b"]", b"null", b"true", b"false", b'""', *(str(digit).encode() for digit in range(10)), b'"')
_OPENERS = (b"[", b"{")
# Tokens before the limit from which on each choice is checked for whether the answer can still end in time; and how
# many more for each character of a schema, since one token may begin an object with many required properties.
_ENDGAME_TOKENS = 64
_ENDGAME_SHARE = 0.5


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
            # Tokens beyond the logits exist in some tokenizers, and cannot be chosen.
            size = max(vocab_size, len(tokenizer))
            self.tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=size, eos_token=list(eos_token_ids))
        except Exception as error:
            msg = (
                f"The grammar of an answer can only be followed with a fast Hugging Face tokenizer, and "
                f"{type(tokenizer).__name__} is none that can be read: {error}"
            )
            raise InvalidParameterError(msg) from error
        self.size = size
        self.eos_token_ids = tuple(eos_token_ids)

    @cached_property
    def spellings(self) -> list[bytes]:
        """The bytes of each token."""
        return [b"" if self.tokens.is_special_token(t) else self.tokens.decode_bytes([t]) for t in range(self.size)]

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The first token that spells some bytes."""
        ids: dict[bytes, int] = {}
        for token, spelling in enumerate(self.spellings):
            ids.setdefault(spelling, token)
        return ids

    @cached_property
    def closers(self) -> list[int]:
        """Tokens that end JSON soonest, best first, outside of strings."""
        texts = [*_CLOSERS, *(b" " + text for text in (*_CLOSERS, *_OPENERS)), *_OPENERS]
        return [self.ids[text] for text in texts if text in self.ids]

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """Rank of each token for making headway: plain words and numbers first, long ones first."""
        keys = [
            (not (s.isascii() and s.decode(errors="replace").isalnum()), -len(s), t)
            for t, s in enumerate(self.spellings)
        ]
        ranks = np.empty(self.size, dtype=np.int64)
        ranks[[t for _, _, t in sorted(keys)]] = np.arange(self.size)
        return ranks


class _JsonPlace:
    """Whether a place in a JSON text is within a string."""

    def __init__(self, in_string: bool = False, is_escaped: bool = False) -> None:
        self.in_string = in_string
        self.is_escaped = is_escaped

    def copy(self) -> _JsonPlace:
        return _JsonPlace(self.in_string, self.is_escaped)

    def read(self, spelling: bytes) -> None:
        for byte in spelling:
            if self.is_escaped:
                self.is_escaped = False
            elif byte == ord('"'):
                self.in_string = not self.in_string
            elif byte == ord("\\") and self.in_string:
                self.is_escaped = True


class Constraint:
    """The state of one answer in its grammar. Paths are tokens after the text so far; none are kept.

    Args:
        matcher: At the beginning of the answer.
        vocabulary: The tokens.
        endgame: Number of tokens before the limit from which on choices are checked.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: Vocabulary, endgame: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._endgame = endgame
        self._place = _JsonPlace()
        self._has_ended = False

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take emitted tokens.

        Raises:
            ValueError: The grammar does not allow them.
        """
        for token in token_ids:
            if token in self._vocabulary.eos_token_ids:
                self._has_ended = True
                return
            if not self._matcher.consume_token(token):
                raise ValueError(self._matcher.get_error() or f"token {token} does not fit the grammar")
            self._place.read(self._vocabulary.spellings[token])

    def forced_after(self, path: Sequence[int]) -> list[int]:
        """The tokens that must follow a path, in order; empty where there is a choice, or the path is none."""
        with self._at(path) as is_valid:
            return self._forced() if is_valid else []

    def allowed_after(self, path: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Which of these tokens may follow a path."""
        with self._at(path) as is_valid:
            if not is_valid:
                return [False] * len(tokens)
            mask = self._mask()
            return [has_token(mask, token) for token in tokens]

    def mask_after(self, path: Sequence[int]) -> TokenMask | None:
        """Bits of the tokens that may follow a path; None where the path is none."""
        with self._at(path) as is_valid:
            return self._mask() if is_valid else None

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> list[TokenMask | None]:
        """Masks after the text so far, and after each node of a draft tree.

        Args:
            tokens: The draft's tokens.
            parents: For each the index of the token it follows; -1 is the text's last.

        Returns:
            One more than there are tokens, the root's first; None where the grammar does not allow the node.
        """
        paths: list[list[int] | None] = [[]]
        masks: list[TokenMask | None] = [self.mask_after(())]
        for token, parent in zip(tokens, parents, strict=True):
            above, mask = paths[parent + 1], masks[parent + 1]
            # A node that nothing can reach needs no mask, nor does what follows an end.
            if above is None or mask is None or not has_token(mask, token):
                paths.append(None)
                masks.append(None)
                continue
            paths.append([*above, token])
            masks.append(self.mask_after(paths[-1] or ()))
        return masks

    def in_time(self, chosen: Sequence[int], remaining: int) -> list[int]:
        """The chosen tokens, up to the first after which the answer could not end before the limit.

        That one is replaced by the next of a short way to the end. So an answer is cut only where its shortest one is
        longer than the limit.

        Args:
            chosen: Tokens that would be emitted now.
            remaining: How many may be emitted.

        Returns:
            As many or fewer, at least one.
        """
        kept: list[int] = []
        for token in chosen:
            left = remaining - len(kept) - 1
            if left < self._endgame and token not in self._vocabulary.eos_token_ids:
                ending = self._ending((*kept, token), left)
                if ending is None and (better := self._ending(kept, left + 1)):
                    return [*kept, better[0]]
            kept.append(token)
        return kept

    def shortest(self, limit: int) -> list[int] | None:
        """A short answer from here on, its end-of-sequence token included; None where it has more tokens than that."""
        return self._ending((), limit)

    @contextmanager
    def _at(self, path: Sequence[int]) -> Iterator[bool]:
        """Within it the matcher stands after the path; whether the grammar allows that, with more to come."""
        if self._has_ended or any(token in self._vocabulary.eos_token_ids for token in path):
            yield False
            return
        taken = self._matcher.try_consume_tokens(list(path)) if path else 0
        try:
            yield taken == len(path) and not self._matcher.is_error()
        finally:
            if taken:
                self._matcher.rollback(taken)

    def _forced(self) -> list[int]:
        if self._matcher.is_stopped():
            return list(self._vocabulary.eos_token_ids[:1])
        return list(self._matcher.compute_ff_tokens())

    def _mask(self) -> TokenMask:
        if self._matcher.is_stopped():
            # One end is as good as another, and known beforehand.
            return only_token(self._vocabulary.eos_token_ids[0], self._vocabulary.size)
        mask = llguidance.numpy.allocate_token_bitmask(1, self._vocabulary.size)
        llguidance.numpy.fill_next_token_bitmask(self._matcher, mask)
        if self._matcher.is_error():
            msg = f"The grammar cannot be followed any further: {self._matcher.get_error()}"
            raise ValueError(msg)
        words: TokenMask = mask[0]
        return words

    def _ending(self, path: Sequence[int], limit: int) -> list[int] | None:
        """A short way from a path to the end of the answer, of at most `limit` tokens; None where none is found.

        Not the shortest of all: what closes most is taken at each place.
        """
        with self._at(path) as is_valid:
            if not is_valid:
                return None
            place = self._place.copy()
            for token in path:
                place.read(self._vocabulary.spellings[token])
            ending: list[int] = []
            try:
                while len(ending) < limit:
                    if self._matcher.is_stopped() or self._matcher.is_accepting():
                        return [*ending, self._vocabulary.eos_token_ids[0]]
                    following = self._matcher.compute_ff_tokens()[: limit - len(ending)] or [self._closing(place)]
                    if not self._matcher.consume_tokens(following):
                        raise ValueError(self._matcher.get_error())
                    ending += following
                    for token in following:
                        place.read(self._vocabulary.spellings[token])
                return None
            finally:
                if ending:
                    self._matcher.rollback(len(ending))

    def _closing(self, place: _JsonPlace) -> int:
        mask = self._mask()
        quote = self._vocabulary.ids.get(b'"')
        preferred = self._vocabulary.closers
        if place.in_string:
            preferred = [] if place.is_escaped or quote is None else [quote]
        for token in preferred:
            if has_token(mask, token):
                return token
        allowed = np.flatnonzero(token_bits(mask))
        return int(allowed[self._vocabulary.ranks[allowed].argmin()])


class GrammarCompiler:
    """Makes constraints from grammars. May be used from any thread.

    Args:
        tokenizer: The target's tokenizer.
        vocab_size: Number of logits.
        eos_token_ids: Tokens that end a text.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._matchers: OrderedDict[tuple[str, str], llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        # Reading a large one takes a second, so that waits for the first grammar.
        return Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)

    def compile(self, grammar: Grammar, max_new_tokens: int) -> Constraint:
        """A constraint at the beginning of an answer.

        Raises:
            InvalidParameterError: The grammar is wrong, asks for what cannot be followed, or needs more tokens.
        """
        with self._lock:
            matcher = self._matchers.get(grammar.identity)
            if matcher is None:
                matcher = self._matchers[grammar.identity] = self._compile(grammar)
            self._matchers.move_to_end(grammar.identity)
            if len(self._matchers) > _MAX_GRAMMARS:
                self._matchers.popitem(last=False)
            matcher = matcher.deep_copy()
        endgame = _ENDGAME_TOKENS + int(_ENDGAME_SHARE * len(grammar.identity[1]))
        constraint = Constraint(matcher, self._vocabulary, endgame)
        if constraint.shortest(max_new_tokens) is None:
            msg = (
                f"The grammar has no short answer that fits into {max_new_tokens} tokens. Raise max_new_tokens, or ask "
                f"for less (an object that always holds another of its kind has no end)."
            )
            raise InvalidParameterError(msg)
        return constraint

    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        if grammar.regex is not None:
            source, what = llguidance.LLMatcher.grammar_from_regex(grammar.regex), "regular expression"
        else:
            schema = json.dumps(grammar.schema)
            source, what = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_OPTIONS), "JSON schema"
        matcher = llguidance.LLMatcher(self._vocabulary.tokens, source, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            msg = f"The {what} cannot be followed: {reason}. Change that part of it, or leave it out."
            raise InvalidParameterError(msg)
        return matcher
