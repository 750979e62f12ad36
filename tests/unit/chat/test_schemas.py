"""Classes, functions, tools and dictionaries as one schema that loses nothing; and answers, read strictly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Annotated, Any, Optional, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool, Tool, tool
from pydantic import BaseModel, Field, RootModel
from pydantic.v1 import BaseModel as OldModel
from typing_extensions import NotRequired, ReadOnly, Required

from langchain_specdec import ChatSpeculative, Grammar
from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.answer_parsers import strict_json
from langchain_specdec.chat.schemas import as_tool, named_schema
from langchain_specdec.chat.structured_output import form_of_calls, form_of_response
from langchain_specdec.chat.tool_calls import HermesParser
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.constraint import GrammarCompiler
from tests.support.backends import ScriptedBackend, scripted, scripted_backend
from tests.support.chat_templates import QWEN
from tests.support.json_schemas import can_write
from tests.support.tiny_models import EOS, byte_tokenizer

WITH_ITSELF = {
    "title": "T",
    "type": "object",
    "properties": {"n": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["n"],
}
WITH_A_PROPERTY = {
    "title": "T",
    "type": "object",
    "properties": {"a": {"maximum": 5, "type": "integer"}, "n": {"$ref": "#/properties/a"}},
    "required": ["a", "n"],
}
FREE = {"title": "T", "type": "object", "additionalProperties": {"type": "integer"}}
VALUES = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


class Node(BaseModel):
    """A node."""

    value: int = Field(ge=0, le=9)
    next: Optional[Node] = None  # noqa: UP045 - as users write it


class Tree(BaseModel):
    root: Node


class Leaf(TypedDict):
    """A leaf."""

    size: Annotated[int, ..., "Its size."]
    copy: NotRequired[Branch]


class Branch(TypedDict, total=False):
    leaves: list[Leaf]
    by_name: dict[str, Optional[Leaf]]  # noqa: UP045
    other: Leaf | None


@dataclasses.dataclass
class Pair:
    left: int
    right: Optional[Pair] = None  # noqa: UP045


class Numbers(RootModel[list[int]]):
    pass


class Old(OldModel):
    size: int


def keep(node: Node, times: int = 1) -> str:
    """Keep a node.

    Args:
        node: What to keep.
        times: How often.
    """
    return f"{node} {times}"


def fits(compiler: GrammarCompiler, form: Any, value: Any) -> bool:
    return can_write(compiler.compile(form.grammar, 500), json.dumps(value, ensure_ascii=False))


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer(), 258, (EOS,))


GIVEN: dict[str, tuple[Any, Any, Any]] = {
    # What is given, what fits, and what does not.
    "recursive class": (Node, {"value": 1, "next": {"value": 2, "next": None}}, {"value": 1, "next": {"value": "x"}}),
    "class within a class": (Tree, {"root": {"value": 1, "next": None}}, {"root": {"value": 1, "next": {"a": 1}}}),
    "typed dictionaries": (
        Branch,
        {"leaves": [{"size": 1, "copy": {"leaves": []}}], "by_name": {"x": None}},
        {"leaves": [{"size": "1"}]},
    ),
    "dataclass": (Pair, {"left": 1, "right": {"left": 2}}, {"left": 1, "right": {"right": None}}),
    "class of Pydantic 1": (Old, {"size": 1}, {"size": "x"}),
    "list class": (Numbers, [1, 2], ["x"]),
    "OpenAI's json_schema": ({"name": "m", "schema": VALUES, "strict": True}, {"a": 1}, {"a": "x"}),
    "OpenAI's response_format": (
        {"type": "json_schema", "json_schema": {"name": "m", "schema": VALUES}},
        {"a": 1},
        {"a": "x"},
    ),
    "OpenAI's tool": ({"type": "function", "function": {"name": "m", "parameters": VALUES}}, {"a": 1}, {"a": "x"}),
    "Anthropic's tool": ({"name": "m", "input_schema": VALUES}, {"a": 1}, {"a": "x"}),
    "array": ({"title": "T", "type": "array", "items": {"enum": ["red"]}}, ["red"], ["blue"]),
    "reference at the top": ({"title": "T", "$ref": "#/$defs/A", "$defs": {"A": VALUES}}, {"a": 1}, {"a": "x"}),
    "union at the top": ({"title": "T", "anyOf": [VALUES]}, {"a": 1}, {"a": "x"}),
    "enum at the top": ({"title": "T", "enum": ["red"]}, "red", "blue"),
    "no title": (VALUES, {"a": 1}, {"a": "x"}),
    "a property of the name 'name'": (
        {"title": "T", "type": "object", "properties": {"name": {"type": "integer"}}, "required": ["name"]},
        {"name": 1},
        {"name": "x"},
    ),
    "a key 'name' beside a schema": ({"title": "T", "name": "x", **VALUES}, {"a": 1}, {"a": "x"}),
    "names that are free": (FREE, {"b": 1}, {"b": "x"}),
    "allOf": ({"title": "T", "type": "object", "allOf": [VALUES]}, {"a": 1}, {"a": "x"}),
    "reference to itself": (WITH_ITSELF, {"n": {"n": None}}, {"n": {"n": 1}}),
    "reference to a property": (WITH_A_PROPERTY, {"a": 1, "n": 2}, {"a": 1, "n": 9}),
}


@pytest.mark.parametrize("name", GIVEN)
def test_no_schema_is_lost(compiler: GrammarCompiler, name: str) -> None:
    given, good, bad = GIVEN[name]
    described = named_schema(given)
    form = form_of_response(described.as_response_format())
    assert form is not None
    assert fits(compiler, form, good)
    assert not fits(compiler, form, bad)
    whole = described.wrapped()
    form = form_of_calls([whole.as_tool(), as_tool(keep)], HermesParser, Backend.check_grammar)
    for value, is_right in ((good, True), (bad, False)):
        arguments = value if described.is_object else {"value": value}
        assert fits(compiler, form, {"name": described.name, "arguments": arguments}) == is_right
        assert described.unwrap(arguments) == value


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_answers_are_read_by_both_methods(name: str, method: Any) -> None:
    given, good, _ = GIVEN[name]
    described = named_schema(given)
    call = {"name": described.name, "arguments": good if described.is_object else {"value": good}}
    answer = json.dumps(good if method == "json_schema" else call)
    model = scripted(answer, template=QWEN, width=3)
    found = model.with_structured_output(given, method=method).invoke("x")
    streamed = list(model.with_structured_output(given, method=method).stream("x"))
    assert found == streamed[-1]
    if isinstance(given, type) and issubclass(given, (BaseModel, OldModel)):
        assert isinstance(found, given)
        found = json.loads(found.model_dump_json() if isinstance(found, BaseModel) else found.json())
    assert found == good or name == "recursive class"
    # What the model is told holds the same schema.
    assert json.dumps(described.wrapped().schema if method == "function_calling" else described.schema)[1:-1] in (
        scripted_backend(model).prompt
    )


def test_tools_keep_their_schemas(compiler: GrammarCompiler) -> None:
    stored = tool(keep)
    for given in (keep, stored):
        function = as_tool(given, strict=True)["function"]
        assert function["name"] == "keep"
        assert function["strict"] is True
        assert function["description"].startswith("Keep a node.")
        assert function["parameters"]["properties"]["node"]["$ref"] == "#/$defs/Node"
        form = form_of_calls([{"function": function}], HermesParser, Backend.check_grammar)
        assert fits(compiler, form, {"name": "keep", "arguments": {"node": {"value": 1, "next": None}}})
        assert not fits(compiler, form, {"name": "keep", "arguments": {"node": {}}})
    assert as_tool(keep)["function"]["parameters"]["properties"]["node"]["description"] == "What to keep."
    simple = Tool(name="search", func=str, description="Search.")
    assert list(as_tool(simple)["function"]["parameters"]["properties"]) == ["__arg1"]
    assert named_schema(Leaf).schema["$defs"]["Leaf"]["properties"]["size"]["description"] == "Its size."


def test_definitions_of_one_name_stay_apart(compiler: GrammarCompiler) -> None:
    text = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}
    number = {**text, "$defs": {"A": {"type": "integer"}}}
    itself = {
        "type": "object",
        "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/$defs/A"}},
        "$defs": {"A": {"enum": [1]}},
    }
    tools = [{"function": {"name": n, "parameters": p}} for n, p in (("t", text), ("n", number), ("i", itself))]
    form = form_of_calls(tools, HermesParser, Backend.check_grammar)
    pairs = {"t": ({"a": "x"}, {"a": 1}), "n": ({"a": 1}, {"a": "x"}), "i": ({"a": {"b": 1}}, {"a": {"b": 2}})}
    for name, (good, bad) in pairs.items():
        assert fits(compiler, form, {"name": name, "arguments": good})
        assert not fits(compiler, form, {"name": name, "arguments": bad})


def test_what_is_no_schema_is_refused_in_one_sentence() -> None:
    deep: Any = {"type": "integer"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}}
    round_: dict[str, Any] = {"type": "object", "properties": {}}
    round_["properties"]["a"] = round_

    class Unfinished(BaseModel):
        part: Missing  # type: ignore[name-defined]  # noqa: F821

    class Kind(BaseModel):
        kind: type[int]

    class Callback(BaseModel):
        call: Callable[[], int]

    model = scripted("{}")
    for given in (
        5,
        int,
        "x",
        {},
        {"a": 1},
        {"name": "x", "schema": 5},
        {"type": "function"},
        deep,
        round_,
        Unfinished,
        Kind,
        Callback,
    ):
        with pytest.raises(InvalidParameterError):
            model.with_structured_output(given)  # type: ignore[arg-type]
        with pytest.raises(InvalidParameterError):
            model.bind_tools([given])  # type: ignore[list-item]
    for given in (deep, round_):
        with pytest.raises(InvalidParameterError, match="nested"):
            model.invoke("x", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": given}})
        with pytest.raises(InvalidParameterError, match="nested"):
            Grammar(schema=given)
    for nameless in (VALUES, Numbers):
        with pytest.raises(InvalidParameterError, match=r"needs a name|must be an object"):
            model.bind_tools([nameless])


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
@pytest.mark.parametrize(
    "answer", ['{"value": 1', '{"value": 1, "next"', '{"value": NaN}', '{"value": 1} {', "", '{"value": 1e999}']
)
async def test_half_an_answer_is_an_error(method: Any, answer: str) -> None:
    for given in (Node, Node.model_json_schema()):
        model = scripted(answer).with_structured_output(given, method=method)
        with pytest.raises(OutputParserException):
            model.invoke("x")
        with pytest.raises(OutputParserException):
            list(model.stream("x"))
        with pytest.raises(OutputParserException):
            _ = [part async for part in model.astream("x")]
        raw = scripted(answer).with_structured_output(given, method=method, include_raw=True).invoke("x")
        assert raw["parsed"] is None
        assert isinstance(raw["parsing_error"], OutputParserException)


def test_a_stream_grows_to_the_whole_answer() -> None:
    model = scripted('{"value": 1, "next": null}')
    grown = list(model.with_structured_output(Node.model_json_schema()).stream("x"))
    assert grown[0] == {}
    assert grown[-1] == {"value": 1, "next": None}
    assert list(model.with_structured_output(Node).stream("x")) == [Node(value=1)]


def test_a_call_that_is_missing_or_cut_is_an_error() -> None:
    for answer in ("nothing", '{"name": "Node", "argum', '{"name": "Node", "arguments": {"value": 10}}'):
        backend = ScriptedBackend(answer, template=QWEN)
        backend.finish_reason = "length"
        for given in (Node, Node.model_json_schema()):
            model = ChatSpeculative(backend=backend).with_structured_output(given, method="function_calling")
            if "10" in answer and isinstance(given, dict):
                continue  # only the grammar holds a dictionary to its schema
            with pytest.raises(OutputParserException):
                model.invoke("x")
            with pytest.raises(OutputParserException):
                list(model.stream("x"))


def test_json_is_read_strictly() -> None:
    assert strict_json(' {"a": [1, 2.5, null]} ') == {"a": [1, 2.5, None]}
    for text in ("", "{", "[1,", "NaN", "-Infinity", "1e999", "{} {}", "'a'", "[" * 100_000):
        with pytest.raises(ValueError, match=r"\w"):
            strict_json(text)


class Parcel(TypedDict, total=False):
    """A parcel."""

    weight: Annotated[int, ..., "In grams."]
    sender: Required[str]
    note: ReadOnly[NotRequired[str]]


def test_keys_of_typed_dictionaries_are_required_as_they_say() -> None:
    # Annotations are texts in this file, of which Python itself reads no `Required`.
    assert named_schema(Parcel).schema["required"] == ["sender"]
    assert named_schema(Leaf).schema["$defs"]["Leaf"]["required"] == ["size"]


def test_a_grammar_takes_typed_dictionaries_on_every_python() -> None:
    schema: Any = Grammar(schema=Parcel).schema  # type: ignore[arg-type]
    assert schema["required"] == ["sender"]
    assert schema["properties"]["weight"]["description"] == "In grams."


@pytest.mark.parametrize(
    "schema", [{}, {"$schema": "x"}, {"type": ["object", "null"]}, {"description": "None."}], ids=str
)
def test_a_tool_without_properties_takes_an_object(schema: dict[str, Any]) -> None:
    for given in (
        {"type": "function", "function": {"name": "now", "parameters": schema}},
        {"name": "now", "input_schema": schema},
        {"toolSpec": {"name": "now", "inputSchema": {"json": schema}}},
        StructuredTool(name="now", description="The time.", args_schema=schema, func=lambda: ""),
    ):
        assert as_tool(given)["function"]["parameters"]["type"] == "object"


WANTED = {"title": "Parcel", **VALUES}


class Values(BaseModel):
    a: int


@pytest.mark.parametrize("schema", [WANTED, Values], ids=["dictionary", "class"])
@pytest.mark.parametrize(
    ("method", "answer"),
    [("json_schema", '{"a": 1'), ("function_calling", '<tool_call>{"name": "Parcel", "arguments"')],
)
async def test_a_stream_with_the_message_gives_its_parsing_error(schema: Any, method: Any, answer: str) -> None:
    model = scripted(answer, template=QWEN).with_structured_output(schema, method=method, include_raw=True)
    streams = [list(model.stream("x")), [chunk async for chunk in model.astream("x")]]
    for chunks in (*streams, [model.invoke("x")], [await model.ainvoke("x")]):
        assert chunks[-1]["parsed"] is None
        assert isinstance(chunks[-1]["parsing_error"], OutputParserException)
        assert "None" not in str(chunks[-1]["parsing_error"])
        assert any("raw" in chunk for chunk in chunks)


def test_a_stream_with_the_message_ends_with_what_was_read() -> None:
    numbers = {"title": "L", "type": "array", "items": {"type": "integer"}}
    cases: list[tuple[Any, str, Any]] = [
        (WANTED, '{"a": 1}', {"a": 1}), (Values, '{"a": 1}', Values(a=1)), (numbers, "[1, 2]", [1, 2])
    ]  # fmt: skip
    for schema, answer, whole in cases:
        model = scripted(answer).with_structured_output(schema, include_raw=True)
        read: dict[str, Any] = {}
        for chunk in model.stream("x"):
            read |= chunk
        assert (read["parsed"], read["parsing_error"]) == (whole, None)
        assert model.invoke("x")["parsed"] == whole


def test_a_call_without_the_value_is_a_parsing_error() -> None:
    schema = {"title": "L", "type": "array", "items": {"type": "integer"}}
    model = scripted('<tool_call>{"name": "L", "arguments": {}}</tool_call>', template=QWEN)
    with pytest.raises(OutputParserException, match="lacks 'value'"):
        model.with_structured_output(schema, method="function_calling").invoke("x")


@tool
def adds(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


# Tools of OpenAI, Anthropic, Google and Bedrock that their servers run, or that take no JSON, by what they are called.
PROVIDERS_TOOLS: list[tuple[str, dict[str, Any]]] = [
    ("web_search", {"type": "web_search"}),
    ("web_search_preview_2025_03_11", {"type": "web_search_preview_2025_03_11"}),
    ("web_search", {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}),
    ("web_fetch", {"type": "web_fetch_20250910", "name": "web_fetch", "citations": {"enabled": True}}),
    ("code_interpreter", {"type": "code_interpreter", "container": {"type": "auto"}}),
    ("crm", {"type": "mcp", "server_label": "crm", "server_url": "https://x", "headers": {"Authorization": "s3cret"}}),
    ("shell", {"type": "custom", "name": "shell", "description": "Takes a command."}),
    ("file_search", {"type": "file_search", "vector_store_ids": ["s3cret"]}),
    ("image_generation", {"type": "image_generation"}),
    ("google_search", {"google_search": {}}),
    ("systemTool", {"systemTool": {"name": "nova_grounding"}}),
]


@pytest.mark.parametrize(("name", "given"), PROVIDERS_TOOLS)
def test_tools_that_are_no_functions_are_refused_by_name(name: str, given: dict[str, Any]) -> None:
    model = scripted("ok", template=QWEN)
    for ask in (
        lambda: model.bind_tools([given]),
        lambda: model.bind_tools([adds, given]),
        lambda: model.invoke("x", tools=[given]),
        lambda: next(model.stream("x", tools=[given])),
        lambda: model.get_num_tokens_from_messages([HumanMessage("x")], [given]),
    ):
        with pytest.raises(InvalidParameterError, match=f"The tool '{name}' is no function") as caught:
            ask()
        assert "leave it out, or give one that does the same" in str(caught.value)
        assert "s3cret" not in str(caught.value)
    assert scripted_backend(model).requests == []


def test_an_agent_with_a_providers_tool_is_told_its_name() -> None:
    agents = pytest.importorskip("langchain.agents")
    agent = agents.create_agent(scripted("ok", template=QWEN), [adds, {"type": "web_search"}])
    with pytest.raises(InvalidParameterError, match="The tool 'web_search' is no function"):
        agent.invoke({"messages": [("human", "x")]})


@pytest.mark.parametrize(
    "given",
    [
        {"name": "f", "description": "d", "input_schema": VALUES},
        {"type": "custom", "name": "f", "description": "d", "input_schema": VALUES},
        {"type": "function", "name": "f", "description": "d", "parameters": VALUES},
        {"type": "function", "name": "f", "description": "d"},
        {"toolSpec": {"name": "f", "description": "d", "inputSchema": {"json": VALUES}}},
    ],
)
def test_functions_are_taken_as_every_provider_describes_them(given: dict[str, Any]) -> None:
    function = as_tool(given)["function"]
    assert (function["name"], function["description"]) == ("f", "d")
    assert function["parameters"] in (VALUES, {"type": "object", "properties": {}})
