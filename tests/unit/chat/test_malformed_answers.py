"""Answers without the form they were to have, cut at the limit or against the grammar: none passes as data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.tools import tool
from pydantic import BaseModel, RootModel

from langchain_specdec import ChatSpeculative, Grammar, LocalBackend, SpeculativeLLM
from langchain_specdec.chat.answer_parsers import is_whole
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import GenerationError, MalformedAnswerError, SpecDecError
from tests.support.backends import ScriptedBackend, lasting
from tests.support.chat_templates import CHATML, LLAMA, MISTRAL, QWEN, chat_tokenizer
from tests.support.tiny_models import tiny_model

CUT = r"cut at max_new_tokens=64: raise it"
BROKEN = "The answer does not fit its grammar: the server broke it. Use speculate=0."


class City(BaseModel):
    """A city."""

    city: str
    year: int


class CityDict(TypedDict):
    """A city."""

    city: str
    year: int


@tool
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def cut(answer: str, template: str = QWEN) -> ChatSpeculative:
    backend = ScriptedBackend(answer, template=template)
    backend.finish_reason = "length"
    return ChatSpeculative(backend=backend, max_new_tokens=64)


def broken(answer: str, template: str = QWEN) -> ChatSpeculative:
    backend = ScriptedBackend(answer, template=template)
    backend.grammar_error = BROKEN
    return ChatSpeculative(backend=backend, max_new_tokens=64)


def merged(model: Any) -> Any:
    whole: Any = None
    for chunk in model.stream("x"):
        whole = chunk if whole is None else whole + chunk
    return whole


async def outcomes(structured: Any) -> list[Any]:
    """What each way to ask gives, or the error that it ends with."""

    async def of_astream() -> Any:
        return [part async for part in structured.astream("x")][-1]

    ways: list[Callable[[], Any]] = [
        lambda: structured.invoke("x"),
        lambda: structured.batch(["x"])[0],
        lambda: list(structured.stream("x"))[-1],
        lambda: structured.ainvoke("x"),
        of_astream,
    ]
    found = []
    for way in ways:
        try:
            outcome = way()
            found.append(await outcome if hasattr(outcome, "__await__") else outcome)
        except Exception as error:  # noqa: PERF203
            found.append(error)
    return found


SCHEMAS: list[Any] = [City, CityDict, City.model_json_schema()]


@pytest.mark.parametrize("schema", SCHEMAS, ids=["class", "typed_dict", "dict"])
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("answer", ['{"city": "Berlin", "year": 1', ""])
async def test_a_cut_answer_is_an_error_that_names_the_limit(schema: Any, method: Any, answer: str) -> None:
    if method == "function_calling":
        name = schema["title"] if isinstance(schema, dict) else schema.__name__
        answer = f'{{"name": "{name}", "arguments": {answer}' if answer else f'{{"name": "{name}", "argum'
    model = cut(answer)
    for outcome in await outcomes(model.with_structured_output(schema, method=method)):
        assert isinstance(outcome, MalformedAnswerError)
        assert isinstance(outcome, OutputParserException)
        assert isinstance(outcome, SpecDecError)
        assert "cut at max_new_tokens=64: raise it" in str(outcome)
    for outcome in await outcomes(model.with_structured_output(schema, method=method, include_raw=True)):
        assert outcome.get("parsed") is None
        assert "cut at max_new_tokens=64: raise it" in str(outcome["parsing_error"])


@pytest.mark.parametrize("answer", ["12", "-1", "1.5", "1e3", "\n7"])
async def test_digits_could_follow_a_number_that_was_cut(answer: str) -> None:
    schemas: list[Any] = [{"title": "n", "type": "number"}, RootModel[float], {"title": "n", "enum": [1, 12, 123]}]
    for schema in schemas:
        for outcome in await outcomes(cut(answer).with_structured_output(schema)):
            assert isinstance(outcome, MalformedAnswerError), outcome
            assert "cut at max_new_tokens=64" in str(outcome)


async def test_what_is_whole_at_the_limit_is_an_answer() -> None:
    for outcome in await outcomes(cut('{"city": "Berlin", "year": 1237}').with_structured_output(City)):
        assert outcome == City(city="Berlin", year=1237)
    call = '{"name": "City", "arguments": {"city": "Ulm", "year": 854}}'
    for outcome in await outcomes(cut(call).with_structured_output(City, method="function_calling")):
        assert outcome == City(city="Ulm", year=854)
    assert [is_whole(text) for text in ("12 ", "true", '"1"', "[1]", "12", "1e5", "", "{")] == [True] * 4 + [False] * 4


def test_a_stream_of_partial_objects_ends_with_the_error() -> None:
    parts = []
    with pytest.raises(MalformedAnswerError, match=CUT):
        for part in cut('{"city": "Berlin", "year": 1').with_structured_output(City.model_json_schema()).stream("x"):
            parts.append(part)  # noqa: PERF402
    assert {"city": "Berlin"} in parts
    read = cut('{"city": "Berlin", "year": 1').with_structured_output(City.model_json_schema(), include_raw=True)
    *_, last = read.stream("x")
    assert "parsing_error" in last
    assert "cut at max_new_tokens=64" in str(last["parsing_error"])


def test_objects_of_a_class_come_at_the_end_only() -> None:
    # Before, nobody knows whether more digits follow, or whether the server broke its grammar.
    seen: list[Any] = []
    with pytest.raises(MalformedAnswerError):
        seen.extend(cut("123").with_structured_output(RootModel[int]).stream("x"))
    with pytest.raises(MalformedAnswerError):
        seen.extend(broken('{"city": "Ulm", "year": 854}').with_structured_output(City).stream("x"))
    assert seen == []


CALLS = [
    (QWEN, '<tool_call>\n{"name": "add", "arguments": {"a": 1', "add"),
    (QWEN, '<tool_call>\n[{"name": "add", "arguments": {"a": 1, "b": 2}}, {"name": "add", ', "add"),
    (QWEN, "<tool_call>\n", None),
    (CHATML, '{"name": "add", "arguments": {"a": 1', "add"),
    (LLAMA, '{"name": "add", "parameters": {"a": 1', "add"),
    (LLAMA, '<|python_tag|>{"name": "add", "parameters": {"a": 1}, ', "add"),
    (MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": 1', "add"),
    (MISTRAL, '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1', "add"),
    (MISTRAL, "[TOOL_CALLS]add", "add"),
]


@pytest.mark.parametrize(("template", "answer", "name"), CALLS)
def test_a_cut_call_is_invalid_and_names_the_limit(template: str, answer: str, name: str | None) -> None:
    model = cut(answer, template).bind_tools([add])
    whole, streamed = model.invoke("x"), merged(model)
    for message in (whole, streamed):
        assert message.tool_calls == []
        assert [call["name"] for call in message.invalid_tool_calls] == [name]
        assert "cut at max_new_tokens=64: raise it" in message.response_metadata["form_error"]
        assert message.response_metadata["finish_reason"] == "length"
    assert "cut at max_new_tokens=64: raise it" in str(whole.invalid_tool_calls[0]["error"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_the_engine_in_this_process_gives_whole_answers_or_names_the_limit(method: Any) -> None:
    tokenizer = chat_tokenizer(QWEN)
    model = tiny_model(0, vocab_size=len(tokenizer), max_position_embeddings=1024)
    found: list[tuple[int, Any]] = []
    with lasting(LocalBackend(model, tokenizer, num_slots=1, max_length=1024, step_cost=StepCost.flat())) as backend:
        for limit in (1, 2, 5, 10, 20, 50, 80):
            chat = ChatSpeculative(backend=backend, max_new_tokens=limit)
            found += [(limit, outcome) for outcome in await outcomes(chat.with_structured_output(City, method=method))]
    errors = [(limit, outcome) for limit, outcome in found if not isinstance(outcome, City)]
    assert 0 < len(errors) < len(found)
    for limit, error in errors:
        assert isinstance(error, SpecDecError)
        assert re.search(rf"\b{limit}\b.*[Rr]aise", str(error))
        assert "max_new_tokens" in str(error)


@pytest.mark.parametrize("template", [QWEN, CHATML, LLAMA, MISTRAL])
@pytest.mark.parametrize("written", ['{"name": "add", "argum', '{"na', "{", ""])
def test_a_forced_call_that_is_cut_is_invalid_in_every_family(template: str, written: str) -> None:
    model = cut(written, template).bind_tools([add], tool_choice="any")
    whole, streamed = model.invoke("x"), merged(model)
    for message in (whole, streamed):
        assert (message.tool_calls, message.text) == ([], "")
        assert len(message.invalid_tool_calls) == 1
        assert "cut at max_new_tokens=64" in message.response_metadata["form_error"]
    assert "cut at max_new_tokens=64: raise it" in str(whole.invalid_tool_calls[0]["error"])


def test_a_whole_call_before_the_limit_is_one() -> None:
    for message in (
        cut('<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}').bind_tools([add]).invoke("x"),
        merged(cut('{"name": "add", "arguments": {"a": 1, "b": 2}}').bind_tools([add], tool_choice="add")),
    ):
        assert [call["args"] for call in message.tool_calls] == [{"a": 1, "b": 2}]
        assert "form_error" not in message.response_metadata


@pytest.mark.parametrize("template", [QWEN, CHATML, LLAMA, MISTRAL])
@pytest.mark.parametrize("written", ['{"name": "add", "%s": {"a": 5000000, "b": 1}}', "hello there", '{"a": {"b": ]}'])
def test_a_forced_call_against_the_grammar_is_invalid(template: str, written: str) -> None:
    written = written.replace("%s", "parameters" if template is LLAMA else "arguments")
    model = broken(written, template).bind_tools([add], tool_choice="any")
    whole, streamed = model.invoke("x"), merged(model)
    for message in (whole, streamed):
        assert (message.tool_calls, message.text) == ([], "")
        assert [call["name"] for call in message.invalid_tool_calls] == ["add" if "add" in written else None]
        assert message.response_metadata["form_error"] == BROKEN
        assert written in str(message.invalid_tool_calls[0]["args"])
    assert whole.invalid_tool_calls[0]["error"] == BROKEN


@pytest.mark.parametrize("schema", SCHEMAS, ids=["class", "typed_dict", "dict"])
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
async def test_an_answer_against_the_grammar_is_never_data(schema: Any, method: Any) -> None:
    answer = '{"city": "Ulm", "year": 5000000}'
    if method == "function_calling":
        name = schema["title"] if isinstance(schema, dict) else schema.__name__
        answer = json.dumps({"name": name, "arguments": json.loads(answer)})
    model = broken(answer)
    for outcome in await outcomes(model.with_structured_output(schema, method=method)):
        assert isinstance(outcome, GenerationError)
        assert BROKEN in str(outcome)
    structured = model.with_structured_output(schema, method=method, include_raw=True)
    for outcome in await outcomes(structured):
        assert outcome.get("parsed") is None
        assert isinstance(outcome["parsing_error"], GenerationError)
        assert BROKEN in str(outcome["parsing_error"])
    assert structured.invoke("x")["raw"].response_metadata["form_error"] == BROKEN


def test_a_response_format_alone_raises_too() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "City", "schema": City.model_json_schema()}}
    model = broken('{"city": "Ulm", "year": 5000000}')
    for model_of in (model.bind(response_format=form), model.bind(grammar=Grammar(schema=City.model_json_schema()))):
        with pytest.raises(MalformedAnswerError, match="broke"):
            model_of.invoke("x")
        with pytest.raises(MalformedAnswerError, match="broke"):
            list(model_of.stream("x"))
    message = cut('{"city": "Ulm", "ye').bind(response_format=form).invoke("x")
    assert message.text == '{"city": "Ulm", "ye'
    assert message.response_metadata["finish_reason"] == "length"
    assert "cut at max_new_tokens=64" in message.response_metadata["form_error"]


@pytest.mark.parametrize("schema", [City, City.model_json_schema()], ids=["class", "dict"])
@pytest.mark.parametrize("make", [cut, broken])
def test_an_agent_gets_no_wrong_object(schema: Any, make: Callable[[str], ChatSpeculative]) -> None:
    answer = '{"city": "Ulm", "year": 1' + ("" if make is cut else "}")
    agent: Any = create_agent(make(answer), [], response_format=ProviderStrategy(schema))
    with pytest.raises(Exception, match=r"broke|valid JSON"):
        agent.invoke({"messages": [("human", "x")]})


async def test_completions_raise_at_their_end() -> None:
    backend = ScriptedBackend("left 1")
    backend.grammar_error = BROKEN
    llm = SpeculativeLLM(backend=backend, grammar=Grammar(regex="(left|right) [0-9]{2}"))
    pieces: list[str] = []
    for ask in (
        lambda: llm.invoke("x"),
        lambda: llm.invoke("x", config={"callbacks": []}),
        lambda: llm.batch(["x", "y"]),
        lambda: pieces.extend(llm.stream("x")),
    ):
        with pytest.raises(MalformedAnswerError, match="broke it"):
            ask()
    assert "".join(pieces) == "left 1"
    with pytest.raises(MalformedAnswerError, match="broke it"):
        await llm.ainvoke("x")
    with pytest.raises(MalformedAnswerError, match="broke it"):
        _ = [piece async for piece in llm.astream("x")]
    assert all(isinstance(outcome, MalformedAnswerError) for outcome in llm.batch(["x"] * 3, return_exceptions=True))
    backend.grammar_error, backend.finish_reason = None, "length"
    info = llm.generate(["x"]).generations[0][0].generation_info
    assert info is not None
    assert info["finish_reason"] == "length"


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_no_error_repeats_an_answer_that_cannot_be_read(method: str) -> None:
    secret = "sesame-" * 500
    answers = [f'{{"city": "{secret}", "year": "{secret}"}}', f'{{"city": "{secret}", ', json.dumps({"town": secret})]
    for text in answers:
        answer = (
            f'<tool_call>{{"name": "City", "arguments": {text}}}</tool_call>' if method == "function_calling" else text
        )
        model = ChatSpeculative(backend=ScriptedBackend(answer, template=QWEN), max_new_tokens=10_000)
        with pytest.raises(MalformedAnswerError) as caught:
            model.with_structured_output(City, method=method).invoke("x")  # type: ignore[arg-type]
        assert "sesame" not in str(caught.value)
        assert len(str(caught.value)) < 1000
        if method != "function_calling":
            assert getattr(caught.value, "llm_output", None) == text
        shown = caught.value.__cause__ or caught.value.__context__
        assert "sesame" not in str(shown)
