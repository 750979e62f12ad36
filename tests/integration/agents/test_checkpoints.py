"""Threads in a database: kept, gone on with, interrupted, and taken up again from an earlier point."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langchain_core.tools import tool
from langgraph.types import Command, interrupt

from tests.support.backends import scripted_backend
from tests.support.scripted_agents import QUESTION, agent_of, call, kinds, qwen, results, shape, shapes
from tests.support.tools import weather

sqlite = pytest.importorskip("langgraph.checkpoint.sqlite")
ONE: Any = {"configurable": {"thread_id": "one"}}
TWO: Any = {"configurable": {"thread_id": "two"}}
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "threads.sqlite"


@pytest.fixture
def saver(path: Path) -> Iterator[Any]:
    with sqlite.SqliteSaver.from_conn_string(str(path)) as saver:
        yield saver


def again(text: str) -> Any:
    return {"messages": [("human", text)]}


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_messages_come_back_as_they_were(saver: Any, path: Path, version: str) -> None:
    model = qwen("I look. " + call("weather", place="Ulm"), "Rain.", output_version=version)
    written = agent_of(model, [weather], checkpointer=saver).invoke(QUESTION, ONE)["messages"]
    with sqlite.SqliteSaver.from_conn_string(str(path)) as other:
        read = agent_of(model, [weather], checkpointer=other).get_state(ONE).values["messages"]
    assert read == written
    assert [message.id for message in read] == [message.id for message in written]
    assert [message.response_metadata for message in read] == [message.response_metadata for message in written]


def test_threads_know_nothing_of_each_other(saver: Any) -> None:
    model = qwen("First.", "Second.", "Third.")
    agent = agent_of(model, [weather], checkpointer=saver)
    agent.invoke(again("The secret of thread one."), ONE)
    agent.invoke(again("x"), TWO)
    assert "secret" not in scripted_backend(model).prompt
    agent.invoke(again("y"), ONE)
    assert "secret" in scripted_backend(model).prompt


OTHER_PROCESS = """
import sys
from langgraph.checkpoint.sqlite import SqliteSaver
from tests.support.backends import scripted_backend
from tests.support.scripted_agents import agent_of, qwen
from tests.support.tools import weather
model = qwen("And snow.")
with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
    agent = agent_of(model, [weather], checkpointer=saver)
    agent.invoke({"messages": [("human", "And now?")]}, {"configurable": {"thread_id": "one"}})
assert "It rains in Ulm." in scripted_backend(model).prompt
"""


@pytest.mark.process
def test_another_process_goes_on_with_a_thread(saver: Any, path: Path) -> None:
    model = qwen(call("weather", place="Ulm"), "Rain.", "Sun.")
    agent = agent_of(model, [weather], checkpointer=saver)
    agent.invoke(QUESTION, ONE)
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(path)], check=True, cwd=ROOT, timeout=120)  # noqa: S603
    messages = agent.invoke(again("And then?"), ONE)["messages"]
    assert [message.text for message in messages if message.type == "ai"] == ["", "Rain.", "And snow.", "Sun."]
    assert "And snow." in scripted_backend(model).prompt


def test_an_interrupt_is_taken_up_by_another_connection(path: Path) -> None:
    @tool
    def ask(question: str) -> str:
        """Ask the user."""
        return str(interrupt(question))

    first = qwen(call("ask", question="Which town?"), "x")
    with sqlite.SqliteSaver.from_conn_string(str(path)) as saver:
        assert agent_of(first, [ask], checkpointer=saver).invoke(QUESTION, ONE)["__interrupt__"]
    second = qwen("Ulm it is.")
    with sqlite.SqliteSaver.from_conn_string(str(path)) as saver:
        state = agent_of(second, [ask], checkpointer=saver).invoke(Command(resume="Ulm"), ONE)
    assert results(state["messages"]) == ["Ulm"]
    assert state["messages"][-1].text == "Ulm it is."


def test_time_travel(saver: Any) -> None:
    """From the state before a call was carried out, once as it was and once with another call."""
    model = qwen(call("weather", place="Ulm"), "Rain in Ulm.", "Rain in Ulm.", "Rain in Bonn.")
    agent = agent_of(model, [weather], checkpointer=saver)
    first = agent.invoke(QUESTION, ONE)["messages"]
    before = next(state for state in agent.get_state_history(ONE) if state.next == ("tools",))
    assert shapes(agent.invoke(None, before.config)["messages"]) == shapes(first)
    asked = before.values["messages"][-1]
    changed = asked.model_copy(update={"tool_calls": [{**asked.tool_calls[0], "args": {"place": "Bonn"}}]})
    fork = agent.update_state(before.config, {"messages": [changed]})
    state = agent.invoke(None, fork)
    assert results(state["messages"]) == ["It rains in Bonn."]
    assert state["messages"][-1].text == "Rain in Bonn."
    assert '"place": "Bonn"' in scripted_backend(model).prompt


def test_a_message_may_be_removed(saver: Any) -> None:
    model = qwen("First.", "Second.")
    agent = agent_of(model, [weather], checkpointer=saver)
    state = agent.invoke(again("Forget me."), ONE)
    agent.update_state(ONE, {"messages": [RemoveMessage(id=message.id) for message in state["messages"]]})
    assert kinds(agent.invoke(again("x"), ONE)["messages"]) == ["human", "ai"]
    assert "Forget me." not in scripted_backend(model).prompt


def test_a_failed_step_is_tried_again(saver: Any) -> None:
    """The thread stays at the step before, and goes on from there."""
    failures = [OSError("The sensor is away.")]

    @tool
    def sensor() -> str:
        """Read the sensor."""
        if failures:
            raise failures.pop()
        return "7 degrees"

    model = qwen(call("sensor"), "Seven.")
    agent = agent_of(model, [sensor], checkpointer=saver)
    with pytest.raises(OSError, match="away"):
        agent.invoke(QUESTION, ONE)
    state = agent.invoke(None, ONE)
    assert results(state["messages"]) == ["7 degrees"]
    assert len(scripted_backend(model).requests) == 2


def test_the_thread_of_another_model(saver: Any) -> None:
    """Ids, names and blocks as another provider's model writes them."""
    asked = AIMessage(
        [
            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_01", "name": "weather", "input": {"place": "Ulm"}},
        ],
        tool_calls=[{"name": "weather", "args": {"place": "Ulm"}, "id": "toolu_01"}],
        response_metadata={"model_provider": "anthropic"},
    )
    model = qwen("Rain.", "Yes.")
    agent = agent_of(model, [weather], checkpointer=saver)
    agent.update_state(ONE, {"messages": [HumanMessage("Ulm?"), asked]}, as_node="model")
    state = agent.invoke(None, ONE)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]
    assert "I look." in scripted_backend(model).prompt
    assert "Hm." not in scripted_backend(model).prompt
    assert agent.invoke(again("Sure?"), ONE)["messages"][-1].text == "Yes."


async def test_threads_for_an_event_loop(path: Path) -> None:
    aio = pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    async with aio.AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        agent = agent_of(qwen(call("weather", place="Ulm"), "Rain.", "Yes."), [weather], checkpointer=saver)
        async for _ in agent.astream(QUESTION, ONE, stream_mode="messages"):
            pass
        state = await agent.ainvoke(again("Sure?"), ONE)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai", "human", "ai"]


def test_streams_leave_the_same_thread(saver: Any) -> None:
    def agent() -> Any:
        return agent_of(
            qwen("I look. " + call("weather", place="Ulm"), "Rain.", width=7), [weather], checkpointer=saver
        )

    agent().invoke(QUESTION, ONE)
    for _ in agent().stream(QUESTION, TWO, stream_mode="messages"):
        pass
    kept = [agent().get_state(thread).values["messages"] for thread in (ONE, TWO)]
    assert shapes(kept[0]) == shapes(kept[1])
    assert all(type(message).__name__ in ("HumanMessage", "AIMessage", "ToolMessage") for message in kept[1])
    assert [shape(message) for message in kept[0]] == shapes(kept[0])


def test_nothing_of_the_engine_is_in_the_database(saver: Any, path: Path) -> None:
    """Only what LangChain's own serializer knows, so that a process without this package can read it."""
    agent = agent_of(qwen(call("weather", place="Ulm"), "Rain.", width=7), [weather], checkpointer=saver)
    for _ in agent.stream(QUESTION, ONE, stream_mode="messages"):
        pass
    with sqlite3.connect(path) as connection:
        rows = [
            *connection.execute("select checkpoint from checkpoints"),
            *connection.execute("select value from writes"),
        ]
    assert rows
    assert not any(b"langchain_specdec" in row[0] for row in rows)
