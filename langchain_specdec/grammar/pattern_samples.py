"""Short texts that hold to the patterns of a grammar: what a string lacks that may not end yet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import llguidance

from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.ending_search import Closers, EndingSearch
from langchain_specdec.grammar.followable import followable
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import visit_schemas
from langchain_specdec.grammar.state import GrammarState
from langchain_specdec.grammar.vocabulary import Vocabulary

# Characters that a sample may have, tried in turn. Under such a limit every step leads towards the end.
_LENGTHS = (*range(9), 12, 16, 24, 32, 48, 64, 96, 128)
# Patterns that are looked at. The engine may wait for it.
_MAX_PATTERNS = 64
_OF_STRINGS = ("pattern", "minLength", "maxLength", "format", "allOf")


class PatternSamples:
    """A short text for each pattern of a grammar. They are looked for when the first is asked for.

    Args:
        grammar: The grammar.
        vocabulary: The tokens.
        closers: The same by how soon they end an answer.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary, closers: Closers) -> None:
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._closers = closers

    @cached_property
    def endings(self) -> list[str]:
        """The texts, and what they end with, as the answer has them; the shortest first."""
        samples = {text for schema in self._strings() if (text := self._sample(schema))}
        ends = {sample[start:] for sample in samples for start in range(len(sample))}
        if self._grammar.regex is None:
            ends = {json.dumps(end, ensure_ascii=False)[1:-1] for end in ends}
        return sorted(ends, key=lambda end: (len(end), end))

    def sources(self) -> Iterator[list[str]]:
        """What each sample may be made of, in llguidance's words: the first that can be prepared is taken."""
        for schema in self._strings():
            yield [_limited(schema, length) for length in _lengths_of(schema)]

    def _strings(self) -> Iterator[dict[str, Any]]:
        """The schemas of all strings that hold to a pattern."""
        grammar = self._grammar
        if grammar.regex is not None:
            yield {"pattern": f"^(?:{grammar.regex})$"}
            return
        found: list[dict[str, Any]] = []

        def look(inner: dict[str, Any]) -> None:
            parts = [inner, *inner.get("allOf", ())]
            if any(isinstance(part, dict) and "pattern" in part for part in parts):
                found.append({key: inner[key] for key in _OF_STRINGS if key in inner})
            found.extend({"pattern": pattern} for pattern in inner.get("patternProperties", ()))

        schemas = grammar.schemas if isinstance(grammar, CallGrammar) else [grammar.schema or {}]
        for schema in schemas:
            visit_schemas(followable(schema), look)
        yield from found[:_MAX_PATTERNS]

    def _sample(self, schema: Mapping[str, Any]) -> str | None:
        """A string that fits a schema; None where none of a few characters is found."""
        for length in _lengths_of(schema):
            matcher = llguidance.LLMatcher(self._vocabulary.tokens, _limited(schema, length), log_level=0)
            if matcher.is_error():
                continue
            search = EndingSearch(
                GrammarState(matcher.deep_copy, self._vocabulary), self._vocabulary, self._closers, is_json=True
            )
            if (tokens := search.find((), 8 * length + 8)) is not None:
                sample: str = json.loads(b"".join(self._vocabulary.spellings[token] for token in tokens[:-1]))
                return sample
        return None


def _lengths_of(schema: Mapping[str, Any]) -> list[int]:
    longest = schema.get("maxLength", _LENGTHS[-1])
    return [length for length in _LENGTHS if length <= longest]


def _limited(schema: Mapping[str, Any], length: int) -> str:
    """The grammar of strings that fit a schema, and have no more characters than that."""
    limited = json.dumps({**schema, "type": "string", "maxLength": length})
    source: str = llguidance.LLMatcher.grammar_from_json_schema(limited)
    return source
