"""Constrained decoding: which tokens a grammar allows after any path of a draft, and which it forces.

A grammar is followed by llguidance (https://github.com/guidance-ai/llguidance), which computes exact masks over the
vocabulary while it decodes. Here is what speculation needs beside it: states at all nodes of a draft tree, the tokens
that drafts get for nothing because nothing else may follow, and answers that end before their tokens do.

Everything is a function of the text so far, so that plain and speculative decoding choose the same tokens.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import llguidance

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.ending_search import Closers, EndingSearch
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.matching import JSON_AS_WRITTEN, matcher_of, refusal, source_of
from langchain_specdec.grammar.pattern_samples import PatternSamples
from langchain_specdec.grammar.state import GrammarState
from langchain_specdec.grammar.token_masks import TokenMask, has_token
from langchain_specdec.grammar.trial import GrammarTrial
from langchain_specdec.grammar.vocabulary import Vocabulary

# Grammars that are kept compiled.
_MAX_GRAMMARS = 128
# Tokens before the limit from which on each choice is checked for whether the answer can still end in time; and how
# many more for each character of a schema, since one token may begin an object with many required properties.
_ENDGAME_TOKENS = 64
_ENDGAME_SHARE = 0.5


class Constraint:
    """The state of one answer in its grammar. Paths are tokens after the text so far; none are kept.

    Args:
        state: At the beginning of the answer.
        vocabulary: The tokens.
        endings: Finds how the answer can end.
        endgame: Number of tokens before the limit from which on choices are checked.
    """

    def __init__(self, state: GrammarState, vocabulary: Vocabulary, endings: EndingSearch, endgame: int) -> None:
        self._state = state
        self._vocabulary = vocabulary
        self._endgame = endgame
        self._endings = endings
        self._has_ended = False
        # The masks of all paths asked for in this step.
        self._masks: dict[tuple[int, ...], TokenMask | None] = {}
        # A short way to the end from the text so far, and one from the text after the tokens of this step.
        self._ending: list[int] | None = None
        self._next_ending: list[int] | None = None

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take emitted tokens.

        Raises:
            ValueError: The grammar does not allow them.
        """
        self._ending, self._next_ending = self._next_ending, None
        ends = [i for i, token in enumerate(token_ids) if token in self._vocabulary.eos_token_ids]
        text = tuple(token_ids[: ends[0]] if ends else token_ids)
        if self._has_ended or not self._state.extend_text(text):
            msg = f"The grammar does not allow the tokens {list(text)}. {self._state.failure}".strip()
            raise ValueError(msg)
        # What was looked at behind these tokens is asked for next.
        self._masks = {path[len(text) :]: mask for path, mask in self._masks.items() if path[: len(text)] == text}
        self._endings.advance(text)
        self._has_ended = bool(ends)

    def forced_after(self, path: Sequence[int]) -> list[int]:
        """The tokens that must follow a path, in order; empty where there is a choice, or the path is none."""
        if not self._move(path):
            return []
        return list(self._vocabulary.eos_token_ids[:1]) if self._state.is_over else self._state.forced()

    def allowed_after(self, path: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Which of these tokens may follow a path."""
        mask = self.mask_after(path) if tokens else None
        return [mask is not None and has_token(mask, token) for token in tokens]

    def mask_after(self, path: Sequence[int]) -> TokenMask | None:
        """Bits of the tokens that may follow a path; None where the path is none, or nothing may follow it."""
        key = tuple(path)
        if key not in self._masks:
            self._masks[key] = self._state.mask() if self._move(path) else None
        return self._masks[key]

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> list[TokenMask | None]:
        """Masks after the text so far, and after each node of a draft tree.

        Args:
            tokens: The draft's tokens.
            parents: For each the index of the token it follows; -1 is the text's last.

        Returns:
            One more than there are tokens, the root's first; None where the grammar does not allow the node, or
            leaves no way on behind it: `in_time` replaces such a one.

        Raises:
            ValueError: Nothing may follow the text itself.
        """
        root = self.mask_after(())
        if root is None and not self._has_ended:
            msg = f"The grammar leaves no way to go on after this text ({self._state.failure or 'it ends nowhere'})."
            raise ValueError(msg)
        paths: list[list[int] | None] = [[]]
        masks: list[TokenMask | None] = [root]
        for token, parent in zip(tokens, parents, strict=True):
            above, mask = paths[parent + 1], masks[parent + 1]
            # A node that the grammar forbids, or that stands behind an end, needs no mask.
            if above is None or mask is None or not has_token(mask, token):
                paths.append(None)
                masks.append(None)
                continue
            path = [*above, token]
            paths.append(path)
            masks.append(self.mask_after(path))
        return masks

    def in_time(self, chosen: Sequence[int], remaining: int) -> list[int]:
        """The chosen tokens, up to the first after which the answer could not end, or not before the limit.

        That one is replaced by the next of a short way to the end. So an answer is cut only where its shortest one is
        longer than the limit.

        Args:
            chosen: Tokens that would be emitted now.
            remaining: How many may be emitted.

        Returns:
            As many or fewer, at least one.
        """
        kept: list[int] = []
        ending = self._ending
        for token in chosen:
            left = remaining - len(kept) - 1
            is_end = token in self._vocabulary.eos_token_ids
            if is_end or (left >= self._endgame and not self._is_dead_end((*kept, token))):
                ending, following = None, None
            else:
                ending = ending or self._find_ending(kept, left + 1)
                following = self._ending_after(kept, token, ending, left) if ending else None
                if ending and following is None:
                    kept.append(ending[0])
                    ending = ending[1:]
                    break
            kept.append(token)
            ending = following
        self._next_ending = ending
        return kept

    def shortest(self, limit: int, until: float = math.inf) -> list[int] | None:
        """A short answer from here on, its end-of-sequence token included; None where it has more tokens than that.

        Raises:
            TimeoutError: It is later than `until`, by `time.thread_time`.
        """
        return self._endings.find((), limit, until) if self._move(()) else None

    def _move(self, path: Sequence[int]) -> bool:
        """Have the state stand after a path; whether the grammar allows that, with more to come."""
        if self._has_ended or any(token in self._vocabulary.eos_token_ids for token in path):
            return False
        return self._state.move(path)

    def _is_dead_end(self, path: tuple[int, ...]) -> bool:
        """Whether nothing may follow a path, or what has to follow it."""
        while self.mask_after(path) is not None:
            # An end of the text is no dead end.
            if not self._move(path) or self._state.is_over or not (forced := self._state.forced()):
                return False
            path = (*path, *forced)
        return True

    def _ending_after(self, path: Sequence[int], token: int, ending: list[int], limit: int) -> list[int] | None:
        """A way to the end after a path and a token, given one after the path; None where none is short enough."""
        if token == ending[0]:
            return ending[1:]
        # The way found last often still fits, for example after one more word in a string.
        if len(ending) <= limit and self._move((*path, token, *ending[:-1])) and self._state.may_end:
            return ending
        return self._find_ending((*path, token), limit)

    def _find_ending(self, path: Sequence[int], limit: int) -> list[int] | None:
        return self._endings.find(path, limit) if self._move(path) else None


class OpenConstraint(Constraint):
    """Calls or an object, where the first token may be any; one that begins neither stands for the object.

    So whether a model calls is decided as without a grammar, and not between the two beginnings, when both may be far
    from what it would write.

    Args:
        calls_or_object: At the beginning of the answer.
        as_object: The same for the object alone.
        first: The token that the object begins with.
        words: Tokens that may be chosen beside those that begin a call or the object.
    """

    def __init__(self, calls_or_object: Constraint, as_object: Constraint, first: int, words: TokenMask) -> None:
        self._current = calls_or_object
        self._as_object = as_object
        self._first = first
        self._words = words
        self._is_open = True

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take emitted tokens."""
        self._is_open = False
        self._current.advance(token_ids)

    def forced_after(self, path: Sequence[int]) -> list[int]:
        """The tokens that must follow a path, in order."""
        return self._current.forced_after(path)

    def mask_after(self, path: Sequence[int]) -> TokenMask | None:
        """Bits of the tokens that may follow a path; what drafts are made of is a call or the object."""
        return self._current.mask_after(path)

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> list[TokenMask | None]:
        """Masks after the text so far, and after each node of a draft tree."""
        root, *others = self._current.masks(tokens, parents)
        return [root | self._words if self._is_open and root is not None else root, *others]

    def in_time(self, chosen: Sequence[int], remaining: int) -> list[int]:
        """The chosen tokens; where they begin neither, the first of the object."""
        if self._is_open and not self.allowed_after((), chosen[:1])[0]:
            self._is_open, self._current = False, self._as_object
            chosen = [self._first]
        return self._current.in_time(chosen, remaining)

    def shortest(self, limit: int, until: float = math.inf) -> list[int] | None:
        """A short answer from here on."""
        return self._current.shortest(limit, until)


class GrammarCompiler:
    """Makes constraints from grammars. May be used from any thread.

    Args:
        tokenizer: The target's tokenizer.
        vocab_size: Number of logits.
        eos_token_ids: Tokens that end a text.
        trial: Refuses grammars that take too long, before anything else is made of them.
    """

    def __init__(
        self, tokenizer: Any, vocab_size: int, eos_token_ids: Collection[int], trial: GrammarTrial | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._compiled: OrderedDict[tuple[str, str], tuple[llguidance.LLMatcher, PatternSamples]] = OrderedDict()
        # Held for moments only: the engine copies matchers, too, and does not wait for another grammar to be compiled.
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._read: tuple[Vocabulary, Closers] | None = None
        self._trial = trial

    @property
    def vocabulary(self) -> Vocabulary:
        """The target's tokens. A large vocabulary takes a second to read, the first time."""
        return self._vocabulary()[0]

    def _vocabulary(self) -> tuple[Vocabulary, Closers]:
        # A large vocabulary takes a second to read, so it is read for the first grammar only.
        with self._reading:
            if self._read is None:
                vocabulary = Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)
                self._read = vocabulary, Closers(vocabulary)
            return self._read

    def compile(self, grammar: Grammar, max_new_tokens: int, num_before: int = 0) -> Constraint:
        """A constraint at the beginning of an answer.

        Args:
            grammar: What it has to fit.
            max_new_tokens: Most tokens that it may have.
            num_before: Further tokens of the request, which end a thought before it; for messages.

        Raises:
            InvalidParameterError: The grammar is wrong, asks for what cannot be followed, or needs more tokens.
        """
        vocabulary, closers = self._vocabulary()
        with self._lock:
            compiled = self._compiled.get(grammar.identity)
        is_kept = True
        if compiled is None:
            source = source_of(grammar, JSON_AS_WRITTEN, vocabulary.special_ids)
            samples = PatternSamples(grammar, vocabulary, closers)
            if self._trial is not None:
                is_kept = self._trial.check(grammar, chain([[source]], samples.sources()))
            compiled = matcher_of(grammar, source, vocabulary.tokens), samples
        with self._lock:
            if is_kept:
                self._compiled[grammar.identity] = compiled
                self._compiled.move_to_end(grammar.identity)
            if len(self._compiled) > _MAX_GRAMMARS:
                self._compiled.popitem(last=False)
        matcher, samples = compiled

        def start() -> llguidance.LLMatcher:
            with self._lock:
                return matcher.deep_copy()

        endgame = _ENDGAME_TOKENS + int(_ENDGAME_SHARE * len(grammar.identity[1]))
        state = GrammarState(start, vocabulary)
        raw_ends = grammar.raw_ends if isinstance(grammar, CallGrammar) else ()
        endings = EndingSearch(
            state,
            vocabulary,
            closers,
            is_json=grammar.regex is None,
            fillings=lambda: samples.endings,
            raw_ends=raw_ends,
        )
        constraint = Constraint(state, vocabulary, endings, endgame)
        if self._shortest(constraint, grammar, max_new_tokens) is None:
            # A dead end that the search met says nothing of other ways.
            if state.failure and not state.failure.startswith("NoExtension"):
                raise refusal(grammar, state.failure)
            room = f"{max_new_tokens} tokens"
            if num_before:
                room = f"what the end of a thought leaves of max_new_tokens={max_new_tokens + num_before} ({room})"
            msg = (
                f"The grammar has no answer that fits into {room}, as far as a short search can tell. "
                f"Raise max_new_tokens, or ask for less (an object that always holds another of its kind has no end)."
            )
            raise InvalidParameterError(msg)
        return self._opened(constraint, grammar, max_new_tokens) if isinstance(grammar, CallGrammar) else constraint

    def _shortest(self, constraint: Constraint, grammar: Grammar, limit: int) -> list[int] | None:
        """A short answer; raises where it takes too long to find one."""
        if self._trial is None:
            return constraint.shortest(limit)
        try:
            return constraint.shortest(limit, time.thread_time() + self._trial.seconds)
        except TimeoutError:
            raise self._trial.refusal(grammar) from None

    def _opened(self, calls_or_object: Constraint, grammar: CallGrammar, max_new_tokens: int) -> Constraint:
        """The constraint with a first token that may be any, where it is known what an object begins with."""
        # Behind a text of its own the object is one of the model's own ways to begin.
        if grammar.object is None or grammar.object_begin:
            return calls_or_object
        vocabulary, _ = self._vocabulary()
        as_object = self.compile(Grammar(schema=grammar.object), max_new_tokens)
        begins = as_object.forced_after(()) or [vocabulary.ids.get(b"{", -1)]
        # Other JSON than an object may begin in many ways, so the model has to choose among them.
        if begins[0] < 0 or not as_object.allowed_after((), begins[:1])[0]:
            return calls_or_object
        return OpenConstraint(calls_or_object, as_object, begins[0], vocabulary.words)
