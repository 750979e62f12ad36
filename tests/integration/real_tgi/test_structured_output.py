"""Answers of a form on a real TGI: with speculation nothing broken passes for data, without it they fit."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress

import jsonschema
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel, Field

from langchain_specdec import ChatSpeculative, Grammar, SpeculativeLLM
from langchain_specdec.errors import InvalidParameterError, SpecDecError
from tests.standin.clients import CLIENTS
from tests.support.real_tgi import MARKS, model_folder

pytestmark = MARKS

TEXTS = [
    "Anna was born in Berlin in 1990 and has two brothers.",
    "In 1843 Ada wrote the first program, in London.",
    "Tom, aged 7, lives in Oslo.",
    "The ship Vasa sank in Stockholm in 1628.",
]
CITY = {
    "title": "City",
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "year": {"type": "integer"}},
    "required": ["city", "year"],
}
PEOPLE = {
    "title": "People",
    "type": "object",
    "properties": {
        "place": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]},
        "years": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["place", "years"],
}
AGE = {
    "title": "Age",
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["age"],
}
SCHEMAS = [CITY, PEOPLE, AGE]
METHODS = ["json_schema", "function_calling"]
DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"


class Tree(BaseModel):
    """A tree."""

    name: str
    branches: list[Tree] = Field(default_factory=list)


class Wood(BaseModel):
    """A wood, by its oldest tree."""

    oldest: Tree


@pytest.fixture(params=CLIENTS)
def chat(request, server):
    with ChatSpeculative.from_tgi(
        server.base_url, client=request.param, tokenizer=model_folder(), max_new_tokens=120
    ) as chat:
        yield chat


@pytest.fixture
def plain_chat(plain_server):
    with ChatSpeculative.from_tgi(plain_server.base_url, tokenizer=model_folder(), max_new_tokens=120) as chat:
        yield chat


def fits(value, schema):
    return jsonschema.Draft202012Validator(schema).is_valid(value)


# Chats


async def test_a_chat_answers_however_it_is_asked(chat):
    question = "What is the capital of France?"
    message = chat.invoke(question)
    assert message.text.strip()
    usage = message.usage_metadata
    assert usage["input_tokens"] == chat.get_num_tokens_from_messages([HumanMessage(question)])
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert message.response_metadata["finish_reason"] == ("length" if usage["output_tokens"] == 120 else "eos_token")
    assert "".join(chunk.text for chunk in chat.stream(question)) == message.text
    assert (await chat.ainvoke(question)).text == message.text
    assert "".join([chunk.text async for chunk in chat.astream(question)]) == message.text


def test_the_template_is_that_of_the_served_model(chat, server):
    with ChatSpeculative.from_tgi(server.base_url, max_new_tokens=120) as other:
        assert other.invoke("Say yes.").text == chat.invoke("Say yes.").text


# A server that speculates


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema["title"])
@pytest.mark.parametrize("method", METHODS)
def test_no_broken_answer_is_taken_for_data(chat, server, schema, method):
    model = chat.with_structured_output(schema, method=method, include_raw=True)
    for text in TEXTS:
        answer = model.invoke(text)
        assert (answer["parsed"] is None) == (answer["parsing_error"] is not None), answer
        assert answer["parsed"] is None or fits(answer["parsed"], schema), answer
    assert server.is_ready


def test_no_broken_answer_is_returned_or_streamed(chat):
    model = chat.with_structured_output(CITY)
    for text in TEXTS:
        parts = []
        try:
            parts.extend(model.stream(text))
        except (SpecDecError, ValueError):
            continue
        assert fits(parts[-1], CITY), parts


def test_no_broken_call_is_a_tool_call(chat):
    tool = {"type": "function", "function": {"name": "note", "description": "Note a place.", "parameters": CITY}}
    model = chat.bind_tools([tool], tool_choice="note")
    for text in TEXTS:
        message = model.invoke(text)
        assert isinstance(message, AIMessage)
        assert len(message.tool_calls) + len(message.invalid_tool_calls) == 1, message
        assert all(fits(call["args"], CITY) for call in message.tool_calls), message
        assert all(call["error"] for call in message.invalid_tool_calls), message


def test_no_broken_text_of_a_pattern_is_returned(llm):
    for text in TEXTS:
        try:
            answer = llm.invoke(f"{text} The date:", grammar=Grammar(regex=DATE))
        except SpecDecError as error:
            assert "grammar" in str(error)
            continue
        assert re.fullmatch(DATE, answer), answer


def warned_of(llm):
    """Messages about speculation that two requests of a form bring."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # So that the server has accepted drafts, if it makes any.
        llm.invoke("ha ha ha ha ha ha ha ha ha ha", max_new_tokens=40)
        for _ in range(2):
            with suppress(SpecDecError):
                llm.invoke("The date:", grammar=Grammar(regex=DATE))
    return [str(warning.message) for warning in caught if "specul" in str(warning.message)]


def test_a_server_that_speculates_is_warned_of_once(llm):
    (message,) = warned_of(llm)
    assert "speculate=0" in message


def test_an_answer_that_was_cut_is_no_data(chat):
    answer = chat.with_structured_output(CITY, include_raw=True).invoke(TEXTS[0], max_new_tokens=6)
    assert answer["parsed"] is None
    assert "max_new_tokens" in str(answer["parsing_error"])
    with pytest.raises(Exception, match="max_new_tokens"):
        chat.with_structured_output(CITY).invoke(TEXTS[0], max_new_tokens=6)


def test_a_recursive_schema_is_refused_before_anything_is_sent(chat, server):
    chat.invoke("Say yes.", max_new_tokens=2)
    before = server.metrics().num_requests
    for schema in (Tree, Wood):
        with pytest.raises(InvalidParameterError):
            chat.with_structured_output(schema).invoke("A tree.")
    assert server.metrics().num_requests == before, "TGI would end with some"


# A server that does not


@pytest.mark.parametrize("schema", [CITY, PEOPLE], ids=lambda schema: schema["title"])
@pytest.mark.parametrize("method", METHODS)
def test_without_speculation_answers_fit(plain_chat, schema, method):
    model = plain_chat.with_structured_output(schema, method=method, include_raw=True)
    for text in TEXTS:
        answer = model.invoke(text)
        assert fits(answer["parsed"], schema), answer


def test_without_speculation_ranges_are_checked_here(plain_chat):
    """TGI's grammars hold none."""
    model = plain_chat.with_structured_output(AGE, include_raw=True)
    for text in TEXTS:
        answer = model.invoke(text)
        assert answer["parsed"] is None or fits(answer["parsed"], AGE), answer


def test_without_speculation_texts_fit_their_pattern(plain_server):
    with SpeculativeLLM.from_tgi(plain_server.base_url, max_new_tokens=24) as llm:
        for text in TEXTS:
            assert re.fullmatch(DATE, llm.invoke(f"{text} The date:", grammar=Grammar(regex=DATE)))


def test_without_speculation_nobody_is_warned(plain_server):
    with SpeculativeLLM.from_tgi(plain_server.base_url, max_new_tokens=24) as llm:
        assert warned_of(llm) == []
