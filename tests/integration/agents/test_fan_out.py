"""Many branches and threads on few slots of one engine: each writes what it writes alone, and leaves its slot."""

from __future__ import annotations

import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pytest
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from langchain_specdec import ChatSpeculative, LocalBackend
from tests.support.backends import is_idle
from tests.support.scripted_agents import agent_of, call, qwen
from tests.support.tools import weather

TOPICS = [f"Topic {number}" for number in range(8)]


class Topics(TypedDict):
    topics: list[str]
    texts: Annotated[list[tuple[str, str]], operator.add]


def graph_of(model: Any) -> Any:
    """One branch for each topic, all in one step."""

    def write(state: dict[str, str]) -> dict[str, Any]:
        return {"texts": [(state["topic"], model.invoke(state["topic"]).text)]}

    async def awrite(state: dict[str, str]) -> dict[str, Any]:
        return {"texts": [(state["topic"], (await model.ainvoke(state["topic"])).text)]}

    graph: Any = StateGraph(Topics)
    graph.add_node("write", RunnableLambda(write, awrite))
    graph.add_conditional_edges(
        START, lambda state: [Send("write", {"topic": topic}) for topic in state["topics"]], ["write"]
    )
    graph.add_edge("write", END)
    return graph.compile()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
async def test_more_branches_than_slots(
    tiny_chat: Callable[..., ChatSpeculative], tiny_backend: LocalBackend, temperature: float
) -> None:
    model = tiny_chat(max_tokens=24, temperature=temperature, seed=3)
    alone = [(topic, model.invoke(topic).text) for topic in TOPICS]
    assert len({text for _, text in alone}) > 1
    state = {"topics": TOPICS, "texts": []}
    assert graph_of(model).invoke(state)["texts"] == alone
    assert (await graph_of(model).ainvoke(state))["texts"] == alone
    chunks: dict[str, str] = {}
    for chunk, about in graph_of(model).stream(state, stream_mode="messages"):
        chunks[about["langgraph_checkpoint_ns"]] = chunks.get(about["langgraph_checkpoint_ns"], "") + chunk.text
    assert sorted(chunks.values()) == sorted(text for _, text in alone)
    assert is_idle(tiny_backend)


def test_a_branch_that_fails_takes_no_other_with_it(
    tiny_chat: Callable[..., ChatSpeculative], tiny_backend: LocalBackend
) -> None:
    model = tiny_chat(max_tokens=24)
    topics = [*TOPICS[:3], "far too long " * 1000, *TOPICS[3:]]
    with pytest.raises(Exception, match="tokens"):
        graph_of(model).invoke({"topics": topics, "texts": []})
    assert is_idle(tiny_backend)
    assert graph_of(model).invoke({"topics": TOPICS[:2], "texts": []})["texts"][0][0] == TOPICS[0]


class Steps(AgentMiddleware[Any, Any]):
    """One call, then an answer."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        has_answered = sum(isinstance(message, AIMessage) for message in request.messages)
        return handler(request.override(tool_choice="none" if has_answered else "weather"))


def test_agents_in_branches(tiny_chat: Callable[..., ChatSpeculative], tiny_backend: LocalBackend) -> None:
    agent = agent_of(tiny_chat(max_tokens=60), [weather], middleware=[Steps()])

    def run(topic: str) -> list[Any]:
        messages = agent.invoke({"messages": [HumanMessage(topic)]})["messages"]
        return [
            (message.type, message.text, [asked["args"] for asked in getattr(message, "tool_calls", [])])
            for message in messages
        ]

    alone = {topic: run(topic) for topic in TOPICS[:5]}

    class State(TypedDict):
        found: Annotated[list[Any], operator.add]

    graph = StateGraph(State)
    graph.add_node("run", lambda state: {"found": [(state["topic"], run(state["topic"]))]})
    graph.add_conditional_edges(START, lambda _: [Send("run", {"topic": topic}) for topic in alone], ["run"])
    assert dict(graph.compile().invoke({"found": []})["found"]) == alone
    assert is_idle(tiny_backend)


def test_threads_with_one_agent() -> None:
    """Each reads the thread of its own, and gets the answer to its own question."""

    def answer(prompt: str) -> str:
        name = prompt.split("I am ")[1].split(".")[0]
        return f"Rain, {name}." if f"It rains in {name}." in prompt else call("weather", place=name)

    saver = InMemorySaver()
    agent = agent_of(qwen(answer, width=3), [weather], checkpointer=saver)

    def ask(number: int) -> list[str]:
        config: Any = {"configurable": {"thread_id": str(number)}}
        state = agent.invoke({"messages": [("human", f"I am T{number}.")]}, config)
        return [message.text for message in state["messages"]]

    with ThreadPoolExecutor(8) as pool:
        talks = list(pool.map(ask, range(24)))
    assert talks == [[f"I am T{n}.", "", f"It rains in T{n}.", f"Rain, T{n}."] for n in range(24)]


def test_a_batch_of_an_agent() -> None:
    agent = agent_of(qwen(lambda prompt: "Yes, " + prompt.split("I am ")[1].split(".")[0]), [])
    states = agent.batch([{"messages": [("human", f"I am T{n}.")]} for n in range(6)])
    assert [state["messages"][-1].text for state in states] == [f"Yes, T{n}" for n in range(6)]
