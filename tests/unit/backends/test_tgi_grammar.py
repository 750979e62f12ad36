"""Grammars over TGI: the server's own, by both clients, with the text of the engine in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date
from typing import Annotated, Any
from uuid import UUID

import jsonschema
import pytest
from langchain_core.tools import tool
from pydantic import BaseModel, Field, HttpUrl, NaiveDatetime, SecretStr, StringConstraints, create_model

from langchain_specdec import ChatSpeculative, Grammar, LocalBackend, SamplingParams, SpeculativeLLM, TGIBackend
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.json_schema import closed
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.clients import CLIENTS
from tests.standin.models import EngineModel
from tests.standin.server import ServerThread
from tests.support.backends import lasting, make_chat_backend
from tests.support.chat_templates import QWEN

pytestmark = pytest.mark.server

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}


class Pair(BaseModel):
    """Two."""

    left: bool
    right: int


@tool
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


@tool
def negate(flag: bool) -> bool:
    """The other one."""
    return not flag


@pytest.fixture(scope="module")
def local() -> Iterator[LocalBackend]:
    with lasting(make_chat_backend(QWEN, num_slots=2, max_length=2048)) as local:
        SpeculativeLLM(backend=local, max_new_tokens=1).invoke("x")
        yield local


@pytest.fixture(scope="module")
def server(local: LocalBackend) -> Iterator[Any]:
    with ServerThread(
        EngineModel("tiny", backend=local), Limits(max_input_tokens=2000, max_total_tokens=2048)
    ) as server:
        yield server


@pytest.fixture(params=CLIENTS)
def remote(request: pytest.FixtureRequest, local: LocalBackend, server: Any) -> Iterator[TGIBackend]:
    backend = TGIBackend(server.url, client=request.param, tokenizer=local.tokenizer)
    yield backend
    backend.close()


def test_a_grammar_reaches_the_server(local: LocalBackend, remote: TGIBackend) -> None:
    for grammar in (Grammar(schema=SCHEMA), Grammar(regex="(left|right) [0-9]{2}")):
        here, there = (
            SpeculativeLLM(backend=backend, max_new_tokens=60, grammar=grammar).invoke("Say:")
            for backend in (local, remote)
        )
        assert here == there
        if grammar.schema is not None:
            jsonschema.validate(json.loads(there), SCHEMA)


def test_chats_force_calls_and_objects(local: LocalBackend, remote: TGIBackend) -> None:
    here, there = (ChatSpeculative(backend=backend, max_new_tokens=100) for backend in (local, remote))
    one = [model.bind_tools([add, negate], tool_choice="negate").invoke("x").tool_calls[0] for model in (here, there)]
    assert one[0]["name"] == one[1]["name"] == "negate"
    assert one[0]["args"] == one[1]["args"]
    assert isinstance(one[1]["args"]["flag"], bool)
    # One of several is a union, which TGI takes only within an object.
    (call,) = there.bind_tools([add, negate], tool_choice="any").invoke("x").tool_calls
    assert (call["name"], set(call["args"])) in (("add", {"a", "b"}), ("negate", {"flag"}))
    assert here.with_structured_output(Pair).invoke("x") == there.with_structured_output(Pair).invoke("x")


def test_what_tgi_cannot_follow_is_refused(remote: TGIBackend) -> None:
    model = ChatSpeculative(backend=remote)
    with pytest.raises(InvalidParameterError, match="A TGI server takes JSON schemas of objects with 'properties'"):
        model.with_structured_output({"title": "x", "type": "object"}, method="json_mode").invoke("x")
    unique = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(InvalidParameterError, match=r"not be checked here against the JSON schema.*: uniqueItems"):
        SpeculativeLLM(backend=remote, grammar=Grammar(schema=unique)).invoke("x")
    assert SpeculativeLLM(backend=remote, max_new_tokens=3, grammar=Grammar(regex="ab")).invoke("x") == "ab"


def test_greedy_requests_carry_nothing_but_the_grammar(remote: TGIBackend) -> None:
    from langchain_specdec.backends.tgi.parameters import GenerateParameters

    params = SamplingParams(grammar=Grammar(schema=SCHEMA))
    sent = GenerateParameters.from_params(params, 1, None)
    assert sent.grammar == {"type": "json", "value": closed(SCHEMA)}
    assert not sent.do_sample
    assert GenerateParameters.from_params(SamplingParams(), 1, None).grammar is None


def test_schemas_are_sent_in_words_that_tgi_knows() -> None:
    from langchain_specdec.backends.tgi.parameters import GenerateParameters

    def sent(**fields: Any) -> Any:
        params = SamplingParams(grammar=Grammar(schema=create_model("M", **fields)))
        grammar = GenerateParameters.from_params(params, 1, None).grammar
        assert grammar is not None
        return grammar["value"]["properties"]

    words = sent(
        naive=(NaiveDatetime, ...),
        day=(Annotated[date, Field(ge=date(2020, 1, 1))], ...),
        by_number=(dict[int, str], ...),
        site=(HttpUrl, ...),
        secret=(SecretStr, ...),
        id=(UUID, ...),
        stripped=(Annotated[str, StringConstraints(strip_whitespace=True, min_length=2, pattern="^[a-z ]*$")], ...),
    )
    for name, right, wrong in (
        ("naive", "2024-02-29T10:00:00", "2024-02-29T10:00:00Z"),
        ("day", "2024-02-29", "2023-02-29"),
        ("site", "https://example.org/x", "gopher://example.org"),
    ):
        assert re.fullmatch(words[name]["pattern"], right)
        assert not re.fullmatch(words[name]["pattern"], wrong)
        # To the library of the servers that would be digits of any script.
        assert r"\d" not in words[name]["pattern"]
    assert words["id"]["format"] == "uuid"
    used = {keyword for schema in words.values() for keyword in schema}
    assert not used & {"formatMinimum", "formatMaximum", "propertyNames", "allOf"}
    assert [name for name in words if "format" in words[name]] == ["id"]
