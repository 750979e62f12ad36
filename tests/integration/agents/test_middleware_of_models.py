"""Middleware around the calls of the model: summaries, limits, retries, fallbacks, selections, edits of the context."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents.middleware import (
    AgentMiddleware,
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    ProviderToolSearchMiddleware,
    SummarizationMiddleware,
    before_model,
    dynamic_prompt,
    wrap_model_call,
)
from langchain.agents.middleware.model_call_limit import ModelCallLimitExceededError
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative
from langchain_specdec.errors import CompletionTimeoutError, PromptTooLongError
from tests.support.backends import ScriptedBackend, scripted_backend
from tests.support.chat_templates import QWEN
from tests.support.scripted_agents import QUESTION, agent_of, call, forced_call, kinds, qwen, results
from tests.support.tools import add, weather

THREAD: Any = {"configurable": {"thread_id": "1"}}


class FailingBackend(ScriptedBackend):
    """Its first calls fail."""

    failures: list[Exception]

    def start(self, requests: Any) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        return super().start(requests)


def failing(*answers: str, failures: list[Exception]) -> Any:
    backend = FailingBackend(*answers, template=QWEN)
    backend.failures = failures
    return ChatSpeculative(backend=backend)


def talk(prompt: str) -> str:
    """Summaries are asked for in other words than answers."""
    return "They spoke of lamps." if "context" in prompt.lower() and "extract" in prompt.lower() else "Yes, a lamp."


@pytest.mark.parametrize(
    ("trigger", "keep"),
    [
        (("tokens", 120), ("messages", 2)),
        (("messages", 5), ("messages", 1)),
        (("fraction", 0.05), ("fraction", 0.02)),
        ({"tokens": 50, "messages": 3}, ("tokens", 40)),
    ],
    ids=str,
)
@pytest.mark.parametrize("counter", ["approximate", "of the model"])
def test_a_long_thread_is_summarized(trigger: Any, keep: Any, counter: str) -> None:
    model = qwen(talk)
    options: dict[str, Any] = {} if counter == "approximate" else {"token_counter": model.get_num_tokens_from_messages}
    middleware = SummarizationMiddleware(model, trigger=trigger, keep=keep, **options)
    agent = agent_of(model, [weather], middleware=[middleware], checkpointer=InMemorySaver())
    sizes = []
    for turn in range(12):
        state = agent.invoke({"messages": [("human", f"Question {turn}: is this a lamp? " + "And this? " * 5)]}, THREAD)
        assert state["messages"][-1].text == "Yes, a lamp."
        sizes.append(len(state["messages"]))
    assert max(sizes) < 24
    assert "They spoke of lamps." in scripted_backend(model).prompt
    assert "Question 0" not in scripted_backend(model).prompt


def test_what_is_summarized_may_hold_calls_and_results() -> None:
    model: Any = qwen(call("weather", place="Ulm"), "Rain.", "They spoke of rain in Ulm.", "No.")
    middleware = SummarizationMiddleware(
        model, trigger=("messages", 5), keep=("messages", 1), token_counter=model.get_num_tokens_from_messages
    )
    agent = agent_of(model, [weather], middleware=[middleware], checkpointer=InMemorySaver())
    agent.invoke(QUESTION, THREAD)
    state = agent.invoke({"messages": [("human", "And snow?")]}, THREAD)
    assert kinds(state["messages"]) == ["human", "human", "ai"]
    assert "It rains in Ulm." in scripted_backend(model).prompts[2]
    assert "They spoke of rain in Ulm." in scripted_backend(model).prompt


def test_old_results_are_cleared_from_the_prompt_only() -> None:
    for method in ("approximate", "model"):
        calls = [call("weather", place=place) for place in ("Ulm", "Bonn", "Kiel")]
        model = qwen(*calls, "Rain everywhere.")
        edit = ClearToolUsesEdit(trigger=10, keep=1, placeholder="(gone)", clear_tool_inputs=True)
        middleware = ContextEditingMiddleware(edits=[edit], token_count_method=method)
        state = agent_of(model, [weather], system_prompt="Be brief.", middleware=[middleware]).invoke(QUESTION)
        assert results(state["messages"]) == ["It rains in Ulm.", "It rains in Bonn.", "It rains in Kiel."]
        prompt = scripted_backend(model).prompt
        assert prompt.count("(gone)") == 2
        assert "It rains in Kiel." in prompt
        assert "It rains in Ulm." not in prompt


def test_calls_of_the_model_are_counted() -> None:
    model = qwen(call("weather", place="Ulm"))
    ends = ModelCallLimitMiddleware(run_limit=2, thread_limit=3)
    agent = agent_of(model, [weather], middleware=[ends], checkpointer=InMemorySaver())
    first = agent.invoke(QUESTION, THREAD)["messages"]
    assert kinds(first) == ["human", "ai", "tool", "ai", "tool", "ai"]
    assert "limit" in first[-1].text
    second = agent.invoke({"messages": [("human", "Again?")]}, THREAD)["messages"]
    assert kinds(second)[6:] == ["human", "ai", "tool", "ai"]
    raises = ModelCallLimitMiddleware(run_limit=1, exit_behavior="error")
    with pytest.raises(ModelCallLimitExceededError):
        agent_of(model, [weather], middleware=[raises]).invoke(QUESTION)


def test_the_next_model_answers_where_one_fails() -> None:
    failures: list[Exception] = [CompletionTimeoutError("late"), CompletionTimeoutError("late")]
    model, second, third = (
        failing("x", failures=failures),
        failing("x", failures=[PromptTooLongError("long")]),
        qwen("Sun."),
    )
    agent = agent_of(model, [weather], middleware=[ModelFallbackMiddleware(second, third)])
    assert agent.invoke(QUESTION)["messages"][-1].text == "Sun."


def test_the_next_model_goes_on_with_the_thread_of_the_first() -> None:
    def late(prompt: str) -> str:
        raise CompletionTimeoutError(f"late after {len(prompt)} characters")

    model, last = qwen(call("weather", place="Ulm"), late), qwen("Rain.")
    state = agent_of(model, [weather], middleware=[ModelFallbackMiddleware(last)]).invoke(QUESTION)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]
    assert "It rains in Ulm." in scripted_backend(last).prompt


def test_a_call_of_the_model_is_tried_again() -> None:
    quick: dict[str, Any] = {"initial_delay": 0.0, "jitter": False}
    model = failing("Sun.", failures=[CompletionTimeoutError("late")] * 2)
    agent = agent_of(model, [weather], middleware=[ModelRetryMiddleware(max_retries=2, **quick)])
    assert agent.invoke(QUESTION)["messages"][-1].text == "Sun."
    model = failing("Sun.", failures=[CompletionTimeoutError("late")] * 9)
    middleware = ModelRetryMiddleware(max_retries=1, on_failure="error", retry_on=(CompletionTimeoutError,), **quick)
    with pytest.raises(CompletionTimeoutError):
        agent_of(model, [weather], middleware=[middleware]).invoke(QUESTION)
    assert len(model.backend.failures) == 7
    middleware = ModelRetryMiddleware(max_retries=0, on_failure="continue", **quick)
    state = agent_of(model, [weather], middleware=[middleware]).invoke(QUESTION)
    assert "late" in state["messages"][-1].text


def test_the_model_selects_tools() -> None:
    model = qwen(json.dumps({"tools": ["weather"]}), call("weather", place="Ulm"), json.dumps({"tools": []}), "Rain.")
    middleware = LLMToolSelectorMiddleware(max_tools=1, always_include=["add"])
    state = agent_of(model, [weather, add, _unused], middleware=[middleware]).invoke(QUESTION)
    assert results(state["messages"]) == ["It rains in Ulm."]
    select, answer, _, last = scripted_backend(model).prompts
    assert '"const": "weather", "description": "The weather of a place."' in select
    assert '"name": "weather"' in answer
    assert "_unused" not in answer
    assert '"name": "weather", "description"' not in last
    # The selection is decoded under a grammar that knows the names of tools.
    grammar = scripted_backend(model).requests[0].params.grammar
    assert grammar is not None
    assert "weather" in json.dumps(grammar.schema)
    assert scripted_backend(model).requests[1].params.grammar is None


def _unused(x: int) -> int:
    """Never called."""
    return x


def test_tool_search_of_a_provider_passes_on_where_no_tool_is_deferred() -> None:
    model = qwen(call("weather", place="Ulm"), "Rain.")
    agent = agent_of(model, [weather], middleware=[ProviderToolSearchMiddleware()])
    assert results(agent.invoke(QUESTION)["messages"]) == ["It rains in Ulm."]
    deferred = agent_of(model, [weather], middleware=[ProviderToolSearchMiddleware(searchable_tools=["weather"])])
    with pytest.raises(ValueError, match="provider"):
        deferred.invoke(QUESTION)


class Report(BaseModel):
    """A report."""

    wet: bool


def overriding(**changes: Any) -> AgentMiddleware[Any, Any]:
    """A middleware that changes each request."""

    @wrap_model_call
    def override(request: Any, handler: Callable[[Any], Any]) -> Any:
        return handler(request.override(**changes))

    return override


def test_a_middleware_may_take_another_model() -> None:
    model, other = qwen("x"), qwen(call("weather", place="Ulm"), "Rain.")
    state = agent_of(model, [weather], middleware=[overriding(model=other)]).invoke(QUESTION)
    assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]
    assert scripted_backend(model).requests == []


def test_a_middleware_may_leave_tools_out() -> None:
    model = qwen(call("weather", place="Ulm"))
    state = agent_of(model, [weather, add], middleware=[overriding(tools=[])]).invoke(QUESTION)
    # Without tools all is text.
    assert state["messages"][-1].text == call("weather", place="Ulm")
    assert "# Tools" not in scripted_backend(model).prompt


def test_a_middleware_may_force_and_forbid_calls() -> None:
    model = qwen(forced_call("add", a=1, b=2))
    agent = agent_of(model, [weather, add], middleware=[overriding(tool_choice="add")])
    states = agent.stream(QUESTION, {"recursion_limit": 5}, stream_mode="values")
    messages = [next(states), next(states), next(states)][-1]["messages"]
    assert results(messages) == ["3"]
    model = qwen("Rain.")
    state = agent_of(model, [weather, add], middleware=[overriding(tool_choice="none")]).invoke(QUESTION)
    assert state["messages"][-1].tool_calls == []


def test_a_middleware_may_set_the_format_and_settings_of_the_model() -> None:
    model = qwen('{"wet": true}')
    changes = {"response_format": ProviderStrategy(Report), "model_settings": {"temperature": 0.5, "max_tokens": 40}}
    state = agent_of(model, [weather], middleware=[overriding(**changes)]).invoke(QUESTION)
    assert state["structured_response"] == Report(wet=True)
    params = scripted_backend(model).requests[0].params
    assert (params.temperature, params.max_new_tokens) == (0.5, 40)
    assert params.grammar is not None


def test_a_middleware_may_write_the_system_prompt_and_answer_itself() -> None:
    @dynamic_prompt
    def prompt(request: Any) -> str:
        return f"There are {len(request.messages)} messages."

    @before_model(can_jump_to=["end"])
    def stop(state: Any, runtime: Any) -> Any:
        del runtime
        return {"messages": [AIMessage("Enough.")], "jump_to": "end"} if len(state["messages"]) > 2 else None

    model = qwen(call("weather", place="Ulm"), "x")
    state = agent_of(model, [weather], middleware=[prompt, stop]).invoke(QUESTION)
    assert state["messages"][-1].text == "Enough."
    assert [text.count("There are 1 messages.") for text in scripted_backend(model).prompts] == [1]


def test_a_middleware_may_change_the_messages() -> None:
    model = qwen("Rain.")
    agent = agent_of(model, [weather], middleware=[overriding(messages=[HumanMessage("Another question")])])
    assert agent.invoke(QUESTION)["messages"][0].text == "How is the weather in Ulm?"
    assert "Another question" in scripted_backend(model).prompt
