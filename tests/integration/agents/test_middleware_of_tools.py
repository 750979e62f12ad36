"""Middleware around the tools of an agent: limits, retries, errors, emulation, files, a shell, plans, private data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain.agents import middleware
from langchain.agents.middleware import (
    AgentMiddleware,
    FilesystemFileSearchMiddleware,
    HostExecutionPolicy,
    LLMToolEmulator,
    PIIDetectionError,
    PIIMiddleware,
    ShellToolMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolErrorMiddleware,
    ToolRetryMiddleware,
)
from langchain.agents.middleware.tool_call_limit import ToolCallLimitExceededError
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from tests.support.backends import scripted_backend
from tests.support.scripted_agents import QUESTION, agent_of, call, kinds, qwen, results
from tests.support.tools import add, weather

THREAD: Any = {"configurable": {"thread_id": "1"}}
ULM, BONN = call("weather", place="Ulm"), call("weather", place="Bonn")


def test_no_middleware_is_forgotten() -> None:
    """Whatever LangChain installs is tried in this folder."""
    names = [
        name
        for name in middleware.__all__
        if isinstance(value := getattr(middleware, name), type) and issubclass(value, AgentMiddleware)
    ]
    assert len(names) >= 16
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in names if name != "AgentMiddleware" and f"{name}(" not in tests] == []


def test_calls_of_tools_are_counted() -> None:
    model = qwen(f"{ULM}\n{BONN}", call("add", a=1, b=2), "Done.")
    limit = ToolCallLimitMiddleware(tool_name="weather", run_limit=1)
    state = agent_of(model, [weather, add], middleware=[limit]).invoke(QUESTION)
    assert sorted(message.status for message in state["messages"] if isinstance(message, ToolMessage)) == [
        "error",
        "success",
        "success",
    ]
    assert state["messages"][-1].text == "Done."
    # The model reads that a call was one too many.
    assert "limit" in scripted_backend(model).prompts[1]
    ends = ToolCallLimitMiddleware(run_limit=1, exit_behavior="end")
    state = agent_of(qwen(ULM), [weather], middleware=[ends]).invoke(QUESTION)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai", "tool", "ai"]
    raises = ToolCallLimitMiddleware(thread_limit=1, exit_behavior="error")
    with pytest.raises(ToolCallLimitExceededError):
        agent_of(qwen(ULM), [weather], middleware=[raises], checkpointer=InMemorySaver()).invoke(QUESTION, THREAD)


def flaky(*failures: Exception) -> Any:
    """A tool that fails so many times."""
    left = list(failures)

    @tool("flaky")
    def run(place: str) -> str:
        """Sometimes fails."""
        if left:
            raise left.pop(0)
        return f"Sun in {place}."

    return run


def test_a_tool_is_tried_again() -> None:
    asked = call("flaky", place="Ulm")
    quick: dict[str, Any] = {"initial_delay": 0.0, "jitter": False}
    retry = ToolRetryMiddleware(max_retries=2, **quick)
    agent = agent_of(qwen(asked, "x"), [flaky(OSError("no"), OSError("no"))], middleware=[retry])
    assert results(agent.invoke(QUESTION)["messages"]) == ["Sun in Ulm."]
    model = qwen(asked, "Sorry.")
    state = agent_of(model, [flaky(*[OSError("no")] * 3)], middleware=[retry]).invoke(QUESTION)
    assert state["messages"][-1].text == "Sorry."
    assert "failed after 3 attempts" in scripted_backend(model).prompt


def test_an_error_of_a_tool_is_told_to_the_model() -> None:
    errors = ToolErrorMiddleware(
        lambda error, _: f"{type(error).__name__} here" if isinstance(error, OSError) else None
    )
    model = qwen(call("flaky", place="Ulm"), "Sorry.")
    state = agent_of(model, [flaky(OSError("no"))], middleware=[errors]).invoke(QUESTION)
    assert state["messages"][2].status == "error"
    assert "OSError here" in scripted_backend(model).prompt
    with pytest.raises(KeyError):
        agent_of(qwen(call("flaky", place="Ulm")), [flaky(KeyError("x"))], middleware=[errors]).invoke(QUESTION)


def test_arguments_that_do_not_fit_are_told_to_the_model() -> None:
    model = qwen(call("weather", town="Ulm"), ULM, "Rain.")
    state = agent_of(model, [weather]).invoke(QUESTION)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai", "tool", "ai"]
    assert [message.status for message in state["messages"] if isinstance(message, ToolMessage)] == ["error", "success"]


def test_the_model_is_told_of_a_tool_that_does_not_exist() -> None:
    model = qwen(call("snow", place="Ulm"), "Sorry.")
    state = agent_of(model, [weather]).invoke(QUESTION)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]
    assert "snow is not a valid tool" in scripted_backend(model).prompt


def test_a_model_plays_a_tool() -> None:
    model = qwen(ULM, "Snow, in July.", "Snow.")
    state = agent_of(model, [weather], middleware=[LLMToolEmulator(model=model)]).invoke(QUESTION)
    assert results(state["messages"]) == ["Snow, in July."]
    assert state["messages"][-1].text == "Snow."
    # By output_version="v1" an answer's content is a list of blocks; it comes back as a result.
    model = qwen(ULM, "Snow, in July.", "Snow.", output_version="v1")
    agent_of(model, [weather], middleware=[LLMToolEmulator(model=model, tools=["weather"])]).invoke(QUESTION)
    assert "<tool_response>\nSnow, in July.\n</tool_response>" in scripted_backend(model).prompt


def test_a_plan_is_kept() -> None:
    plan = [{"content": "look", "status": "in_progress"}]
    model = qwen(call("write_todos", todos=plan), ULM, "Rain.")
    agent = agent_of(model, [weather], system_prompt="Be brief.", middleware=[TodoListMiddleware()])
    state = agent.invoke(QUESTION)
    assert state["todos"] == plan
    assert state["messages"][-1].text == "Rain."
    assert "Be brief." in scripted_backend(model).prompt
    assert "write_todos" in scripted_backend(model).prompt
    twice = qwen(f"{call('write_todos', todos=plan)}\n{call('write_todos', todos=plan)}", "Sorry.")
    state = agent_of(twice, [weather], middleware=[TodoListMiddleware()]).invoke(QUESTION)
    assert [message.status for message in state["messages"] if isinstance(message, ToolMessage)] == ["error", "error"]
    assert state["messages"][-1].text == "Sorry."


def test_a_plan_can_be_forced() -> None:
    """Its schema, with an enum inside of a list of objects, is one that the grammar follows."""
    model = qwen("x").bind_tools(TodoListMiddleware().tools, tool_choice="write_todos")
    model.invoke("Plan.")
    grammar = scripted_backend(model).requests[0].params.grammar
    assert grammar is not None
    assert grammar.schema is not None or grammar.regex is not None


def test_files_are_searched(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The lamp is lit.\n")
    (tmp_path / "b.md").write_text("No light.\n")
    model = qwen(
        call("glob_search", pattern="*.txt"), call("grep_search", pattern="lamp", output_mode="content"), "In a.txt."
    )
    files = FilesystemFileSearchMiddleware(root_path=str(tmp_path), use_ripgrep=False)
    state = agent_of(model, [], middleware=[files]).invoke(QUESTION)
    assert results(state["messages"]) == ["/a.txt", "/a.txt:1:The lamp is lit."]
    assert "/a.txt:1:The lamp is lit." in scripted_backend(model).prompt


@pytest.mark.process
def test_a_shell_keeps_its_session(tmp_path: Path) -> None:
    model = qwen(call("shell", command="X=lamp"), call("shell", command="echo $X"), "A lamp.")
    shell = ShellToolMiddleware(tmp_path, execution_policy=HostExecutionPolicy(command_timeout=20))
    state = agent_of(model, [], middleware=[shell]).invoke(QUESTION)
    assert "lamp" in results(state["messages"])[1]
    assert "lamp" in scripted_backend(model).prompt


def test_private_data_is_hidden_from_the_model() -> None:
    @tool
    def contact(name: str) -> str:
        """The address of someone."""
        return f"{name}: mary@example.org"

    question = {"messages": [("human", "I am john@example.org. Whom do I ask?")]}
    model = qwen(call("contact", name="Mary"), "Ask mary@example.org at 192.168.0.1.")
    hiding = [
        PIIMiddleware("email", apply_to_output=True, apply_to_tool_results=True),
        PIIMiddleware("ip", strategy="mask", apply_to_output=True),
    ]
    state = agent_of(model, [contact], middleware=hiding).invoke(question)
    assert "@example.org" not in scripted_backend(model).prompt
    assert state["messages"][-1].text.startswith("Ask [REDACTED_EMAIL] at")
    assert "192.168" not in state["messages"][-1].text
    with pytest.raises(PIIDetectionError):
        agent_of(qwen("x"), [contact], middleware=[PIIMiddleware("email", strategy="block")]).invoke(question)


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
@pytest.mark.parametrize("width", [1, 3, 1000])
def test_private_data_is_hidden_in_streams(width: int) -> None:
    """By version 3 of events, in which a middleware sees an answer piece by piece."""
    model = qwen("Ask mary@example.org, please.", width=width)
    agent = agent_of(model, [weather], middleware=[PIIMiddleware("email", apply_to_output=True)])
    run = agent.stream_events(QUESTION, version="v3")
    texts = ["".join(message.text) for message in run.messages]
    assert texts == ["Ask [REDACTED_EMAIL], please."]
