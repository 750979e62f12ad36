"""A person decides about calls: the thread waits in a checkpoint, and goes on with a command."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from tests.support.backends import scripted_backend
from tests.support.chat_templates import TEMPLATES
from tests.support.langchain_versions import needs
from tests.support.scripted_agents import QUESTION, agent_of, call, kinds, qwen, results
from tests.support.tools import weather

THREAD: Any = {"configurable": {"thread_id": "1"}}
EDITED = {"type": "edit", "edited_action": {"name": "weather", "args": {"place": "Bonn"}}}


@pytest.mark.parametrize(
    ("decision", "result", "status"),
    [
        ({"type": "approve"}, "It rains in Ulm.", "success"),
        (EDITED, "It rains in Bonn.", "success"),
        ({"type": "reject", "message": "Ask no more."}, "Ask no more.", "error"),
        ({"type": "respond", "message": "Look outside."}, "Look outside.", "success"),
    ],
    ids=["approve", "edit", "reject", "respond"],
)
@needs("langchain", "1.5", "interrupts for each call, and answers in place of one")
@pytest.mark.parametrize("mode", ["batched", "per_call"])
def test_a_decision(decision: Any, result: str, status: str, mode: Any) -> None:
    model = qwen(call("weather", place="Ulm"), "Done.")
    human = HumanInTheLoopMiddleware({"weather": True}, interrupt_mode=mode)
    agent = agent_of(model, [weather], middleware=[human], checkpointer=InMemorySaver())
    waiting = agent.invoke(QUESTION, THREAD)
    assert len(waiting["__interrupt__"]) == 1
    assert agent.get_state(THREAD).next
    assert len(scripted_backend(model).requests) == 1
    resume = {"decisions": [decision]} if mode == "batched" else decision
    state = agent.invoke(Command(resume=resume), THREAD)
    answers = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    assert [message.status for message in answers] == [status]
    assert result in answers[0].text
    assert result in scripted_backend(model).prompt
    assert state["messages"][-1].text == "Done."
    assert len(scripted_backend(model).requests) == 2


def test_two_calls_and_two_decisions() -> None:
    model = qwen("\n".join(call("weather", place=place) for place in ("Ulm", "Kiel")), "Done.")
    human = HumanInTheLoopMiddleware({"weather": True})
    agent = agent_of(model, [weather], middleware=[human], checkpointer=InMemorySaver())
    (waiting,) = agent.invoke(QUESTION, THREAD)["__interrupt__"]
    assert [action["args"] for action in waiting.value["action_requests"]] == [{"place": "Ulm"}, {"place": "Kiel"}]
    state = agent.invoke(Command(resume={"decisions": [EDITED, {"type": "reject"}]}), THREAD)
    assert sorted(m.status for m in state["messages"] if isinstance(m, ToolMessage)) == ["error", "success"]
    assert "It rains in Bonn." in scripted_backend(model).prompt
    assert state["messages"][-1].text == "Done."


async def test_decisions_for_an_event_loop() -> None:
    model = qwen(call("weather", place="Ulm"), "Done.")
    human = HumanInTheLoopMiddleware({"weather": {"allowed_decisions": ["approve"]}})
    agent = agent_of(model, [weather], middleware=[human], checkpointer=InMemorySaver())
    assert "__interrupt__" in await agent.ainvoke(QUESTION, THREAD)
    state = await agent.ainvoke(Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]


@pytest.mark.parametrize("family", ["chatml", "qwen"])
def test_a_tool_asks_by_itself(family: str) -> None:
    @tool
    def ask(question: str) -> str:
        """Ask the user."""
        return str(interrupt(question))

    model = qwen(call("ask", question="Which town?"), "Ulm it is.", chat_template=TEMPLATES[family])
    agent = agent_of(model, [ask], checkpointer=InMemorySaver())
    chunks = list(agent.stream(QUESTION, THREAD, stream_mode="updates"))
    assert chunks[-1]["__interrupt__"][0].value == "Which town?"
    chunks = list(agent.stream(Command(resume="Ulm"), THREAD, stream_mode="updates"))
    assert [list(chunk) for chunk in chunks] == [["tools"], ["model"]]
    assert results(agent.get_state(THREAD).values["messages"]) == ["Ulm"]
    assert chunks[-1]["model"]["messages"][0].text == "Ulm it is."
