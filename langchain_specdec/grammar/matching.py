"""Grammars as llguidance matches them, by the tokens of any vocabulary; what it cannot follow is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import llguidance

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.followable import followable
from langchain_specdec.grammar.grammar import Grammar

# JSON on one line with fixed spaces, as models write it: fixed text is forced, and costs no step.
JSON_AS_WRITTEN: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Of JSON that is made here."""
JSON_AS_READ: Any = {"whitespace_flexible": True}
"""Of JSON that somebody else made, with any white space."""


def source_of(grammar: Grammar, json_options: Any, special_ids: Mapping[str, int]) -> str:
    """A grammar in llguidance's own words.

    Args:
        grammar: The grammar.
        json_options: `JSON_AS_WRITTEN` or `JSON_AS_READ`.
        special_ids: Special tokens by their text, whose spelling is no text to a grammar.

    Raises:
        InvalidParameterError: A part of it cannot be followed.
    """

    def schema_text(schema: Mapping[str, Any]) -> str:
        return json.dumps({**followable(schema), "x-guidance": json_options})

    source: str
    try:
        if isinstance(grammar, CallGrammar):
            source = llguidance.LLMatcher.grammar_from_lark(grammar.lark(schema_text, special_ids))
        elif grammar.regex is not None:
            source = llguidance.LLMatcher.grammar_from_regex(grammar.regex)
        else:
            schema = json.dumps(followable(grammar.schema or {}))
            source = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=json_options)
    except InvalidParameterError:
        raise
    except ValueError as error:
        raise refusal(grammar, str(error)) from error
    return source


def matcher_of(grammar: Grammar, source: str, tokens: llguidance.LLTokenizer) -> llguidance.LLMatcher:
    """A matcher at the beginning of a text.

    Raises:
        InvalidParameterError: The grammar cannot be followed.
    """
    matcher = llguidance.LLMatcher(tokens, source, log_level=0)
    if matcher.is_error():
        raise refusal(grammar, one_line(matcher.get_error()))
    return matcher


def refusal(grammar: Grammar, reason: str) -> InvalidParameterError:
    """The error of a grammar that cannot be followed."""
    msg = f"The {grammar.kind} cannot be followed: {reason}. Change that part of it, or leave it out."
    return InvalidParameterError(msg)


def one_line(error: str) -> str:
    """What llguidance says is wrong, without its inner state."""
    return " ".join(error.partition("<state>")[0].split())
