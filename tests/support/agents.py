"""An agent with two tools whose calls are forced one after the other."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import tool

from langchain_specdec import ChatSpeculative

ITEMS = {"lamp": (12, 19.5), "lens": (3, 240.0), "rope": (40, 4.25), "oil": (7, 31.0)}
QUESTION = "How many of this item are there, and what do all of them cost: {}?"


@tool
def stock(item: str) -> int:
    """How many of an item are in the store."""
    return ITEMS.get(item.lower(), (0, 0.0))[0]


@tool
def price(item: str, count: int) -> float:
    """What so many of an item cost together."""
    return ITEMS.get(item.lower(), (0, 0.0))[1] * count


def make_agent(model: ChatSpeculative) -> Any:
    """An agent that looks at the stock, then at the price, then answers; the model fills the calls that are forced."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import AgentMiddleware

    class Steps(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            num_results = sum(isinstance(message, ToolMessage) for message in request.messages)
            choice = ("stock", "price", "none")[num_results]
            return handler(request.override(tool_choice=choice))

    return create_agent(model, [stock, price], system_prompt="You keep a store.", middleware=[Steps()])


def ask(agent: Any, item: str) -> list[BaseMessage]:
    state = agent.invoke({"messages": [("human", QUESTION.format(item))]}, {"recursion_limit": 12})
    messages: list[BaseMessage] = state["messages"]
    return messages


def usage_of(message: AIMessage) -> Any:
    return message.usage_metadata


def written(messages: list[BaseMessage]) -> list[Any]:
    """What the model wrote, without what is new each time."""
    answers = [message for message in messages if isinstance(message, AIMessage)]
    return [(message.text, [(call["name"], call["args"]) for call in message.tool_calls]) for message in answers]
