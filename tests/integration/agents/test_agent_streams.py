"""However an agent is run, its messages are the same: whole, in streams, and by every version of events."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from langchain_specdec import ChatSpeculative, LocalBackend
from tests.support.backends import is_idle
from tests.support.chat_templates import LLAMA, MISTRAL
from tests.support.langchain_versions import HAS_EVENTS_V3, needs_agent_names, needs_events_v3
from tests.support.scripted_agents import QUESTION, agent_of, call, qwen, shape, shapes
from tests.support.tools import weather

pytestmark = pytest.mark.filterwarnings("ignore:The v3 streaming protocol")

ULM, BONN = call("weather", place="Ulm"), call("weather", place="Bonn")
BROKEN = '<tool_call>\n{"name": "weather", "arguments": 5}\n</tool_call>'
SCRIPTS = {
    "text": ["Rain."],
    "a call": [ULM, "Rain."],
    "text and a call": ["I look. " + ULM, "Rain in Ulm."],
    "two calls": [f"{ULM}\n{BONN}", "Rain in both."],
    "text, two calls, and calls again": [f"I look. {ULM}\n{BONN}", "And again. " + ULM, "Rain."],
    "text around calls": [f"First. {ULM} Then. {BONN} So.", "Rain."],
    "a broken call": ["I look. " + BROKEN],
}
# Tokens of a step: some, about those of a call, and those of a whole answer.
WIDTHS = [pytest.param(3, marks=pytest.mark.slow), 60, pytest.param(1000, marks=pytest.mark.slow)]
# With the version of the content of messages: a text, or a list of blocks.
VERSIONS_AND_WIDTHS = [
    pytest.param("v1", 3, marks=pytest.mark.slow),
    ("v0", 60),
    pytest.param("v0", 1000, marks=[pytest.mark.slow, pytest.mark.one_version]),
]


def make(script: str, width: int, **fields: Any) -> Any:
    return agent_of(qwen(*SCRIPTS[script], width=width, **fields), [weather], system_prompt="Be brief.")


def answers(messages: list[BaseMessage]) -> list[Any]:
    return [shape(message) for message in messages if isinstance(message, AIMessage)]


def merged(chunks: list[AIMessageChunk]) -> list[AIMessageChunk]:
    """The messages of a stream of chunks, by their ids, in the order in which they began."""
    by_id: dict[str | None, AIMessageChunk] = {}
    for chunk in chunks:
        by_id[chunk.id] = by_id[chunk.id] + chunk if chunk.id in by_id else chunk
    return list(by_id.values())


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wanted(script: str, version: str) -> list[Any]:
    """What `invoke` has."""
    messages = make(script, 1, output_version=version).invoke(QUESTION)["messages"]
    assert len(messages) > 1
    return shapes(messages)


@pytest.mark.parametrize(("version", "width"), VERSIONS_AND_WIDTHS)
async def test_ainvoke(script: str, version: str, wanted: list[Any], width: int) -> None:
    assert shapes((await make(script, width, output_version=version).ainvoke(QUESTION))["messages"]) == wanted


@pytest.mark.parametrize(("version", "width"), VERSIONS_AND_WIDTHS)
async def test_values_and_updates(script: str, version: str, wanted: list[Any], width: int) -> None:
    agent = make(script, width, output_version=version)
    assert shapes(list(agent.stream(QUESTION, stream_mode="values"))[-1]["messages"]) == wanted
    agent = make(script, width, output_version=version)
    updates = [chunk async for chunk in agent.astream(QUESTION, stream_mode="updates")]
    messages = [message for update in updates for node in update.values() for message in node["messages"]]
    # Tools run at the same time, so their results come in any order.
    assert sorted(map(repr, map(shape, messages))) == sorted(map(repr, wanted[1:]))


@pytest.mark.parametrize(("version", "width"), VERSIONS_AND_WIDTHS)
async def test_chunks_of_messages(script: str, version: str, wanted: list[Any], width: int) -> None:
    wanted = [told for told in wanted if told[0] == "ai"]
    agent = make(script, width, output_version=version)
    pairs = list(agent.stream(QUESTION, stream_mode="messages"))
    chunks = [chunk for chunk, _ in pairs if isinstance(chunk, AIMessageChunk)]
    assert {about["langgraph_node"] for chunk, about in pairs if isinstance(chunk, AIMessageChunk)} == {"model"}
    assert [comparable(message) for message in merged(chunks)] == wanted
    assert all(message.chunk_position == "last" for message in merged(chunks))
    agent = make(script, width, output_version=version, streaming=True)
    chunks = [chunk async for chunk, _ in agent.astream(QUESTION, stream_mode="messages")]
    assert [comparable(m) for m in merged([c for c in chunks if isinstance(c, AIMessageChunk)])] == wanted


def test_a_model_that_is_not_to_stream_gives_whole_messages() -> None:
    """LangChain takes `streaming=False` for that, where it is given."""
    pairs = list(make("a call", 3, streaming=False).stream(QUESTION, stream_mode="messages"))
    assert [type(message) for message, _ in pairs] == [AIMessage, ToolMessage, AIMessage]


def comparable(message: AIMessageChunk) -> Any:
    """Its shape, as that of a whole message."""
    kind, *rest = shape(message)
    assert kind == "AIMessageChunk"
    return ("ai", *rest)


@pytest.mark.parametrize(("version", "width"), VERSIONS_AND_WIDTHS)
async def test_version_2_of_events(script: str, version: str, wanted: list[Any], width: int) -> None:
    wanted = [told for told in wanted if told[0] == "ai"]
    agent = make(script, width, output_version=version)
    ends: list[AIMessage] = []
    chunks: dict[str, list[AIMessageChunk]] = defaultdict(list)
    state: Any = None
    async for event in agent.astream_events(QUESTION, version="v2"):
        if event["event"] == "on_chat_model_end":
            ends.append(event["data"]["output"])
        if event["event"] == "on_chat_model_stream":
            chunks[event["run_id"]].append(event["data"]["chunk"])
        if event["event"] == "on_chain_end" and not event["parent_ids"]:
            state = event["data"]["output"]
    assert [comparable(m) if isinstance(m, AIMessageChunk) else shape(m) for m in ends] == wanted
    assert [comparable(message) for run in chunks.values() for message in merged(run)] == wanted
    assert answers(state["messages"]) == wanted


@needs_events_v3
@pytest.mark.parametrize(("version", "width"), VERSIONS_AND_WIDTHS)
async def test_version_3_of_events(script: str, version: str, wanted: list[Any], width: int) -> None:
    run = make(script, width, output_version=version).stream_events(QUESTION, version="v3")
    messages = [message.output for message in run.messages]
    assert [shape(message) for message in messages] == [told for told in wanted if told[0] == "ai"]
    assert shapes(run.output["messages"]) == wanted
    run = await make(script, width, output_version=version).astream_events(QUESTION, version="v3")
    messages = [await message.output async for message in run.messages]
    assert [shape(message) for message in messages] == [told for told in wanted if told[0] == "ai"]
    assert shapes((await run.output())["messages"]) == wanted


@needs_events_v3
@pytest.mark.parametrize("width", WIDTHS)
def test_version_3_of_events_in_pieces(script: str, width: int) -> None:
    """Its texts, piece by piece, are the text of the message; its calls are whole."""
    run = make(script, width).stream_events(QUESTION, version="v3")
    for message in run.messages:
        pieces = list(message.text)
        assert "".join(pieces) == message.output.text
        assert [call["name"] for call in message.tool_calls.get()] == ["weather"] * len(message.output.tool_calls)


@pytest.mark.parametrize(
    ("template", "first"),
    [
        (LLAMA, '{"name": "weather", "parameters": {"place": "Ulm"}}'),
        (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"place": "Ulm"}'),
    ],
    ids=["llama", "mistral"],
)
@pytest.mark.parametrize("width", WIDTHS)
async def test_other_families(template: str, first: str, width: int) -> None:
    def agent() -> Any:
        return agent_of(qwen(first, "Rain.", width=width, chat_template=template), [weather])

    wanted = shapes(agent().invoke(QUESTION)["messages"])
    assert [told[0] for told in wanted] == ["human", "ai", "tool", "ai"]
    assert shapes(list(agent().stream(QUESTION, stream_mode="values"))[-1]["messages"]) == wanted
    if HAS_EVENTS_V3:
        assert shapes(agent().stream_events(QUESTION, version="v3").output["messages"]) == wanted


def test_what_tools_tell_of_themselves_comes_between() -> None:
    @tool
    def look(place: str) -> str:
        """Look at a place."""
        get_stream_writer()(f"looking at {place}")
        return "Rain."

    agent = agent_of(qwen(call("look", place="Ulm"), "It rains."), [look])
    seen = list(agent.stream(QUESTION, stream_mode=["custom", "messages", "updates"]))
    kinds = [mode for mode, _ in seen]
    assert [value for mode, value in seen if mode == "custom"] == ["looking at Ulm"]
    first = kinds.index("custom")
    assert "messages" in kinds[:first]
    assert "messages" in kinds[first:]
    assert kinds.count("updates") == 3


class Talk(TypedDict):
    messages: Annotated[list[Any], operator.add]


@needs_agent_names
def test_agents_inside_of_a_graph() -> None:
    """Chunks come from inside, with their place; the outer graph gets whole messages."""
    inner = agent_of(qwen(*SCRIPTS["text and a call"]), [weather], name="inner")
    graph = StateGraph(Talk)
    graph.add_node("ask", inner)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    outer: Any = graph.compile()
    places: set[tuple[str, ...]] = set()
    chunks = []
    for place, (chunk, about) in outer.stream(QUESTION, stream_mode="messages", subgraphs=True):
        if isinstance(chunk, AIMessageChunk):
            places.add(tuple(part.split(":")[0] for part in place))
            chunks.append(chunk)
            assert about["lc_agent_name"] == "inner"
    assert places == {("ask",)}
    assert [message.text for message in merged(chunks)] == ["I look.", "Rain in Ulm."]
    assert [[c["args"] for c in message.tool_calls] for message in merged(chunks)] == [[{"place": "Ulm"}], []]


def test_ids_of_messages_are_their_own() -> None:
    """Also those that a stream tells beforehand: who shows chunks finds the message in the state."""
    agent = make("two calls", 3)
    seen: dict[str, set[str | None]] = {"messages": set(), "values": set()}
    for mode, value in agent.stream(QUESTION, stream_mode=["messages", "values"]):
        found = [value[0]] if mode == "messages" else value["messages"]
        seen[mode] |= {message.id for message in found if isinstance(message, (AIMessage, ToolMessage))}
    assert seen["messages"] == seen["values"]
    assert len(seen["values"]) == 4
    assert None not in seen["values"]


@pytest.mark.parametrize("stop", [1, 5])
def test_a_stream_that_nobody_reads_to_its_end(
    stop: int, tiny_chat: Callable[..., ChatSpeculative], tiny_backend: LocalBackend
) -> None:
    model = tiny_chat(max_tokens=60)
    stream = agent_of(model, [weather]).stream(QUESTION, stream_mode="messages")
    for _ in range(stop):
        next(stream)
    stream.close()
    assert is_idle(tiny_backend)
