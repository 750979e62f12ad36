"""Where an answer stands in its grammar: moved along paths and back, and never lost in a dead end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import llguidance

from langchain_specdec.grammar.matching import one_line
from langchain_specdec.grammar.token_masks import TokenMask
from langchain_specdec.grammar.vocabulary import Vocabulary


class GrammarState:
    """A matcher that stands after the text so far, or after a path of tokens behind it.

    A path into a dead end is no path: it is told, and costs nothing else. An llguidance matcher that has failed stays
    so, therefore another one takes its place then.

    Args:
        start: Makes a matcher that stands at the beginning of the answer.
        vocabulary: The tokens.
    """

    def __init__(self, start: Callable[[], llguidance.LLMatcher], vocabulary: Vocabulary) -> None:
        self._start = start
        self._matcher = start()
        self._vocabulary = vocabulary
        self._text: list[int] = []
        # The path that the matcher has taken beyond the text.
        self._path: list[int] = []
        self.failure = ""
        """Why the last path that failed did, in one line."""

    @property
    def is_over(self) -> bool:
        """Whether only an end of the text may follow."""
        return self._matcher.is_stopped()

    @property
    def may_end(self) -> bool:
        """Whether the text may end here."""
        return self._matcher.is_stopped() or self._matcher.is_accepting()

    def extend_text(self, tokens: Sequence[int]) -> bool:
        """Take tokens into the text, where the grammar allows them."""
        if not self.move(tokens):
            return False
        self._text += tokens
        self._path.clear()
        return True

    def move(self, path: Sequence[int]) -> bool:
        """Stand after a path behind the text; whether the grammar allows it.

        The matcher stays there until it is moved again: drafts ask about neighbours one after the other.
        """
        common = 0
        for token, other in zip(self._path, path, strict=False):
            if token != other:
                break
            common += 1
        if common < len(self._path):
            self._matcher.rollback(len(self._path) - common)
            del self._path[common:]
        return self.push(path[common:])

    def push(self, tokens: Sequence[int]) -> bool:
        """Go on from where it stands; whether the grammar allows it."""
        rest = list(tokens)
        if rest:
            self._path += rest[: (taken := self._matcher.try_consume_tokens(rest))]
            return self._is_well() and taken == len(rest)
        return self._is_well()

    def forced(self) -> list[int]:
        """The tokens that have to follow where it stands, in order; empty where there is a choice."""
        tokens = list(self._matcher.compute_ff_tokens())
        return tokens if self._is_well() else []

    def mask(self) -> TokenMask | None:
        """The tokens that may follow where it stands; None in a dead end, after which it stands after the text."""
        mask = self._vocabulary.mask(self._matcher)
        return mask if self._is_well() else None

    def _is_well(self) -> bool:
        if not self._matcher.is_error():
            return True
        self.failure = one_line(self._matcher.get_error())
        self._matcher = self._start()
        self._matcher.consume_tokens(self._text)
        self._path.clear()
        return False
