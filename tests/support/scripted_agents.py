"""Tools and scripts for agents of a scripted model, and what has to be equal however an answer was asked for."""

from __future__ import annotations

import json
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from langchain_specdec import ChatSpeculative
from tests.support.backends import Answer, scripted
from tests.support.chat_templates import QWEN

QUESTION = {"messages": [("human", "How is the weather in Ulm?")]}


def call(tool_name: str, /, **arguments: Any) -> str:
    """A call as Qwen writes it."""
    return f"<tool_call>\n{forced_call(tool_name, **arguments)}\n</tool_call>"


def forced_call(tool_name: str, /, **arguments: Any) -> str:
    """A call as the model writes it where it has to call: the marks around it are not its own."""
    return json.dumps({"name": tool_name, "arguments": arguments})


def qwen(*answers: Answer, **fields: Any) -> ChatSpeculative:
    """A scripted model with the template and the calls of Qwen."""
    return scripted(*answers, template=QWEN, **fields)


def agent_of(model: Any, tools: Any, **options: Any) -> Any:
    """LangChain's agent; its states and configurations are plain dictionaries in tests."""
    return create_agent(model, tools, **options)


def kinds(messages: list[BaseMessage]) -> list[str]:
    return [message.type for message in messages]


def results(messages: list[BaseMessage]) -> list[Any]:
    """What tools returned."""
    return [message.content for message in messages if isinstance(message, ToolMessage)]


def shape(message: BaseMessage) -> Any:
    """All of a message but what is drawn anew each time: its own id, and those of its calls.

    Calls keep the number of their id, so that one that two calls share, or a result of another call, shows.
    """
    if isinstance(message, AIMessage):
        calls = [(call["name"], call["args"], call["type"]) for call in message.tool_calls]
        broken = [(call["name"], call["args"]) for call in message.invalid_tool_calls]
        ids = [call["id"] for call in [*message.tool_calls, *message.invalid_tool_calls]]
        assert len(set(ids)) == len(ids), "two calls have one id"
        assert all(ids)
        blocks = message.content_blocks
        in_blocks = (
            "".join(block["text"] for block in blocks if block["type"] == "text"),
            [(block["name"], block["args"]) for block in blocks if block["type"] == "tool_call"],
        )
        told = {name: message.response_metadata.get(name) for name in ("model_name", "finish_reason", "model_provider")}
        return message.type, message.text, in_blocks, calls, broken, message.usage_metadata, told
    return message.type, message.text, getattr(message, "name", None), getattr(message, "status", None)


def shapes(messages: list[BaseMessage]) -> list[Any]:
    """Those of a whole thread; each result belongs to a call before it."""
    open_calls: list[str | None] = []
    for message in messages:
        if isinstance(message, AIMessage):
            open_calls += [call["id"] for call in message.tool_calls]
        if isinstance(message, ToolMessage):
            open_calls.remove(message.tool_call_id)
    return [shape(message) for message in messages]
