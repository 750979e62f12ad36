"""Answers of a TGI server that do not have the form asked for: it cuts at the limit, and breaks grammars."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_specdec import ChatSpeculative, Grammar, SpeculativeLLM, TGIBackend
from langchain_specdec.backends.tgi.grammar_check import tgi_grammar_check
from langchain_specdec.errors import InvalidParameterError, MalformedAnswerError
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.clients import CLIENTS
from tests.standin.models import EngineModel, FakeModel
from tests.standin.server import ServerThread
from tests.support.backends import lasting, make_backend
from tests.support.chat_templates import QWEN, chat_tokenizer
from tgi_launcher.config import TGIConfig
from tgi_launcher.state import State

pytestmark = [pytest.mark.server, pytest.mark.transformers]

TICKET = Grammar(regex="(left|right) [0-9]{2}")
URL = "http://127.0.0.1:8080"


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int = Field(ge=0, le=150)


@tool
def greet(name: str, times: int) -> str:
    """Say hello."""
    return name * times


class OwnServer:
    """What a check needs to know of an own server."""

    state, last_exit = State.READY, None

    def __init__(self, speculate: int) -> None:
        self.config = TGIConfig(model_id="some/model", speculate=speculate)

    def stop(self) -> None:
        """Nothing runs."""


@contextmanager
def answering(answer: str, client: str = "auto", **options: Any) -> Iterator[TGIBackend]:
    """A backend over a server that answers so, whatever grammar it is given."""
    model = FakeModel(speculate=2, answer=answer, takes_grammars=True)
    with ServerThread(model, Limits(max_input_tokens=1900, max_total_tokens=2048)) as server:
        backend = TGIBackend(server.url, client=client, tokenizer=chat_tokenizer(QWEN), **options)
        yield backend
        backend.close()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("answer", "place"),
    [("left 1x", "character 7"), ("left 1", "ended after 6"), ("left 123", "character 8"), ("no", "character 1")],
)
def test_a_broken_grammar_is_an_error(client: str, answer: str, place: str) -> None:
    with answering(answer, client) as backend:
        llm = SpeculativeLLM(backend=backend, grammar=TICKET)
        for ask in (lambda: llm.invoke("x"), lambda: list(llm.stream("x")), lambda: asyncio.run(llm.ainvoke("x"))):
            with pytest.raises(MalformedAnswerError, match=rf"{place}.*{backend.base_url}.*speculate=0.*LocalBackend"):
                ask()
        assert llm.invoke("x", grammar=Grammar(regex=".*")) == answer


def test_what_fits_passes_however_it_is_spaced() -> None:
    with answering('{"name":"Ann" , "age": 3 }') as backend:
        chat = ChatSpeculative(backend=backend)
        assert chat.with_structured_output(Person).invoke("x") == Person(name="Ann", age=3)


def test_bounds_of_numbers_are_checked_here() -> None:
    with answering('{"name": "Ann", "age": 5000000}') as backend:
        chat = ChatSpeculative(backend=backend)
        for schema in (Person, Person.model_json_schema()):
            with pytest.raises(MalformedAnswerError, match=r"in '.*5000000.*bounds of numbers"):
                chat.with_structured_output(schema).invoke("x")
            found = chat.with_structured_output(schema, include_raw=True).invoke("x")
            assert found["parsed"] is None
            assert "5000000" in found["raw"].text
            assert isinstance(found["parsing_error"], MalformedAnswerError)
            *_, last = chat.with_structured_output(schema, include_raw=True).stream("x")
            assert isinstance(last["parsing_error"], MalformedAnswerError)


def test_a_forced_call_is_checked() -> None:
    written = {"name": "greet", "arguments": {"name": "Ann", "times": "often"}}
    with answering(json.dumps(written)) as backend:
        model = ChatSpeculative(backend=backend).bind_tools([greet], tool_choice="any")
        message = model.invoke("x")
        assert message.tool_calls == []
        assert "broke its grammar" in str(message.invalid_tool_calls[0]["error"])
        *_, last = model.stream("x")
        assert "broke its grammar" in last.response_metadata["form_error"]


def test_an_answer_that_is_cut_is_not_called_broken() -> None:
    with answering('{"name": "Ann", "age": 35}') as backend:
        chat = ChatSpeculative(backend=backend, max_new_tokens=24)
        with pytest.raises(MalformedAnswerError, match=r"cut at max_new_tokens=24: raise it"):
            chat.with_structured_output(Person).invoke("x")
        # Half of a character is what is left of one that fits.
        llm = SpeculativeLLM(backend=backend, grammar=Grammar(regex="[0-9]+"))
        with pytest.raises(MalformedAnswerError, match="character 1"):
            llm.invoke("x", max_tokens=3)
    with answering("größer") as backend:
        llm = SpeculativeLLM(backend=backend, grammar=Grammar(regex="gr(ö|oe)ßer"))
        result = llm.generate(["x"], max_tokens=3).generations[0][0]
        assert result.generation_info is not None
        assert result.generation_info["finish_reason"] == "length"


def test_batch_mates_are_not_harmed() -> None:
    with lasting(make_backend(num_slots=2)) as local, ServerThread(EngineModel("tiny", backend=local)) as server:
        llm = SpeculativeLLM.from_tgi(server.url, grammar=TICKET, max_new_tokens=40)
        server.set_faults("break-grammar:after=3:times=1")
        found = llm.batch(["a", "b", "c", "d"], return_exceptions=True)
        assert sum(isinstance(outcome, MalformedAnswerError) for outcome in found) == 1
        assert sum(isinstance(outcome, str) for outcome in found) == 3
        server.set_faults()
        assert TICKET.regex is not None
        assert len(llm.invoke("a")) in (7, 8)
        llm.close()


def test_the_stand_in_ignores_bounds_and_does_not_end_in_time() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 7, "maximum": 7}}, "required": ["n"]}
    with lasting(make_backend(num_slots=2)) as local, ServerThread(EngineModel("tiny", backend=local)) as server:
        llm = SpeculativeLLM.from_tgi(server.url, grammar=Grammar(schema=schema), max_new_tokens=12)
        here = SpeculativeLLM(backend=local, grammar=llm.grammar, max_new_tokens=12)
        assert here.invoke("x") == '{"n": 7}'
        with pytest.raises(MalformedAnswerError, match="does not fit"):
            llm.invoke("x")
        llm.close()


def test_what_cannot_be_checked_is_refused_before_it_is_sent() -> None:
    model = FakeModel(answer="x", takes_grammars=True)
    with ServerThread(model, Limits()) as server:
        backend = TGIBackend(server.url)
        for grammar, words in (
            (Grammar(regex="a(?=b)"), "could not be checked here"),
            (
                Grammar(schema={"properties": {"a": {"type": "array", "uniqueItems": True}}}),
                "could not be checked here",
            ),
            (Grammar(schema={"properties": {"a": {"type": "array", "items": {"$ref": "#"}}}}), "recursive"),
        ):
            llm = SpeculativeLLM(backend=backend, grammar=grammar)
            for ask in (lambda llm=llm: llm.invoke("x"), lambda llm=llm: next(llm.stream("x"))):
                with pytest.raises(InvalidParameterError, match=words):
                    ask()
        assert server.standin.requests == []
        backend.close()


@pytest.mark.parametrize(("speculate", "is_told"), [(None, True), (3, True), (0, False)])
def test_speculation_is_named_where_the_server_may_speculate(speculate: int | None, is_told: bool) -> None:
    own = None if speculate is None else OwnServer(speculate)
    told = tgi_grammar_check(URL, None, own).error(TICKET, "no", "eos_token")
    assert told is not None
    assert "broke its grammar" in told
    assert ("speculate=0" in told) is is_told
    assert ("bounds and multiples" in told) is not is_told
    assert "LocalBackend" in told


def test_an_answer_that_was_not_checked_is_not_called_broken() -> None:
    told = tgi_grammar_check(URL, None).error(
        Grammar(schema=Person.model_json_schema()), '{"name": "' + "a" * 2**21, "length"
    )
    assert told is not None
    assert "could not be checked against its grammar (it is longer than" in told
    assert "broke" not in told
    assert "speculate=0" not in told


def test_no_error_shows_the_key() -> None:
    check = tgi_grammar_check(URL, "sesame-open")
    for text in ("sesame-open", "left 1" + "sesame-open", "x" * 40 + "sesame-open"):
        told = check.error(TICKET, text, "eos_token")
        assert told is not None
        assert "sesame" not in told
        assert "does not fit" in told
