"""Agents beside models of other providers: fallbacks in both ways, and threads that both have written."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents.middleware import ModelFallbackMiddleware
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda

from tests.support.backends import scripted_backend
from tests.support.chat_templates import TEMPLATES
from tests.support.scripted_agents import agent_of, call, kinds, qwen
from tests.support.tools import weather

QUESTION: Any = {"messages": [("human", "How is the weather in Ulm and in Bonn?")]}


class Provider(GenericFakeChatModel):
    """A model of a provider, which fails when its messages are at an end."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def ask(place: str, key: str) -> dict[str, Any]:
    return {"name": "weather", "args": {"place": place}, "id": key, "type": "tool_call"}


OPENAI: list[Any] = [
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
    {"type": "text", "text": "I look.", "annotations": [], "id": "msg_1"},
    {"type": "function_call", "call_id": "call_1", "id": "fc_1", "name": "weather", "arguments": '{"place": "Ulm"}'},
]
ANTHROPIC: list[Any] = [
    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
    {"type": "text", "text": "I look."},
    {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"place": "Ulm"}},
]
STANDARD: list[Any] = [
    {"type": "reasoning", "reasoning": "Hm."},
    {"type": "text", "text": "I look."},
    {"type": "tool_call", "id": "call_1", "name": "weather", "args": {"place": "Ulm"}},
]
FIRST = {
    "text": AIMessage("I look.", tool_calls=[ask("Ulm", "call_1")]),
    "openai": AIMessage(OPENAI, tool_calls=[ask("Ulm", "call_1")], response_metadata={"model_provider": "openai"}),
    "anthropic": AIMessage(
        ANTHROPIC, tool_calls=[ask("Ulm", "call_1")], response_metadata={"model_provider": "anthropic"}
    ),
    "standard": AIMessage(STANDARD, tool_calls=[ask("Ulm", "call_1")], response_metadata={"output_version": "v1"}),
}


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("first", FIRST.values(), ids=list(FIRST))
def test_ours_goes_on_where_another_fails(first: AIMessage, family: str) -> None:
    """Its iterator ends after one message, which raises."""
    model = qwen("Rain.", chat_template=TEMPLATES[family])
    other = Provider(messages=iter([first]))
    state = agent_of(other, [weather], middleware=[ModelFallbackMiddleware(model)]).invoke(QUESTION)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]
    prompt = scripted_backend(model).prompt
    assert "It rains in Ulm." in prompt
    assert "Hm." not in prompt


@pytest.mark.parametrize("family", TEMPLATES)
def test_two_calls_of_another_model(family: str) -> None:
    model = qwen("Rain in both.", chat_template=TEMPLATES[family])
    both = AIMessage("", tool_calls=[ask("Ulm", "call_1"), ask("Bonn", "call_2")])
    other = Provider(messages=iter([both]))
    state = agent_of(other, [weather], middleware=[ModelFallbackMiddleware(model)]).invoke(QUESTION)
    assert state["messages"][-1].text == "Rain in both."
    prompt = scripted_backend(model).prompt
    for place in ("Ulm", "Bonn"):
        assert f"It rains in {place}." in prompt


def test_another_goes_on_where_ours_fails() -> None:
    """With what ours wrote; also where `output_version` has its content be blocks."""
    seen: list[list[BaseMessage]] = []

    def see(messages: Any) -> AIMessage:
        seen.append(messages)
        return AIMessage("Rain, says another.")

    for version in ("v0", "v1"):
        model = qwen("I look. " + call("weather", place="Ulm"), _fail, output_version=version).bind_tools([weather])
        chain = model.with_fallbacks([RunnableLambda(see)])
        asked = chain.invoke("Ulm?")
        assert isinstance(asked, AIMessage)
        result = ToolMessage("Rain.", tool_call_id=asked.tool_calls[0]["id"])
        assert chain.invoke([HumanMessage("Ulm?"), asked, result]).text == "Rain, says another."
        assert seen[-1][1].text == "I look."


def _fail(prompt: str) -> str:
    del prompt
    msg = "The model is away."
    raise RuntimeError(msg)
