"""Map-reduce as a graph of LangGraph: a branch for each part of a document, and one call for their summaries.

python docs/examples/summarize_graph.py [--document FILE] [--max-new-tokens N] [--model-id ID]
    [--server URL | --tgi URL]

`DocumentSummarizer` does the same without a graph, for a document of any length (summarize.py). A graph is for what it
does not do: other steps between, checkpoints, a person who looks at the parts.
"""

# ruff: noqa: T201

from __future__ import annotations

import operator
from pathlib import Path
from typing import Annotated, TypedDict

from example_options import make_parser, open_model
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from summarize import DOCUMENT

from langchain_specdec import ChatSpeculative, LocalBackend

INSTRUCTION = "Summarize the text above in one sentence, with names and dates as in the text."


class Summary(TypedDict):
    """What the graph works on."""

    parts: list[str]
    summaries: Annotated[list[str], operator.add]
    summary: str


class Part(TypedDict):
    """What a branch works on."""

    text: str


def make_graph(model: ChatSpeculative) -> StateGraph[Summary]:
    """START -> a branch for each part, all at once -> one summary of their summaries -> END."""

    def ask(text: str) -> str:
        # The document first, so that what was read of it serves for the next question too.
        return model.invoke(f"{text}\n\n{INSTRUCTION}").text

    def send_parts(state: Summary) -> list[Send]:
        return [Send("map", {"text": part}) for part in state["parts"]]

    def map_part(part: Part) -> dict[str, list[str]]:
        return {"summaries": [ask(part["text"])]}

    def reduce_summaries(state: Summary) -> dict[str, str]:
        return {"summary": ask("\n\n".join(state["summaries"]))}

    graph = StateGraph(Summary)
    graph.add_node("map", map_part)
    graph.add_node("reduce", reduce_summaries)
    graph.add_conditional_edges(START, send_parts, ["map"])
    graph.add_edge("map", "reduce")
    graph.add_edge("reduce", END)
    return graph


def main() -> None:
    """Summarise, print, and tell how many forward passes the branches took together."""
    parser = make_parser()
    parser.add_argument("--document", type=Path)
    parser.add_argument("--max-new-tokens", type=int, default=60)
    options = parser.parse_args()
    document = options.document.read_text(encoding="utf-8") if options.document else DOCUMENT
    # A slot for each branch, so that they are decoded in one batch. Without drafts, so that this alone is counted.
    engine = {"num_slots": 4, "max_length": 1024, "drafter": "none"}
    with open_model(ChatSpeculative, options, engine, max_new_tokens=options.max_new_tokens, temperature=0) as model:
        graph = make_graph(model).compile()
        num_tokens = num_passes = 0
        for update in graph.stream({"parts": document.split("\n\n")}, stream_mode="updates"):
            for part in update.get("map", {}).get("summaries", []):
                print(f"part: {part}")
                num_tokens += model.get_num_tokens(part)
                if isinstance(model.backend, LocalBackend):  # a server does not count them
                    num_passes = model.backend.engine.num_target_forwards
            if "reduce" in update:
                print(f"summary: {update['reduce']['summary']}")
    print(f"parts: {num_tokens} tokens" + (f" in {num_passes} forward passes of the model" if num_passes else ""))


if __name__ == "__main__":
    main()
