"""What this package's client tells this package's server of a request comes to the same request there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.request_fields import fields_of, with_fields
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.call_parts import Either, InOrder, Json, Maybe, Raw, Repeated, Text
from langchain_specdec.sampling.params import SamplingParams

WORDS = st.text("a<é|", max_size=3)
TUPLES = st.lists(WORDS, max_size=2).map(tuple)
SCHEMAS = st.sampled_from(
    [{"type": "string"}, {"type": "object", "properties": {"b": {}, "a": {}}, "additionalProperties": False}]
)
PARTS = st.recursive(
    st.builds(Text, WORDS) | st.builds(Json, SCHEMAS) | st.builds(Raw, WORDS, WORDS, TUPLES),
    lambda inner: (
        st.builds(InOrder, st.lists(inner, max_size=3).map(tuple))
        | st.builds(Either, st.lists(inner, max_size=3).map(tuple))
        | st.builds(Maybe, inner)
        | st.builds(Repeated, inner, st.integers(0, 3), st.none() | st.integers(3, 9))
    ),
    max_leaves=6,
)
GRAMMARS = st.builds(
    CallGrammar, call=PARTS, begin=WORDS, separator=st.none() | WORDS, end=WORDS,
    object=st.none() | SCHEMAS, object_begin=WORDS,
)  # fmt: skip
THOUGHTS = st.builds(
    Thoughts, TUPLES, WORDS, strays=TUPLES, is_open=st.booleans(), is_single=st.booleans(),
    max_tokens=st.none() | st.integers(0, 99), closing=WORDS, following=WORDS, has_stops=st.booleans(),
    header_begins=TUPLES, header_end=WORDS, is_in_header=st.booleans(), implied_ends=TUPLES, is_begun=st.booleans(),
)  # fmt: skip
REQUESTS = st.builds(
    CompletionRequest, st.just("a"), st.builds(SamplingParams, grammar=st.none() | GRAMMARS),
    continues_prompt=st.booleans(), shown_specials=st.dictionaries(st.integers(0, 9), WORDS),
    banned=st.lists(st.integers(0, 9), unique=True).map(lambda ids: tuple(sorted(ids))),
    thoughts=st.none() | THOUGHTS,
)  # fmt: skip


@given(request_=REQUESTS)
def test_what_is_told_comes_to_the_same_request(request_):
    told = json.loads(json.dumps(fields_of(request_)))
    bare = CompletionRequest("a", SamplingParams())
    again = with_fields(bare, told)
    assert again == request_
    assert repr(again) == repr(request_)  # the order of properties counts


def test_a_plain_request_has_none():
    assert fields_of(CompletionRequest("a", SamplingParams(stop=["x"], seed=3))) == {}


CALLS = fields_of(CompletionRequest("a", SamplingParams(grammar=CallGrammar(call=Text("x")))))["calls"]


@pytest.mark.parametrize(
    "told",
    [
        {"no_such": 1},
        {"continues_prompt": 1},
        {"shown_specials": ["x"]},
        {"shown_specials": {"x": "y"}},
        {"banned": [-1]},
        {"banned": [True]},
        {"banned": 5},
        {"thoughts": None},
        {"thoughts": {"begins": ["<"]}},
        {"thoughts": {"begins": "<", "end": ">"}},
        {"thoughts": {"begins": [], "end": ">", "no_such": 1}},
        {"thoughts": {"begins": [], "end": ">", "max_tokens": "x"}},
        {"calls": {}},
        {"calls": {**CALLS, "call": {}}},
        {"calls": {**CALLS, "call": {"Text": {"text": 5}}}},
        {"calls": {**CALLS, "call": {"Any": {"text": "x"}}}},
        {"calls": {**CALLS, "call": {"Json": {"schema": 5}}}},
        {"calls": {**CALLS, "object": []}},
        {"calls": {**CALLS, "separator": 5}},
    ],
)
def test_what_is_none_of_them_is_refused_by_name(told):
    with pytest.raises(InvalidParameterError, match=f"specdec.{next(iter(told))}"):
        with_fields(CompletionRequest("a", SamplingParams()), told)


def test_parts_within_parts_end_somewhere():
    part: dict[str, object] = {"Text": {"text": "x"}}
    for _ in range(2000):
        part = {"Maybe": {"part": part}}
    with pytest.raises(InvalidParameterError, match=r"specdec\.calls"):
        with_fields(CompletionRequest("a", SamplingParams()), {"calls": {**CALLS, "call": part}})


def test_calls_and_stop_strings_contradict_each_other():
    request = CompletionRequest("a", SamplingParams(stop=["x"]))
    with pytest.raises(InvalidParameterError, match="contradict"):
        with_fields(replace(request), {"calls": CALLS})
