"""A response format beside tools: the answer is calls of tools, or the object, whatever the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.chat.calls_or_object import CallsFirst
from langchain_specdec.chat.tool_calls import HermesParser, LlamaParser, ToolCall
from langchain_specdec.errors import InvalidParameterError
from tests.support.backends import ScriptedBackend, lasting, make_chat_backend, scripted, scripted_backend
from tests.support.chat_templates import CHATML, LLAMA, MISTRAL, QWEN, TEMPLATES
from tests.support.langchain_versions import needs_profiles

pytestmark = pytest.mark.transformers


@tool
def weather(place: Annotated[str, Field(max_length=8)]) -> str:
    """Weather."""
    return f"It rains in {place}."


@tool
def add(a: int, b: int) -> int:
    """Sum."""
    return a + b


class Report(BaseModel):
    name: str = Field(max_length=12)
    degrees: int = Field(ge=0, le=50)


SCHEMA = Report.model_json_schema()
FORM = {"type": "json_schema", "json_schema": {"name": "Report", "schema": SCHEMA}}
REPORT = '{"name": "Ulm", "degrees": 7}'
CALLS = {
    "qwen": '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
    "chatml": '<tool_call>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": 2}}]',
    "llama": '{"name": "add", "parameters": {"a": 1, "b": 2}}',
}
# What a model that calls begins with.
BEGINS = {"qwen": "<tool_call>", "chatml": "<tool_call>", "mistral": "[TOOL_CALLS]"}


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with lasting(make_chat_backend()) as backend:
        yield backend


@pytest.fixture(scope="module")
def plain() -> Iterator[LocalBackend]:
    with lasting(make_chat_backend(drafter="none")) as backend:
        yield backend


def chat(backend: LocalBackend, family: str, **fields: Any) -> Any:
    model = ChatSpeculative(backend=backend, chat_template=TEMPLATES[family], **{"max_tokens": 120, **fields})
    return model.bind_tools([weather, add], response_format=FORM)


def eager(backend: LocalBackend, family: str) -> dict[str, Any]:
    """Has the model begin with a call."""
    mark = backend.tokenizer(BEGINS[family], add_special_tokens=False).input_ids[0]
    return {"logit_bias": {mark: 100.0}}


def merged(model: Any) -> AIMessageChunk:
    whole = AIMessageChunk(content="")
    for chunk in model.stream("How warm is it?"):
        whole += chunk
    return whole


def check_fits(message: Any) -> None:
    """The answer is calls whose arguments fit, or the object."""
    arguments = {tool.name: tool.get_input_jsonschema() for tool in (weather, add)}
    assert not message.invalid_tool_calls
    for call in message.tool_calls:
        jsonschema.validate(call["args"], arguments[call["name"]])
    if message.tool_calls:
        assert message.text == ""
    else:
        jsonschema.validate(json.loads(message.text), SCHEMA)


def written(message: Any) -> Any:
    return message.text, [(call["name"], call["args"]) for call in message.tool_calls]


@pytest.mark.parametrize("family", TEMPLATES)
def test_each_family_may_call_or_answer(family: str) -> None:
    for width in (1, 3, 1000):
        model: Any = scripted(CALLS[family], REPORT, template=TEMPLATES[family], width=width)
        model = model.bind_tools([weather, add], response_format=FORM)
        called = merged(model)
        assert [(c["name"], c["args"]) for c in called.tool_calls] == [("add", {"a": 1, "b": 2})]
        assert called.text == ""
        answered = merged(model)
        assert answered.tool_calls == []
        assert answered.text == REPORT


def test_strings_of_the_object_are_never_calls() -> None:
    for parser in (HermesParser(), LlamaParser({"add": {}})):
        for text in (
            json.dumps({"x": f"{CALLS['qwen']} <|python_tag|>{CALLS['llama']}"}),
            json.dumps(["<tool_call>", CALLS["qwen"]]),
            f'{{"name": "bob", "x": "<tool_call>{{}}</tool_call>"}}\n{CALLS["llama"]}',
        ):
            for size in (1, 4, 1000):
                reader = CallsFirst(type(parser)({"add": {}}))
                chunks = [text[start : start + size] for start in range(0, len(text), size)]
                pieces = [piece for chunk in chunks for piece in reader.feed(chunk)] + reader.close()
                assert "".join(str(piece) for piece in pieces) == text
    reader = CallsFirst(HermesParser({"add": {}}))
    assert [type(piece) for piece in reader.feed(CALLS["qwen"] * 2) + reader.close()] == [ToolCall, ToolCall]


class Step(BaseModel):
    name: Literal["weather"]
    degrees: Literal[7]


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_object_with_the_name_of_a_tool_is_no_call(backend: LocalBackend, family: str) -> None:
    begin = BEGINS.get(family, "p")
    bias = {backend.tokenizer(begin, add_special_tokens=False).input_ids[0]: -100.0}
    model = ChatSpeculative(backend=backend, chat_template=TEMPLATES[family], max_new_tokens=120, logit_bias=bias)
    answer = model.with_structured_output(Step, tools=[weather], include_raw=True).invoke("x")
    assert answer["parsed"] == Step(name="weather", degrees=7)
    assert answer["raw"].tool_calls == []
    for text in ('{"name": "add", "degrees": 7}', '{"name": "add", "parameters": {}, "degrees": 7}', '{"name": "add"'):
        for width in (1, 1000):
            model = scripted(text, template=TEMPLATES[family], width=width)
            message = merged(model.bind_tools([add], response_format=FORM))
            assert (message.text, message.tool_call_chunks) == (text, [])


def test_a_format_like_a_call_is_refused_where_calls_have_no_mark() -> None:
    call = {"type": "object", "properties": {"name": {}, "parameters": {}, "x": {}}, "required": ["name"]}
    for schema in (call, {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/C"}], "$defs": {"C": call}}):
        for family, template in TEMPLATES.items():
            model: Any = scripted(CALLS[family], template=template)
            model = model.bind_tools([add], response_format={"type": "json_schema", "json_schema": {"schema": schema}})
            if family == "llama":
                with pytest.raises(InvalidParameterError, match="just the properties 'name' and 'parameters'"):
                    model.invoke("x")
            else:
                assert model.invoke("x").tool_calls


@pytest.mark.parametrize("family", BEGINS)
def test_a_model_that_calls_still_calls(backend: LocalBackend, family: str) -> None:
    message = chat(backend, family, **eager(backend, family)).invoke("x")
    assert message.tool_calls
    check_fits(message)


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_answer_fits_with_and_without_drafts(
    backend: LocalBackend, plain: LocalBackend, family: str, temperature: float
) -> None:
    """Alone, in a batch and in a stream."""
    # Half of them begin with a call.
    fields = {
        "temperature": temperature,
        "seed": 5,
        **(eager(plain, family) if temperature and family in BEGINS else {}),
    }
    expected = chat(plain, family, **fields).invoke("How warm is it?")
    check_fits(expected)
    drafted = chat(backend, family, **fields)
    for message in (*drafted.batch(["How warm is it?"] * 2), merged(drafted)):
        check_fits(message)
        assert written(message) == written(expected)


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_answer_ends_before_its_tokens_do(backend: LocalBackend, family: str) -> None:
    options = [{}, eager(backend, family)] if family in BEGINS else [{}]
    for num_tokens in (60, 90):
        for fields in options:
            message = chat(backend, family, max_tokens=num_tokens, temperature=1.0, seed=3, **fields).invoke("x")
            assert message.response_metadata["finish_reason"] == "eos_token"
            check_fits(message)


def test_what_begins_no_call_begins_the_object(backend: LocalBackend) -> None:
    """As without a format, where both beginnings are far from what the model would write."""
    ids = {text: backend.tokenizer(text, add_special_tokens=False).input_ids[0] for text in ("T", "<tool_call>", "{")}
    bias = {ids["T"]: 100.0, ids["<tool_call>"]: 50.0, ids["{"]: -50.0}
    assert chat(backend, "qwen", logit_bias=bias).invoke("x").tool_calls == []
    assert chat(backend, "qwen", logit_bias={**bias, ids["<tool_call>"]: 100.0, ids["T"]: 50.0}).invoke("x").tool_calls
    # Thoughts are no answer of either form.
    think = backend.tokenizer("<think>", add_special_tokens=False).input_ids[0]
    assert chat(backend, "qwen", logit_bias={think: 100.0, ids["<tool_call>"]: 60.0}).invoke("x").tool_calls


def test_any_json_may_stand_beside_tools(backend: LocalBackend) -> None:
    for schema in ({"type": "object"}, {"type": "array", "items": {"type": "integer"}}, {"enum": [1, 2]}):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        message = (
            ChatSpeculative(backend=backend, max_new_tokens=120).bind_tools([add], response_format=form).invoke("x")
        )
        if not message.tool_calls:
            jsonschema.validate(json.loads(message.text), schema)


def test_several_calls_stand_in_one_answer(backend: LocalBackend) -> None:
    bias = {**eager(backend, "qwen")["logit_bias"], backend.tokenizer("\n").input_ids[-1]: 100.0}
    message = chat(backend, "qwen", logit_bias=bias, max_tokens=250, temperature=1.0, seed=1).invoke("x")
    assert len(message.tool_calls) > 1
    check_fits(message)


def test_tools_that_may_not_be_called_leave_the_object(backend: LocalBackend) -> None:
    model = chat(backend, "qwen", **eager(backend, "qwen"))
    message = model.invoke("x", tool_choice="none")
    assert message.tool_calls == []
    jsonschema.validate(json.loads(message.text), SCHEMA)


@needs_profiles
def test_a_backend_of_other_grammars_refuses_and_does_not_offer_it() -> None:
    class Server(ScriptedBackend):
        takes_calls_or_object = False

    model = ChatSpeculative(backend=Server(REPORT, template=QWEN))
    assert model.profile is not None
    assert model.profile["structured_output"] is False
    with pytest.raises(InvalidParameterError, match=r"beside tools cannot be honoured by Server.*ToolStrategy"):
        model.bind_tools([add], response_format=FORM).invoke("x")
    assert scripted_backend(model).requests == []
    assert model.invoke("x", response_format=FORM).text == REPORT


@needs_profiles
@pytest.mark.parametrize(
    ("template", "call"), [(QWEN, "qwen"), (CHATML, "chatml"), (LLAMA, "llama"), (MISTRAL, "mistral")]
)
def test_an_agent_calls_and_ends_with_the_object(template: str, call: str) -> None:
    agents = pytest.importorskip("langchain.agents")
    from langchain.agents.structured_output import ToolStrategy

    model = scripted(CALLS[call], REPORT, template=template)
    state = agents.create_agent(model, [add], response_format=Report).invoke({"messages": [("human", "x")]})
    assert state["structured_response"] == Report(name="Ulm", degrees=7)
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    key = "parameters" if template is LLAMA else "arguments"
    written = [json.dumps({"name": "Report", key: json.loads(REPORT)})]
    model = scripted(*written, template=template)
    state = agents.create_agent(model, [add], response_format=ToolStrategy(Report)).invoke(
        {"messages": [("human", "x")]}
    )
    assert state["structured_response"] == Report(name="Ulm", degrees=7)


def test_a_schema_with_tools_is_parsed_where_it_is_the_answer() -> None:
    model = scripted(CALLS["qwen"], REPORT, CALLS["qwen"], template=QWEN)
    structured = model.with_structured_output(Report, tools=[add], include_raw=True)
    called = structured.invoke("x")
    assert [call["name"] for call in called["raw"].tool_calls] == ["add"]
    # Calls are no answer that could not be read.
    assert (called["parsed"], called["parsing_error"]) == (None, None)
    assert structured.invoke("x")["parsed"] == Report(name="Ulm", degrees=7)
    chunks = list(structured.stream("x"))
    assert chunks[-1] == {"parsed": None, "parsing_error": None}
    for options in ({}, {"include_raw": True, "method": "function_calling"}):
        with pytest.raises(InvalidParameterError, match="tools beside a schema"):
            model.with_structured_output(Report, tools=[add], **options)  # type: ignore[arg-type]
