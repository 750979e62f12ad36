"""Tools of a server by the Model Context Protocol, over the standard streams of a process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import scripted_backend
from tests.support.scripted_agents import QUESTION, agent_of, call, forced_call, kinds, qwen

pytest.importorskip("langchain_mcp_adapters")
pytestmark = pytest.mark.process

SERVER = Path(__file__).resolve().parents[2] / "support/mcp_server.py"


@pytest.fixture
async def client() -> Any:
    from langchain_mcp_adapters.client import MultiServerMCPClient

    place = {"transport": "stdio", "command": sys.executable, "args": [str(SERVER)]}
    return MultiServerMCPClient({"weather": place})  # type: ignore[dict-item]


async def test_an_agent_calls_tools_of_a_server(client: Any) -> None:
    tools = {tool.name: tool for tool in await client.get_tools()}
    model = qwen(
        call("weather", place="Ulm", days=2, units=["mm", "inches"]), call("fail"), "Rain, and the station is closed."
    )
    state = await agent_of(model, [tools["weather"], tools["fail"]]).ainvoke(QUESTION)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai", "tool", "ai"]
    prompt = scripted_backend(model).prompt
    assert "It rains in Ulm for 2 days. In mm. In inches." in prompt
    assert "The station is closed." in prompt


async def test_calls_of_all_tools_can_be_forced(client: Any) -> None:
    """Whatever schemas the server has."""
    tools = await client.get_tools()
    for name in ("any", "weather", "notes", "fail"):
        model = qwen(
            forced_call(
                "weather" if name == "any" else name, **({"place": "Ulm"} if name in ("any", "weather") else {})
            )
        )
        reply = model.bind_tools(tools, tool_choice=name).invoke("x")
        assert [asked["name"] for asked in reply.tool_calls] == ["weather" if name == "any" else name]


async def test_results_of_several_kinds(client: Any) -> None:
    tools = [tool for tool in await client.get_tools() if tool.name == "notes"]
    model = qwen(call("notes"), "Wet.", "Yes.")
    agent = agent_of(model, tools)
    state = await agent.ainvoke(QUESTION)
    assert state["messages"][-1].text == "Wet."
    prompt = scripted_backend(model).prompt
    for part in ("Two notes.", "Rain is wet.", "https://example.org/notes.txt"):
        assert part in prompt
    # The thread goes on.
    state = await agent.ainvoke({"messages": [*state["messages"], ("human", "Sure?")]})
    assert state["messages"][-1].text == "Yes."


async def test_prompts_of_a_server(client: Any) -> None:
    messages = await client.get_prompt("weather", "question", arguments={"place": "Ulm"})
    model = qwen("Rain.")
    assert model.invoke(messages).text == "Rain."
    assert "How is the weather in Ulm?" in scripted_backend(model).prompt
