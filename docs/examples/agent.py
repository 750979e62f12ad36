"""An agent with two tools. Needs the extra `agents` and a model that was trained to call tools.

python docs/examples/agent.py [--model-id ID] [--server URL | --tgi URL]
"""

# ruff: noqa: T201

from __future__ import annotations

from example_options import make_parser, open_model
from langchain.agents import create_agent
from langchain_core.tools import tool

from langchain_specdec import ChatSpeculative

STOCK = {"lamp": 12, "lens": 3, "rope": 40}
PRICES = {"lamp": 19.5, "lens": 240.0, "rope": 4.25}


@tool
def stock(item: str) -> int:
    """How many of an item are in the store."""
    return STOCK.get(item, 0)


@tool
def price(item: str, count: int) -> float:
    """What so many of an item cost together."""
    return PRICES[item] * count


def main(model: ChatSpeculative) -> str:
    """Ask a question that takes both tools; print every step, and return the answer."""
    agent = create_agent(model, tools=[stock, price], system_prompt="You keep a store. Use the tools; do not guess.")
    state = agent.invoke({"messages": [("human", "How many lenses are there, and what do all of them cost?")]})
    for message in state["messages"]:
        for call in getattr(message, "tool_calls", []):
            print(f"{message.type}: calls {call['name']}({call['args']})")
        if message.text:
            print(f"{message.type}: {message.text}")
    return str(state["messages"][-1].text)


if __name__ == "__main__":
    options = make_parser("Qwen/Qwen2.5-1.5B-Instruct").parse_args()
    with open_model(ChatSpeculative, options, max_tokens=200) as chat:
        main(chat)
