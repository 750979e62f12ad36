"""Counting what memories and middleware hold in their hands while they cut a thread: any part of it, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool

from tests.support.backends import scripted
from tests.support.chat_templates import TEMPLATES_FOR_CALLS
from tests.support.langchain_versions import needs_triggers

pytestmark = pytest.mark.transformers

kinds = pytest.mark.parametrize("kind", TEMPLATES_FOR_CALLS)


@tool
def weather(place: str) -> str:
    """The weather of a place."""
    return f"Rain in {place}."


def calling(*places: str, text: str = "") -> AIMessage:
    calls = [{"name": "weather", "args": {"place": place}, "id": f"call_{place}"} for place in places]
    return AIMessage(text, tool_calls=calls)


def result(place: str) -> ToolMessage:
    return ToolMessage(f"Rain in {place}.", tool_call_id=f"call_{place}")


THREAD: list[BaseMessage] = [
    SystemMessage("Be brief. " * 5),
    HumanMessage("Ulm and Bonn? " * 5),
    calling("Ulm", "Bonn", text="I look both up. " * 5),
    result("Ulm"),
    result("Bonn"),
    AIMessage("Rain in both. " * 5),
    HumanMessage("Thanks!"),
    calling("Jena"),
    result("Jena"),
]


@kinds
def test_every_part_of_a_thread_is_counted(kind: str) -> None:
    model = scripted("x", template=TEMPLATES_FOR_CALLS[kind])
    for start in range(len(THREAD)):
        for stop in range(start, len(THREAD) + 1):
            part = THREAD[start:stop]
            assert (model.get_num_tokens_from_messages(part) > 0) is bool(part)
    for lone in (AIMessage(""), HumanMessage(""), SystemMessage("S."), FunctionMessage(content="x", name="weather")):
        assert model.get_num_tokens_from_messages([lone], tools=[weather]) > 0
        assert model.get_num_tokens_from_messages([SystemMessage("S."), lone]) > 0


@kinds
@pytest.mark.parametrize("limit", [0, 90, 10_000])
def test_threads_are_trimmed(kind: str, limit: int) -> None:
    model = scripted("x", template=TEMPLATES_FOR_CALLS[kind])
    for options in (
        {"strategy": "first"},
        {"strategy": "first", "end_on": ("human", "tool")},
        {"strategy": "last"},
        {"strategy": "last", "start_on": "human"},
        {"strategy": "last", "start_on": ("human", "tool"), "include_system": True},
    ):
        for allow_partial in (False, True):
            how: dict[str, Any] = {**options, "allow_partial": allow_partial, "max_tokens": limit}
            kept = trim_messages(THREAD, token_counter=model, **how)
            if limit == 0:
                assert kept in ([], THREAD[:1])
            elif limit == 10_000:
                assert len(kept) >= len(THREAD) - 1
            else:
                assert len(kept) < len(THREAD)


@needs_triggers
@kinds
def test_a_thread_is_summarised(kind: str) -> None:
    pytest.importorskip("langchain")
    from langchain.agents import create_agent
    from langchain.agents.middleware import SummarizationMiddleware

    model = scripted("Short.", template=TEMPLATES_FOR_CALLS[kind])
    for keep in (("tokens", 40), ("messages", 2), ("messages", 1)):
        middleware = SummarizationMiddleware(model, trigger=("tokens", 50), keep=keep)
        agent: Any = create_agent(model, [weather], middleware=[middleware])
        messages = agent.invoke({"messages": [*THREAD, HumanMessage("Well?")]})["messages"]
        assert "Short." in messages[0].text
        assert len(messages) < len(THREAD)


@pytest.mark.filterwarnings("ignore:The class:DeprecationWarning")
@pytest.mark.parametrize("limit", [0, 20])
@pytest.mark.parametrize("name", ["ConversationTokenBufferMemory", "ConversationSummaryBufferMemory"])
@pytest.mark.parametrize("kind", ["chatml", "llama", "strict"])
def test_buffer_memories_drop_what_is_too_long(kind: str, name: str, limit: int) -> None:
    memories = pytest.importorskip("langchain_classic.memory")
    memory = getattr(memories, name)(llm=scripted("Short.", template=TEMPLATES_FOR_CALLS[kind]), max_token_limit=limit)
    for _ in range(3):
        memory.save_context({"input": "Good evening. " * 5}, {"output": "How do you do? " * 5})
    assert isinstance(memory.load_memory_variables({})["history"], str)


def test_each_of_several_calls_counts() -> None:
    model = scripted("x", template=TEMPLATES_FOR_CALLS["llama"])
    asked = HumanMessage("x")
    none = model.get_num_tokens_from_messages([asked])
    one = model.get_num_tokens_from_messages([asked, calling("Ulm"), result("Ulm")])
    both = model.get_num_tokens_from_messages([asked, calling("Ulm", "Bonn"), result("Ulm"), result("Bonn")])
    assert both - one == pytest.approx(one - none, abs=10)


@pytest.mark.parametrize(
    "given",
    [
        "Hi",
        ["Hi"],
        [("human", "Hi")],
        (("user", "Hi"),),
        [{"role": "user", "content": "Hi"}],
        ChatPromptTemplate.from_messages([("human", "{word}")]).invoke({"word": "Hi"}),
    ],
)
def test_what_can_be_asked_can_be_counted(given: Any) -> None:
    model = scripted("x")
    answer = model.invoke(given)
    assert isinstance(answer, AIMessage)
    if isinstance(given, list):
        assert model.get_num_tokens_from_messages(iter(given)) == model.get_num_tokens_from_messages(given)
    assert model.get_num_tokens_from_messages(given) == model.get_num_tokens_from_messages([HumanMessage("Hi")])
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == model.get_num_tokens_from_messages(given)


@pytest.mark.parametrize("given", [5, None, [5], [("nobody", "Hi")], [("human",)], [{"x": 1}], HumanMessage("Hi")])
def test_what_cannot_be_asked_is_refused_in_the_same_words(given: Any) -> None:
    model = scripted("x")
    said = []
    for call in (model.invoke, model.get_num_tokens_from_messages):
        with pytest.raises((ValueError, NotImplementedError)) as caught:
            call(given)
        said.append(str(caught.value))
    assert said[0] == said[1]
