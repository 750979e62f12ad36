"""Agents that hand over to each other: supervisors, swarms, and agents that begin others."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState
from langgraph.managed import RemainingSteps
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative
from tests.support.backends import ScriptedBackend, scripted_backend
from tests.support.chat_templates import CHATML, LLAMA, MISTRAL, QWEN
from tests.support.scripted_agents import QUESTION, agent_of, call, forced_call, kinds, qwen, results
from tests.support.tools import add, weather

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved", "ignore:.*AgentState.*deprecated")

THREAD: Any = {"configurable": {"thread_id": "1"}}


@pytest.fixture
def supervisor() -> Any:
    return pytest.importorskip("langgraph_supervisor")


def helpers() -> list[Any]:
    """Two agents, each with a tool and a model of its own."""
    meteorologist = agent_of(qwen(call("weather", place="Ulm"), "Rain in Ulm."), [weather], name="meteorologist")
    accountant = agent_of(qwen(call("add", a=1, b=2), "Three."), [add], name="accountant")
    return [meteorologist, accountant]


def handoff(name: str, template: str = QWEN) -> str:
    plain = forced_call(f"transfer_to_{name}")
    if template is LLAMA:
        return plain.replace("arguments", "parameters")
    return f"[TOOL_CALLS][{plain}]" if template is MISTRAL else f"<tool_call>\n{plain}\n</tool_call>"


@pytest.mark.parametrize("mode", ["last_message", "full_history"])
@pytest.mark.parametrize("template", [QWEN, CHATML, LLAMA, MISTRAL], ids=["qwen", "chatml", "llama", "mistral"])
def test_a_supervisor(supervisor: Any, mode: str, template: str) -> None:
    model = qwen(
        handoff("meteorologist", template), handoff("accountant", template), "Rain and three.", chat_template=template
    )
    graph = supervisor.create_supervisor(helpers(), model=model, prompt="You lead.", output_mode=mode).compile()
    messages = graph.invoke(QUESTION)["messages"]
    assert messages[-1].text == "Rain and three."
    assert "Rain in Ulm." in [message.text for message in messages]
    prompt = scripted_backend(model).prompt
    assert "Rain in Ulm." in prompt
    assert "Three." in prompt
    assert ("It rains in Ulm." in prompt) == (mode == "full_history")


def test_names_of_agents_stand_in_the_prompt(supervisor: Any) -> None:
    model = qwen(handoff("meteorologist"), "<name>supervisor</name><content>Rain.</content>")
    graph = supervisor.create_supervisor(helpers(), model=model, include_agent_name="inline").compile()
    assert graph.invoke(QUESTION)["messages"][-1].text == "Rain."
    assert "<name>meteorologist</name><content>Rain in Ulm.</content>" in scripted_backend(model).prompt


def test_a_supervisor_ends_with_an_object(supervisor: Any) -> None:
    class Report(BaseModel):
        """A report."""

        wet: bool

    class State(MessagesState):
        remaining_steps: RemainingSteps
        structured_response: Any

    model = qwen(handoff("meteorologist"), "Rain.", '{"wet": true}')
    graph = supervisor.create_supervisor(helpers(), model=model, response_format=Report, state_schema=State).compile()
    assert graph.invoke(QUESTION)["structured_response"] == Report(wet=True)


def test_a_supervisor_hands_over_to_one_at_a_time(supervisor: Any) -> None:
    """It asks for that only where `bind_tools` names the parameter."""
    model = qwen(handoff("meteorologist") + "\n" + handoff("accountant"), "Rain.")
    graph = supervisor.create_supervisor(helpers(), model=model).compile()
    messages = graph.invoke(QUESTION)["messages"]
    first = next(message for message in messages if isinstance(message, AIMessage))
    assert [asked["name"] for asked in first.tool_calls] == ["transfer_to_meteorologist"]
    assert messages[-1].text == "Rain."


def test_a_supervisor_keeps_its_thread(supervisor: Any) -> None:
    model = qwen(handoff("meteorologist"), "Rain.", "As I said, rain.")
    graph = supervisor.create_supervisor(helpers(), model=model).compile(checkpointer=InMemorySaver())
    graph.invoke(QUESTION, THREAD)
    assert graph.invoke({"messages": [("human", "What?")]}, THREAD)["messages"][-1].text == "As I said, rain."
    assert scripted_backend(model).prompt.count("Rain in Ulm.") == 1


def test_a_swarm() -> None:
    swarm = pytest.importorskip("langgraph_swarm")
    to_bob, to_alice = (swarm.create_handoff_tool(agent_name=name) for name in ("Bob", "Alice"))
    first = qwen(call("transfer_to_bob"), "Alice again.")
    second = qwen(call("weather", place="Ulm"), "Rain, says Bob.", call("transfer_to_alice"))
    alice = agent_of(first, [add, to_bob], name="Alice")
    bob = agent_of(second, [weather, to_alice], name="Bob")
    graph = swarm.create_swarm([alice, bob], default_active_agent="Alice").compile(checkpointer=InMemorySaver())
    state = graph.invoke(QUESTION, THREAD)
    assert (state["active_agent"], state["messages"][-1].text) == ("Bob", "Rain, says Bob.")
    # The thread goes on with whom it was.
    state = graph.invoke({"messages": [("human", "And you, Alice?")]}, THREAD)
    assert (state["active_agent"], state["messages"][-1].text) == ("Alice", "Alice again.")
    assert "It rains in Ulm." in scripted_backend(first).prompt


def test_an_agent_as_a_tool() -> None:
    inner = agent_of(qwen(call("weather", place="Ulm"), "Rain in Ulm."), [weather])

    @tool
    def ask_meteorologist(question: str) -> str:
        """Ask someone who knows the weather."""
        return str(inner.invoke({"messages": [("human", question)]})["messages"][-1].text)

    model = qwen(call("ask_meteorologist", question="Ulm?"), "Rain.")
    state = agent_of(model, [ask_meteorologist]).invoke(QUESTION)
    assert results(state["messages"]) == ["Rain in Ulm."]


def test_one_model_serves_all_agents(supervisor: Any) -> None:
    model = qwen(handoff("meteorologist"), call("weather", place="Ulm"), "Rain in Ulm.", "Rain.")
    meteorologist = agent_of(model, [weather], name="meteorologist")
    graph = supervisor.create_supervisor([meteorologist], model=model).compile()
    assert graph.invoke(QUESTION)["messages"][-1].text == "Rain."
    assert len(scripted_backend(model).requests) == 4


@pytest.fixture
def deepagents() -> Any:
    return pytest.importorskip("deepagents")


def roomy(*answers: str) -> ChatSpeculative:
    """Prompts of deep agents are long, and the tokenizer of scripts has a token for each byte."""
    backend = ScriptedBackend(*answers, template=QWEN)
    backend.max_length = 200_000
    return ChatSpeculative(backend=backend, max_new_tokens=512)


def test_a_deep_agent_writes_and_reads_files(deepagents: Any) -> None:
    model = roomy(
        call("weather", place="Ulm"),
        call("write_file", file_path="/notes.txt", content="Rain in Ulm."),
        call("read_file", file_path="/notes.txt"),
        "Rain.",
    )
    agent = deepagents.create_deep_agent(model=model, tools=[weather], system_prompt="Be brief.")
    state = agent.invoke(QUESTION)
    assert state["messages"][-1].text == "Rain."
    assert "/notes.txt" in state["files"]
    assert "Rain in Ulm." in results(state["messages"])[-1]


def test_a_deep_agent_begins_another(deepagents: Any) -> None:
    model = roomy(
        call("task", description="Look at Ulm.", subagent_type="meteorologist"),
        call("weather", place="Ulm"),
        "Rain in Ulm.",
        "Rain.",
    )
    helper = {
        "name": "meteorologist",
        "description": "Knows the weather.",
        "system_prompt": "You look out.",
        "tools": [weather],
    }
    state = deepagents.create_deep_agent(model=model, tools=[add], subagents=[helper]).invoke(QUESTION)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]
    assert results(state["messages"]) == ["Rain in Ulm."]


def test_each_tool_of_a_deep_agent_can_be_forced(deepagents: Any) -> None:
    tools = deepagents.create_deep_agent(model=roomy("x")).nodes["tools"].bound.tools_by_name
    assert len(tools) > 5
    for name in tools:
        model = roomy("x")
        model.bind_tools(list(tools.values()), tool_choice=name).invoke("x")
        assert scripted_backend(model).requests[0].params.grammar is not None
