"""Answers that begin with thoughts of limited length: then fixed text follows, and a grammar's text or a free one.

As with every constraint, all is a function of the text so far and of what the model chooses, so that plain and
speculative decoding choose the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.constraint import Constraint, GrammarCompiler
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.token_masks import TokenMask, only_token
from langchain_specdec.grammar.vocabulary import Vocabulary

# The rest of the fixed text may have some tokens more than the whole, where a token of the model ends within it.
_SLACK = 4


class ThoughtPhase(NamedTuple):
    """A thought, and what comes between it and the text after it.

    Attributes:
        end: The mark that ends it.
        closing: What ends it once its tokens are spent; the mark is the last of it.
        following: What follows the mark where that was forced, or where a grammar comes next.
        max_tokens: Most tokens of the thought; where a free text follows, of all thoughts before it.
        begins: Marks that begin one, where a free text follows.
        implied_ends: Texts that end one, too, and belong to what follows.
        is_open: Whether the prompt has begun it; it has to where a grammar follows.
    """

    end: str
    closing: str
    following: str
    max_tokens: int
    begins: tuple[str, ...] = ()
    implied_ends: tuple[str, ...] = ()
    is_open: bool = True


class _Place(NamedTuple):
    """Where a text stands that has not come to what follows thoughts.

    Attributes:
        num_tokens: Tokens of thoughts so far.
        tail: The last bytes, which may begin a mark.
        given: Tokens that have to follow; empty where thoughts and all fixed text are over. None within a thought, and
            where one may begin.
        is_thinking: Whether it is within a thought.
    """

    num_tokens: int
    tail: bytes
    given: tuple[int, ...] | None
    is_thinking: bool = True


class ThoughtFirst(Constraint):
    """A thought, fixed text, and then the text of another constraint; or thoughts, and then a free text.

    A thought ends with its end mark. That is forced, as `closing` has it, where its tokens are spent; and, where a
    grammar follows, where the model would end its text instead, write the mark and more than white space at once, or go
    on to what follows without the mark.

    A free text is held only where a thought is too long, so it is the model's own as long as none is. Its thoughts are
    those before the answer: behind the first word of that, marks may be part of a text or a call.

    Args:
        phase: The thought, with no more tokens than leave room for what follows.
        after: The constraint at the beginning of what follows; None: it is free.
        vocabulary: The tokens.
    """

    def __init__(self, phase: ThoughtPhase, after: Constraint | None, vocabulary: Vocabulary) -> None:
        self._phase = phase
        self._after = after
        self._vocabulary = vocabulary
        self._end = phase.end.encode()
        self._begins = tuple(begin.encode() for begin in phase.begins)
        self._implied_ends = tuple(text.encode() for text in phase.implied_ends)
        self._tail_size = max(len(text) for text in (self._end, *self._implied_ends)) - 1
        # Special tokens that no thought goes on with.
        self._leaving = frozenset(
            token
            for text, token in (vocabulary.special_ids.items() if after is not None else ())
            if any(implied.startswith(text) for implied in phase.implied_ends)
        )
        self._closing = tuple(vocabulary.encode(phase.closing + phase.following))
        # What follows the mark, by the white space that came with it.
        self._followings: dict[bytes, tuple[int, ...]] = {}
        self._place = self._thinking(0, b"") if phase.is_open else self._between(0, b"")
        # Where the text stands after so many tokens of this step, the last of which begins to close the thought.
        self._closed: tuple[int, _Place] | None = None

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take emitted tokens.

        Raises:
            ValueError: They are not allowed.
        """
        closed, self._closed = self._closed, None
        if closed is not None and closed[0] == len(token_ids):
            self._place = closed[1]
            return
        for index, token in enumerate(token_ids):
            if self._place.given == ():
                if self._after is not None:
                    self._after.advance(token_ids[index:])
                return
            place = self._step(self._place, token)
            if place is None:
                msg = f"The fixed text after a thought does not allow the token {token}."
                raise ValueError(msg)
            self._place = place

    def forced_after(self, path: Sequence[int]) -> list[int]:
        """The tokens that must follow a path, in order; empty where there is a choice, or the path is none."""
        place, rest = self._walk(path)
        if place is None or place.given is None:
            return []
        if place.given:
            return list(place.given)
        return self._after.forced_after(rest) if self._after is not None else []

    def allowed_after(self, path: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Which of these tokens may follow a path; an end of the text in a thought is not worth a draft."""
        place, rest = self._walk(path)
        if place is not None and place.given == ():
            return [True] * len(tokens) if self._after is None else self._after.allowed_after(rest, tokens)
        return [place is not None and self._step(place, token) is not None for token in tokens]

    def mask_after(self, path: Sequence[int]) -> TokenMask | None:
        """Bits of the tokens that may follow a path; None in a thought, where all may, and where the path is none."""
        place, rest = self._walk(path)
        if place is None or place.given is None:
            return None
        if place.given:
            return only_token(place.given[0], self._vocabulary.size)
        if self._after is None:
            return None
        # What may come first of all is asked for as of a draft: it may be more than drafts are made of.
        return self._after.mask_after(rest) if rest else self._after.masks([], [])[0]

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> list[TokenMask | None]:
        """Masks after the text so far, and after each node of a draft tree; None where any token may follow."""
        if self._place.given == ():
            return [None] * (len(tokens) + 1) if self._after is None else self._after.masks(tokens, parents)
        paths: list[list[int]] = [[]]
        for token, parent in zip(tokens, parents, strict=True):
            paths.append([*paths[parent + 1], token])
        return [self.mask_after(path) for path in paths]

    def in_time(self, chosen: Sequence[int], remaining: int) -> list[int]:
        """The chosen tokens, up to the first that is replaced: by a fixed one, or by one that closes the thought.

        What follows both is as `Constraint.in_time` has it.
        """
        self._closed = None
        place = self._place
        for index, token in enumerate(chosen):
            if place.given == ():
                if self._after is None:
                    break
                return [*chosen[:index], *self._after.in_time(chosen[index:], remaining - index)]
            following = self._step(place, token)
            if following is None:
                first, *rest = place.given or self._closing
                self._closed = index + 1, self._giving(place, tuple(rest))
                return [*chosen[:index], first]
            place = following
        return list(chosen)

    def shortest(self, limit: int, until: float = math.inf) -> list[int] | None:
        """A short text from here on, where the thought is closed at once; a free one may end anywhere."""
        if self._after is None:
            return []
        given = list(self._closing if self._place.given is None else self._place.given)
        rest = self._after.shortest(limit - len(given), until)
        return None if rest is None else [*given, *rest]

    def _walk(self, path: Sequence[int]) -> tuple[_Place | None, Sequence[int]]:
        """Where a path leads, and the tokens of it that belong to what follows; None where it is no path."""
        place = self._place
        for index, token in enumerate(path):
            if place.given == ():
                return place, path[index:]
            following = self._step(place, token)
            if following is None:
                return None, ()
            place = following
        return place, ()

    def _step(self, place: _Place, token: int) -> _Place | None:
        """Where a token leads from a place before what follows; None where it may not come."""
        if place.given is not None:
            return self._giving(place, place.given[1:]) if token == place.given[0] else None
        # A free text may end in its thought; where it goes on all the same (`ignore_eos`), the thought does, too.
        is_end = token in self._vocabulary.eos_token_ids
        if self._after is not None and (is_end or token in self._leaving):
            return None
        if not place.is_thinking:
            return place if is_end else self._between(place.num_tokens, place.tail + self._vocabulary.texts[token])
        text = place.tail + self._vocabulary.texts[token]
        ends = [(at, mark) for mark in (self._end, *self._implied_ends) if (at := text.find(mark)) >= 0]
        if not ends:
            return self._thinking(place.num_tokens + 1, text)
        position, mark = min(ends, key=lambda found: found[0])
        left = text[position + len(mark) :] if mark == self._end else text[position:]
        if self._after is None:
            return self._between(place.num_tokens, left)
        if left.strip():
            return None
        return _Place(place.num_tokens, b"", self._left_of(left))

    def _thinking(self, num_tokens: int, text: bytes) -> _Place:
        """Within a thought that ends with this text, or at its end once its tokens are spent."""
        is_spent = num_tokens >= self._phase.max_tokens
        return _Place(num_tokens, text[max(len(text) - self._tail_size, 0) :], self._closing if is_spent else None)

    def _between(self, num_tokens: int, text: bytes) -> _Place:
        """Where a free text stands that has this behind a thought, or at its beginning."""
        text = text.lstrip()
        if begun := [begin for begin in self._begins if text.startswith(begin)]:
            return self._thinking(num_tokens, text[len(max(begun, key=len)) :])
        if text.startswith(self._end):
            return self._between(num_tokens, text[len(self._end) :])
        is_answer = not any(mark.startswith(text) for mark in (*self._begins, self._end))
        return _Place(num_tokens, text, () if is_answer else None, is_thinking=False)

    def _giving(self, place: _Place, given: tuple[int, ...]) -> _Place:
        """The place where these tokens are still to follow."""
        if not given and self._after is None:
            return self._between(place.num_tokens, b"")
        return place._replace(tail=b"", given=given)

    def _left_of(self, space: bytes) -> tuple[int, ...]:
        """What is left of the fixed text, where a token has brought some white space with the mark."""
        if space not in self._followings:
            following, written = self._phase.following, space.decode(errors="replace")
            if written:
                has_it = following.startswith(written)
                following = following.removeprefix(written) if has_it else following.lstrip()
            self._followings[space] = tuple(self._vocabulary.encode(following)) if following else ()
        return self._followings[space]


def thought_first(
    phase: ThoughtPhase, grammar: Grammar | None, max_new_tokens: int, compiler: GrammarCompiler
) -> ThoughtFirst:
    """The constraint of a text that begins with a thought.

    Args:
        phase: The thought. It gets fewer tokens where what follows would have no room.
        grammar: What follows it; None: any text.
        max_new_tokens: Most tokens of all.
        compiler: Compiles the grammar.

    Raises:
        InvalidParameterError: There is no room for an answer, or the grammar cannot be followed.
    """
    vocabulary = compiler.vocabulary
    if grammar is None:
        return ThoughtFirst(phase, None, vocabulary)
    fixed = len(vocabulary.encode(phase.closing + phase.following)) + _SLACK
    if fixed >= max_new_tokens:
        msg = (
            f"max_new_tokens={max_new_tokens} leaves no room for an answer after the thought, whose end alone takes "
            f"{fixed} tokens. Raise it, or have the model not think (reasoning=False)."
        )
        raise InvalidParameterError(msg)
    after = compiler.compile(grammar, max_new_tokens - fixed, fixed)
    needed = fixed + len(after.shortest(max_new_tokens - fixed) or ())
    most = min(phase.max_tokens, max_new_tokens - needed)
    return ThoughtFirst(phase._replace(max_tokens=max(most, 0)), after, vocabulary)
