"""SpeculativeLLM among LangChain's own parts: chains, events, configuration, fallbacks and caches."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel

from langchain_specdec import Grammar, LocalBackend, SpeculativeLLM
from langchain_specdec.errors import InvalidParameterError, PromptTooLongError
from tests.support.backends import PROMPTS, AsyncCounter, Counter, lasting, make_backend, make_drafting_backend

TEMPLATE = PromptTemplate.from_template("say {word}")


@pytest.fixture(scope="module")
def backend():
    with lasting(make_drafting_backend()) as backend:
        yield backend


@pytest.fixture(scope="module")
def other_backend():
    with lasting(make_backend(1)) as backend:
        yield backend


@pytest.fixture
def llm(backend):
    return SpeculativeLLM(backend=backend, max_new_tokens=12)


# Chains


async def test_chains(llm):
    chain = TEMPLATE | llm | StrOutputParser()
    words = ["one", "two", "three", "four", "five"]
    expected = [llm.invoke(f"say {word}") for word in words]
    inputs = [{"word": word} for word in words]
    assert chain.invoke(inputs[0]) == expected[0]
    assert chain.batch(inputs) == expected
    assert await chain.abatch(inputs) == expected
    pieces = list(chain.stream(inputs[0]))
    assert "".join(pieces) == expected[0]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join([piece async for piece in chain.astream(inputs[0])]) == expected[0]
    outcomes = chain.batch([inputs[0], {"word": "x" * 300}, inputs[1]], return_exceptions=True)
    assert [outcomes[0], outcomes[2]] == expected[:2]
    assert isinstance(outcomes[1], PromptTooLongError)
    assert (TEMPLATE | llm.bind(stop=expected[0][3])).invoke(inputs[0]) == expected[0].split(expected[0][3])[0]


def test_messages_and_prompt_values_are_prompts(llm):
    text = llm.invoke("Human: hi")
    assert llm.invoke([HumanMessage("hi")]) == text
    assert (ChatPromptTemplate.from_messages([("human", "{x}")]) | llm).invoke({"x": "hi"}) == text


async def test_parallel_branches_decode_together(llm, backend):
    branches = RunnableParallel(
        a=RunnableLambda(lambda x: f"a {x}") | llm,
        b=RunnableLambda(lambda x: f"b {x}") | llm.bind(temperature=1.0, seed=3),
        c=RunnableLambda(lambda x: x) | llm,
    )
    expected = {
        "a": llm.invoke("a text"),
        "b": llm.invoke("b text", temperature=1.0, seed=3),
        "c": llm.invoke("text"),
    }
    assert branches.invoke("text") == expected
    assert await branches.ainvoke("text") == expected
    merged: dict[str, str] = {}
    for part in branches.stream("text"):
        for key, piece in part.items():
            merged[key] = merged.get(key, "") + piece
    assert merged == expected


async def test_event_streams_tell_each_token_once(llm):
    expected = llm.invoke("say one")
    chain = TEMPLATE | llm | StrOutputParser()
    events = [event async for event in chain.astream_events({"word": "one"}, version="v2")]
    model_events = [event for event in events if event["event"] == "on_llm_stream"]
    assert "".join(event["data"]["chunk"].text for event in model_events) == expected
    assert "".join(e["data"]["chunk"] for e in events if e["event"] == "on_parser_stream") == expected
    (end,) = [event for event in events if event["event"] == "on_llm_end"]
    generation = end["data"]["output"]["generations"][0][0]
    assert generation["text"] == expected
    assert generation["generation_info"]["completion_tokens"] == 12
    (start,) = [event for event in events if event["event"] == "on_llm_start"]
    assert start["metadata"]["ls_model_name"] == "LlamaForCausalLM"


async def test_async_callbacks_hear_each_chunk_once(llm):
    expected = llm.invoke("hello")
    for streaming in (False, True):
        model = llm.model_copy(update={"streaming": streaming})
        counter = AsyncCounter()
        assert await model.ainvoke("hello", {"callbacks": [counter]}) == expected
        seen = counter.seen
        assert "".join(seen.tokens) == (expected if streaming else "")
        assert (len(seen.starts), len(seen.ends), seen.errors) == (1, 1, [])
        assert seen.ends[0].llm_output["token_usage"]["completion_tokens"] == 12
    counter = AsyncCounter()
    pieces = [piece async for piece in llm.astream("hello", {"callbacks": [counter]})]
    assert counter.seen.tokens == pieces == [chunk.text for chunk in counter.seen.chunks]
    assert (len(counter.seen.starts), len(counter.seen.ends), counter.seen.errors) == (1, 1, [])
    counter = AsyncCounter()
    with pytest.raises(PromptTooLongError):
        await llm.ainvoke("x" * 300, {"callbacks": [counter]})
    assert (len(counter.seen.ends), len(counter.seen.errors)) == (0, 1)


# Configuration, fallbacks, retries


async def test_fields_can_be_configured_at_run_time(llm):
    field = ConfigurableField(id="heat")
    model = llm.configurable_fields(temperature=field, seed=ConfigurableField(id="seed"))
    hot = {"configurable": {"heat": 1.0, "seed": 4}}
    expected = llm.invoke("hello", temperature=1.0, seed=4)
    assert expected != llm.invoke("hello")
    assert model.invoke("hello") == llm.invoke("hello")
    assert model.with_config(hot).invoke("hello") == expected
    assert await (TEMPLATE | model).ainvoke({"word": "a"}, hot) == llm.invoke("say a", temperature=1.0, seed=4)
    assert model.batch(["hello"], hot) == [expected]
    assert "".join(model.stream("hello", hot)) == expected
    with pytest.raises(InvalidParameterError, match="temperature must be"):
        model.invoke("hello", {"configurable": {"heat": -1.0}})


def test_alternatives_can_be_chosen_at_run_time(llm, other_backend):
    made = []

    def make():
        made.append(SpeculativeLLM(backend=other_backend, max_new_tokens=12))
        return made[-1]

    model = llm.configurable_alternatives(ConfigurableField(id="backend"), default_key="local", other=make)
    assert model.invoke("hello") == llm.invoke("hello")
    assert not made
    text = model.with_config(configurable={"backend": "other"}).invoke("hello")
    assert text == make().invoke("hello") != llm.invoke("hello")


async def test_fallbacks_step_in(llm, other_backend):
    small = SpeculativeLLM(backend=other_backend, max_new_tokens=250)
    model = small.with_fallbacks([llm])
    expected = llm.invoke("hello there")
    assert model.invoke("hello there") == expected
    assert "".join(model.stream("hello there")) == expected
    assert await model.ainvoke("hello there") == expected
    assert model.batch(["hello there", "abc def"]) == [expected, llm.invoke("abc def")]


def test_retries_try_again_and_give_up(llm):
    counter = Counter()
    with pytest.raises(PromptTooLongError):
        llm.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke("x" * 300, {"callbacks": [counter]})
    assert len(counter.errors) == 2
    assert llm.with_retry().invoke("hello") == llm.invoke("hello")


# Caches


def cached(backend, cache, **fields):
    return SpeculativeLLM(backend=backend, cache=cache, **{"max_new_tokens": 12, **fields})


def num_forwards(backend):
    return backend.engine.num_target_forwards


async def test_the_same_call_is_answered_from_the_cache(backend):
    llm = cached(backend, InMemoryCache())
    first = llm.generate(["hello"])
    before = num_forwards(backend)
    counter = Counter()
    again = llm.generate(["hello"], callbacks=[counter])
    assert num_forwards(backend) == before
    # A hit is what was generated then, counts and all; it has no usage of its own and tells callbacks nothing.
    assert again.generations == first.generations
    assert again.generations[0][0].generation_info["completion_tokens"] == 12
    assert again.llm_output == {}
    assert counter.starts == []
    assert await llm.ainvoke("hello") == llm.invoke("hello") == first.generations[0][0].text
    assert cached(backend, llm.cache).invoke("hello") == first.generations[0][0].text
    assert num_forwards(backend) == before
    # What only names the same call differently hits too.
    llm.invoke("hello", max_new_tokens=5, stop=["zz"])
    before = num_forwards(backend)
    llm.invoke("hello", max_tokens=5, stop_sequences="zz")
    llm.invoke("hello", stop=[])
    assert num_forwards(backend) == before


def test_grammars_are_parameters_of_calls_fields_and_cache_keys(backend):
    llm = cached(backend, InMemoryCache())
    answers = [llm.invoke("hello", grammar=Grammar(regex=regex)) for regex in ("[ab]{3}", "[cd]{3}", "[ab]{3}")]
    assert set(answers[0]) <= set("ab")
    assert set(answers[1]) <= set("cd")
    assert answers[2] == answers[0]
    assert llm.invoke("hello") not in answers
    assert (
        SpeculativeLLM(backend=backend, max_new_tokens=12, grammar=Grammar(regex="[ab]{3}")).invoke("hello")
        == answers[0]
    )
    assert llm.bind(grammar=Grammar(regex="[ab]{3}")).batch(["hello"]) == answers[:1]
    with pytest.raises(InvalidParameterError, match="grammar must be a Grammar"):
        llm.invoke("hello", grammar={"type": "json"})


def test_a_global_cache_serves_and_can_be_refused(backend):
    set_llm_cache(InMemoryCache())
    try:
        cached(backend, None).invoke("hello")
        before = num_forwards(backend)
        cached(backend, None).invoke("hello")
        assert num_forwards(backend) == before
        cached(backend, False).invoke("hello")
        assert num_forwards(backend) > before
    finally:
        set_llm_cache(None)


async def test_nothing_that_changes_the_text_is_mixed_up(backend, other_backend):
    text = cached(backend, False).invoke("hello")
    stops = [next(c for c in part if c != "\ufffd") for part in (text[1:], text[5:])]
    variants: list[tuple[LocalBackend, dict[str, Any]]] = [
        (backend, {}),
        (other_backend, {}),
        (backend, {"temperature": 1.0, "seed": 1}),
        (backend, {"temperature": 1.0, "seed": 2}),
        (backend, {"temperature": 2.0, "seed": 2}),
        (backend, {"temperature": 2.0, "seed": 2, "top_k": 3}),
        (backend, {"max_new_tokens": 7}),
        (backend, {"stop": [stops[0]]}),
        (backend, {"stop": [stops[1]]}),
        (backend, {"stop": stops}),
        (backend, {"repetition_penalty": 1.8}),
        (backend, {"logit_bias": {65: 50.0}}),
    ]
    expected = [cached(b, False, **fields).invoke("hello") for b, fields in variants]
    assert len(set(expected)) == len(variants) - 1  # both stops end the text where the first alone does
    cache = InMemoryCache()
    for _ in range(2):  # misses, then hits
        assert [cached(b, cache, **fields).invoke("hello") for b, fields in variants] == expected
        assert [cached(b, cache).invoke("hello", **fields) for b, fields in variants] == expected
        assert [await cached(b, cache).ainvoke("hello", **fields) for b, fields in variants] == expected
        assert [cached(b, cache).bind(**fields).batch(["hello"])[0] for b, fields in variants] == expected


def test_stops_of_the_instance_are_told_from_those_of_the_call(backend):
    text = cached(backend, False).invoke("hello")
    early, late = (next(c for c in part if c != "\ufffd") for part in (text[1:], text[5:]))
    cache = InMemoryCache()
    for own, given in ((None, [late]), ([early], [late]), ([late], None), ([early], None), (None, None)):
        expected = cached(backend, False, stop=own).invoke("hello", stop=given)
        assert cached(backend, cache, stop=own).invoke("hello", stop=given) == expected


def test_a_batch_mixes_hits_and_misses(backend):
    expected = cached(backend, False).batch(PROMPTS[:6])
    llm = cached(backend, InMemoryCache())
    llm.batch([PROMPTS[1], PROMPTS[4]])
    counter = Counter()
    result = llm.generate(PROMPTS[:6], callbacks=[counter])
    assert [g[0].text for g in result.generations] == expected
    assert counter.starts == [PROMPTS[i] for i in (0, 2, 3, 5)]
    assert result.llm_output["token_usage"]["completion_tokens"] == 4 * 12
    before = num_forwards(backend)
    assert llm.batch(PROMPTS[:6], return_exceptions=True) == expected
    assert num_forwards(backend) == before


def test_an_unknown_parameter_raises_in_spite_of_a_hit(backend):
    llm = cached(backend, InMemoryCache())
    llm.invoke("hello")
    with pytest.raises(InvalidParameterError, match="'bogus'"):
        llm.invoke("hello", bogus=1)


def test_streams_leave_the_cache_alone(backend):
    llm = cached(backend, InMemoryCache())
    text = "".join(llm.stream("hello"))
    before = num_forwards(backend)
    assert llm.invoke("hello") == text
    assert num_forwards(backend) > before
