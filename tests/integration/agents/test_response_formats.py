"""Agents that end with an object: a format of the answer, or a tool, beside other tools."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain.agents.structured_output import (
    AutoStrategy,
    ProviderStrategy,
    StructuredOutputValidationError,
    ToolStrategy,
)
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from tests.support.backends import scripted_backend
from tests.support.langchain_versions import needs_chosen_strategy
from tests.support.scripted_agents import QUESTION, agent_of, call, forced_call, kinds, qwen, results, shapes
from tests.support.tools import add, weather


class Report(BaseModel):
    """A report of the weather."""

    place: str
    degrees: int = Field(ge=-90, le=60)


class Dictionary(TypedDict):
    """The same without a class."""

    place: str
    degrees: int


class Even(BaseModel):
    """Checks what no schema says."""

    number: int

    @field_validator("number")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            msg = "odd"
            raise ValueError(msg)
        return value


ULM: Any = {"place": "Ulm", "degrees": 7}
AS_SCHEMA = {**Report.model_json_schema(), "title": "Report"}


@pytest.mark.parametrize("schema", [Report, Dictionary, AS_SCHEMA], ids=["class", "TypedDict", "JSON schema"])
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(lambda schema: schema, marks=needs_chosen_strategy, id="none"),
        pytest.param(AutoStrategy, marks=needs_chosen_strategy),
        ProviderStrategy,
    ],
)
def test_an_object_ends_the_agent(schema: Any, strategy: Any) -> None:
    model = qwen(call("weather", place="Ulm"), json.dumps(ULM))
    agent = agent_of(model, [weather], response_format=strategy(schema))
    state = agent.invoke(QUESTION)
    assert state["structured_response"] == (Report(**ULM) if schema is Report else ULM)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]
    # Every step may be a call or the object, and the model is told of both.
    for request, prompt in zip(scripted_backend(model).requests, scripted_backend(model).prompts, strict=True):
        assert request.params.grammar is not None
        assert '"degrees"' in prompt
        assert '"weather"' in prompt


@pytest.mark.parametrize("schema", [Report, Dictionary, AS_SCHEMA], ids=["class", "TypedDict", "JSON schema"])
def test_the_object_is_a_call_of_a_tool(schema: Any) -> None:
    name = "Dictionary" if schema is Dictionary else "Report"
    model = qwen(forced_call("weather", place="Ulm"), forced_call(name, **ULM))
    state = agent_of(model, [weather], response_format=ToolStrategy(schema)).invoke(QUESTION)
    assert state["structured_response"] == (Report(**ULM) if schema is Report else ULM)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai", "tool"]
    assert results(state["messages"])[0] == "It rains in Ulm."


def test_one_of_two_tools_is_the_object() -> None:
    for written, wanted in ((("Report", ULM), Report(**ULM)), (("Even", {"number": 2}), Even(number=2))):
        model = qwen(forced_call(written[0], **written[1]))
        state = agent_of(model, [add], response_format=ToolStrategy(Report | Even)).invoke(QUESTION)
        assert state["structured_response"] == wanted


def test_an_object_that_a_class_refuses_is_asked_for_again() -> None:
    model = qwen(forced_call("Even", number=1), forced_call("Even", number=2))
    state = agent_of(model, [add], response_format=ToolStrategy(Even)).invoke(QUESTION)
    assert state["structured_response"] == Even(number=2)
    assert "odd" in scripted_backend(model).prompt
    strict = ToolStrategy(Even, handle_errors=False)
    with pytest.raises(StructuredOutputValidationError):
        agent_of(qwen(forced_call("Even", number=1)), [add], response_format=strict).invoke(QUESTION)
    # LangChain 1.0 has a ValueError of its own.
    with pytest.raises((StructuredOutputValidationError, ValueError)):
        agent_of(qwen('{"number": 1}'), [add], response_format=ProviderStrategy(Even)).invoke(QUESTION)


@needs_chosen_strategy
def test_an_answer_without_tools_is_an_object() -> None:
    state = agent_of(qwen(json.dumps(ULM)), [], response_format=Report).invoke(QUESTION)
    assert state["structured_response"] == Report(**ULM)


@pytest.mark.parametrize("width", [1, 3, 1000])
@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
async def test_streams_end_with_the_same_object(width: int, strategy: Any) -> None:
    def agent() -> Any:
        last = json.dumps(ULM) if strategy is ProviderStrategy else forced_call("Report", **ULM)
        first = call("weather", place="Ulm") if strategy is ProviderStrategy else forced_call("weather", place="Ulm")
        return agent_of(qwen(first, last, width=width), [weather], response_format=strategy(Report))

    wanted = agent().invoke(QUESTION)
    streamed = list(agent().stream(QUESTION, stream_mode="values"))[-1]
    awaited = await agent().ainvoke(QUESTION)
    for state in (streamed, awaited):
        assert state["structured_response"] == wanted["structured_response"] == Report(**ULM)
        assert shapes(state["messages"]) == shapes(wanted["messages"])
