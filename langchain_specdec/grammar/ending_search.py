"""How an answer that follows a grammar can end soon: searched for greedily, one place at a time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from langchain_specdec.grammar.state import GrammarState
from langchain_specdec.grammar.text_patterns import one_of
from langchain_specdec.grammar.token_masks import TokenMask, has_token, token_bits
from langchain_specdec.grammar.vocabulary import Vocabulary

_DIGITS = tuple(b"%d" % i for i in range(10))
# The texts that end JSON soonest outside of strings; each also with a space before it.
_CLOSERS = (b"}", b"]", b",", b"null", b"n", b"true", b"t", b"false", b"f", b'""', *_DIGITS, b'"')
_OPENERS = (b"[", b"{")
# An ending of so many tokens may be one of those that are longer than need be.
_LONG = 64
# Bytes of the longest text that ends raw text.
_LONGEST_END = 64


@dataclass(slots=True)
class _JsonPlace:
    """Whether a place in a JSON text is within a string, or a number; the end of raw text is within none."""

    raw_ends: tuple[bytes, ...] = ()
    in_string: bool = False
    is_escaped: bool = False
    in_number: bool = False
    # What was read last, where raw text may end.
    read_last: bytes = b""

    def read(self, spelling: bytes) -> None:
        """Go on by the bytes of a token."""
        for byte in spelling:
            if self.raw_ends:
                self.read_last = (self.read_last + bytes([byte]))[-_LONGEST_END:]
                if self.read_last.endswith(self.raw_ends):
                    self.in_string = self.is_escaped = False
                    continue
            if self.is_escaped:
                self.is_escaped = False
            elif byte == ord('"'):
                self.in_string = not self.in_string
            elif byte == ord("\\") and self.in_string:
                self.is_escaped = True
        if spelling:
            self.in_number = not self.in_string and spelling[-1:] in (b".", *_DIGITS)


class Closers:
    """The tokens of a vocabulary by how soon they end an answer. Shared by all searches.

    Args:
        vocabulary: The tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @cached_property
    def outside(self) -> list[int]:
        """What ends JSON soonest, best first, outside of strings."""
        texts = [*_CLOSERS, *(b" " + text for text in (*_CLOSERS, *_OPENERS)), *_OPENERS]
        return self._known(texts)

    @cached_property
    def in_number(self) -> list[int]:
        """The same within a number, large digits first: 17.0000 never comes above 17, and 17.9 does."""
        digits = self._known(reversed(_DIGITS))
        return [*(token for token in self.outside if token not in digits), *digits]

    @cached_property
    def in_string(self) -> list[int]:
        """What ends a string."""
        return self._known([b'"'])

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """Rank of each token for making headway: plain words and numbers first, long ones first."""
        keys = [
            (not (s.isascii() and s.decode(errors="replace").isalnum()), -len(s), t)
            for t, s in enumerate(self._vocabulary.spellings)
        ]
        ranks = np.empty(len(keys), dtype=np.int64)
        ranks[[t for _, _, t in sorted(keys)]] = np.arange(len(keys))
        return ranks

    @cached_property
    def is_short(self) -> NDArray[np.bool_]:
        """Whether each token is a single byte."""
        return np.array([len(spelling) == 1 for spelling in self._vocabulary.spellings])

    def _known(self, texts: Iterable[bytes]) -> list[int]:
        return [self._vocabulary.ids[text] for text in texts if text in self._vocabulary.ids]


class EndingSearch:
    """Looks for short ways to the end of one answer, and keeps track of where the answer is.

    Args:
        state: Where the answer stands in its grammar.
        vocabulary: The tokens.
        closers: The same by how soon they end an answer.
        is_json: Whether the answer is JSON, whose structure tells what closes it.
        fillings: Gives texts after which a string that holds to a pattern may end, the shortest first.
        raw_ends: Texts that end raw text between JSON, in which its brackets and quotes mean nothing.
    """

    def __init__(
        self,
        state: GrammarState,
        vocabulary: Vocabulary,
        closers: Closers,
        *,
        is_json: bool,
        fillings: Callable[[], Sequence[str]] = tuple,
        raw_ends: Sequence[str] = (),
    ) -> None:
        self._state = state
        self._vocabulary = vocabulary
        self._closers = closers
        self._is_json = is_json
        self._fillings = fillings
        self._raw_ends = [_tokens_of(end, vocabulary) for end in raw_ends]
        self._place = _JsonPlace(tuple(end.encode() for end in raw_ends))

    def advance(self, tokens: Sequence[int]) -> None:
        """The answer has grown."""
        self._read(self._place, tokens)

    def find(self, path: Sequence[int], limit: int, until: float = math.inf) -> list[int] | None:
        """A short way to the end of the answer, of at most `limit` tokens; None where none is found.

        Not the shortest of all: what closes most is taken at each place. Where nothing closes, as in the middle of a
        pattern, a text that holds to it is tried, and then long tokens make most headway; if that leads nowhere, or
        far, single characters are taken in turn.

        Args:
            path: Tokens after the answer so far.
            limit: Most tokens, the one that ends the text included.
            until: When to give up, by `time.thread_time`.

        Raises:
            TimeoutError: It is later.
        """
        found = self._walk(path, limit, until, is_fair=False)
        if found is None:
            return self._walk(path, limit, until, is_fair=True)
        if len(found) > _LONG:
            # Headway in a pattern may have led through all that it repeats.
            return self._walk(path, len(found) - 1, until, is_fair=True) or found
        return found

    def _walk(self, path: Sequence[int], limit: int, until: float, *, is_fair: bool) -> list[int] | None:
        place = replace(self._place)
        self._read(place, path)
        ending: list[int] = []
        # Tokens taken at this place that closed nothing.
        taken: list[int] = []
        if not self._state.move(path):
            return None
        while len(ending) < limit:
            if time.thread_time() > until:
                raise TimeoutError
            if self._state.may_end:
                return [*ending, self._vocabulary.eos_token_ids[0]]
            following = self._state.forced()[: limit - len(ending)]
            if not following:
                mask = self._state.mask()
                if mask is None:
                    return None
                closing = next((t for t in self._preferred(place) if has_token(mask, t)), None)
                if end := self._raw_end([*path, *ending]):
                    following = end[: limit - len(ending)]
                    taken.clear()
                elif closing is not None:
                    following = [closing]
                    taken.clear()
                elif taken or not (following := self._filled([*path, *ending], place)[: limit - len(ending)]):
                    following = [self._next_fair(mask, taken) if is_fair else self._longest(mask)]
                    taken += following
            if not self._state.push(following):
                return None
            ending += following
            self._read(place, following)
        return None

    def _raw_end(self, path: Sequence[int]) -> list[int]:
        """The tokens that end the raw text at a place; empty where it is none."""
        found: list[int] = []
        for tokens in self._raw_ends:
            # In a string of JSON the same text could stand once more.
            if self._state.move([*path, *tokens]) and not self._state.move([*path, *tokens, *tokens]):
                found = tokens
                break
        if self._raw_ends:
            self._state.move(path)
        return found

    def _filled(self, path: Sequence[int], place: _JsonPlace) -> list[int]:
        """Tokens after which the string may end, or the text where it is no JSON; empty where none are known."""
        if self._is_json and (place.is_escaped or not place.in_string):
            return []
        found: list[int] = []
        for text in self._fillings():
            tokens = list(self._vocabulary.tokens.greedy_tokenize(text))
            if self._state.move([*path, *tokens]) and self._may_close():
                found = tokens
                break
        self._state.move(path)
        return found

    def _may_close(self) -> bool:
        if not self._is_json:
            return self._state.may_end
        mask = self._state.mask()
        return mask is not None and any(has_token(mask, token) for token in self._closers.in_string)

    def _read(self, place: _JsonPlace, tokens: Sequence[int]) -> None:
        # Quotes have no meaning in a regular expression's text.
        if self._is_json:
            for token in tokens:
                place.read(self._vocabulary.spellings[token])
                if [token] in self._raw_ends:
                    place.in_string = place.is_escaped = False

    def _preferred(self, place: _JsonPlace) -> list[int]:
        if not self._is_json or place.is_escaped:
            return []
        if place.in_string:
            return self._closers.in_string
        return self._closers.in_number if place.in_number else self._closers.outside

    def _longest(self, mask: TokenMask) -> int:
        allowed = np.flatnonzero(token_bits(mask))
        return int(allowed[self._closers.ranks[allowed].argmin()])

    def _next_fair(self, mask: TokenMask, taken: Sequence[int]) -> int:
        """The character that was taken least, of equals rather a space or a mark than one more letter."""
        allowed = np.flatnonzero(token_bits(mask))
        short = allowed[self._closers.is_short[allowed]]
        allowed = short if len(short) else allowed
        counts = np.array([taken.count(t) for t in allowed.tolist()])
        allowed = allowed[counts == counts.min()]
        return int(allowed[self._closers.ranks[allowed].argmax()])


def _tokens_of(text: str, vocabulary: Vocabulary) -> list[int]:
    """The tokens of a text in which special tokens are meant as such."""
    pieces = re.split(f"({one_of(vocabulary.special_ids)})", text)
    special = vocabulary.special_ids
    return [t for p in pieces for t in ([special[p]] if p in special else vocabulary.tokens.greedy_tokenize(p))]
