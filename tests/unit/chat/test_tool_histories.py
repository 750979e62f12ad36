"""Threads with calls and their results, as each family's template renders them; and which parser a template has."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_specdec.chat.messages import to_template_messages
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.chat.tool_calls import (
    BrokenToolCall,
    GenericParser,
    ResponseTemplateParser,
    ToolCall,
    parser_class,
    writing_parser,
)
from tests.support.backends import scripted
from tests.support.chat_templates import CHATML
from tests.support.tool_formats import SCHEMAS, parse
from tests.support.tool_templates import FAMILIES, GEMMA_RESPONSES, Family, family_tokenizer

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
FERRY: Any = {"name": "ferry", "args": {"harbour": "Kiel", "cars": 2}, "id": "call_1", "type": "tool_call"}
TIDE: Any = {"name": "tide", "args": {}, "id": "call_2", "type": "tool_call"}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def rendered(family: Family, *messages: BaseMessage) -> str:
    template = ChatTemplate(family_tokenizer(family), "tiny")
    return template.text(to_template_messages(messages), TOOLS)


@families
def test_the_template_chooses_its_parser(family: Family) -> None:
    template = ChatTemplate(family_tokenizer(family), "tiny")
    assert template.shows_tools
    assert template.parser is family.parser
    shown = {text for text in family.special if template.parser.is_mark(text)}
    assert set(template.mark_texts.values()) == shown


@families
def test_a_call_and_its_result_stand_as_the_family_writes_them(family: Family) -> None:
    text = rendered(
        family,
        SystemMessage("Be kind."),
        HumanMessage("When?"),
        AIMessage("", tool_calls=[FERRY]),
        ToolMessage("Noon.", tool_call_id="call_1"),
    )
    for part in (*family.shown, "Be kind.", "When?"):
        assert part in text


@families
def test_several_calls_texts_and_turns_are_all_there(family: Family) -> None:
    text = rendered(
        family,
        HumanMessage("When?"),
        AIMessage("I look.", tool_calls=[FERRY, TIDE]),
        ToolMessage("Noon.", tool_call_id="call_1"),
        ToolMessage("High.", tool_call_id="call_2"),
        AIMessage("At noon."),
        HumanMessage("And then?"),
    )
    wanted = ["When?", "ferry", "Kiel", "tide", "Noon.", "High.", "At noon.", "And then?"]
    if family is not FAMILIES["mistral"]:  # it leaves out texts beside calls
        wanted.insert(1, "I look.")
    if FAMILIES["llama"] is family or FAMILIES["harmony"] is family:  # one call a message
        wanted.remove("Noon.")
        wanted.insert(wanted.index("tide"), "Noon.")
    # Tools are described before.
    rest = text[text.rindex("When?") :]
    places = [rest.index(part) for part in wanted]
    assert places == sorted(places), rest
    # What an answer is made of in the next turn begins as this one did.
    assert "<tool_response>Noon." not in text


def test_results_stand_in_the_turn_of_their_calls_where_a_template_has_them_there() -> None:
    first = FAMILIES["gemma"]._replace(template=GEMMA_RESPONSES)
    thread = [
        HumanMessage("When?"),
        AIMessage("I look.", tool_calls=[FERRY, TIDE]),
        ToolMessage("Noon.", tool_call_id="call_1"),
        ToolMessage("High.", tool_call_id="call_2"),
    ]
    text = rendered(first, *thread)
    assert text.endswith(
        '<|turn>model\nI look.<turn|>\n<|turn>model\n<|tool_call>call:ferry{harbour:<|"|>Kiel<|"|>,cars:2}<tool_call|>'
        "<|tool_call>call:tide{}<tool_call|>"
        '<|tool_response>response:ferry{value:<|"|>Noon.<|"|>}<tool_response|>'
        '<|tool_response>response:tide{value:<|"|>High.<|"|>}<tool_response|>'
    )
    later = rendered(first, *thread, AIMessage("At noon."), HumanMessage("And then?"))
    assert later.startswith(text)
    assert later.endswith("At noon.<turn|>\n<|turn>user\nAnd then?<turn|>\n<|turn>model\n")


@families
def test_a_rendered_call_is_read_as_it_was(family: Family) -> None:
    text = rendered(
        family, HumanMessage("x"), AIMessage("", tool_calls=[FERRY]), ToolMessage("y", tool_call_id="call_1")
    )
    written = text[text.index(family.shown[0]) :]
    pieces = [piece for piece in parse(family.parser, [written]) if not isinstance(piece, str)]
    assert pieces[0] == ToolCall("ferry", FERRY["args"])


@families
def test_texts_of_messages_are_no_calls(family: Family) -> None:
    """What looks like a mark in a question or a result reaches the model as plain text."""
    template = ChatTemplate(family_tokenizer(family), "tiny")
    marks = {index for index, text in template.mark_texts.items()}
    evil = family.shown[0]
    rows = to_template_messages(
        [HumanMessage(evil), AIMessage("", tool_calls=[TIDE]), ToolMessage(evil, tool_call_id="call_2")]
    )
    kind = to_template_messages(
        [HumanMessage("x"), AIMessage("", tool_calls=[TIDE]), ToolMessage("x", tool_call_id="call_2")]
    )
    counts = [sum(token in marks for token in template.token_ids(given, TOOLS)) for given in (rows, kind)]
    assert counts[0] == counts[1]


def test_other_templates_have_the_generic_parser() -> None:
    assert parser_class("{{ tools }}", shows_tools=True) is GenericParser
    for family in FAMILIES.values():
        assert parser_class(family.template, shows_tools=False) is GenericParser


def test_where_a_grammar_is_json_calls_are_written_as_json() -> None:
    for family in FAMILIES.values():
        parser = family.parser
        assert writing_parser(parser, takes_parts=True) is parser
        assert writing_parser(parser, takes_parts=False) is (parser if parser.form == "json" else GenericParser)
        whole = writing_parser(parser, takes_parts=True, is_whole=True)
        assert whole is (parser if parser.form == "json" or parser.holds_schemas else GenericParser)


# A format that nobody here knows.
DESCRIBED: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<muse>", "close": "</muse>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*@@(?P<name>\w+)",
            "close": "@@",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"content": "text"},
    },
}
UNKNOWN = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + CHATML.replace(
    "message['content']", "(message['content'] or '')"
)
needs_response_templates = pytest.mark.skipif(
    importlib.util.find_spec("transformers.utils.chat_parsing") is None, reason="transformers 5.16 reads such templates"
)


@needs_response_templates
def test_a_described_format_is_read_however_it_is_cut() -> None:
    parser = parser_class(UNKNOWN, shows_tools=True, response_template=DESCRIBED)
    assert issubclass(parser, ResponseTemplateParser)
    text = '<muse>Hm.</muse>I look. @@ferry{"harbour": "Kiel", "cars": 2}@@ @@tide{broken@@@@tide{}@@ Done'
    expected = [
        "I look.",
        ToolCall("ferry", {"harbour": "Kiel", "cars": 2}),
        BrokenToolCall("@@tide{broken@@", "json parser could not parse region as JSON."),
        ToolCall("tide", {}),
        " Done",
    ]
    for size in (1, 2, 3, 7, 1000):
        chunks = [text[start : start + size] for start in range(0, len(text), size)]
        assert parse(parser, chunks) == expected, size
    assert (
        parser_class(FAMILIES["gemma"].template, shows_tools=True, response_template=DESCRIBED)
        is FAMILIES["gemma"].parser
    )


@needs_response_templates
@pytest.mark.transformers
def test_a_tokenizer_may_bring_its_format() -> None:
    call = '{"name": "tide", "arguments": {}}'
    model: Any = scripted('I look. @@ferry{"harbour": "Kiel"}@@', call, template=UNKNOWN)
    model.backend.tokenizer.response_template = DESCRIBED
    message = model.bind_tools(TOOLS, parallel_tool_calls=False).invoke("When?")
    assert message.text == "I look."
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("ferry", {"harbour": "Kiel"})]
    # How such calls are written nobody knows, so one that is forced is JSON.
    forced = model.bind_tools(TOOLS, tool_choice="tide").invoke("When?")
    assert [(call["name"], call["args"]) for call in forced.tool_calls] == [("tide", {})]
    assert model.backend.prompt.endswith("<tool_call>[")
