"""Parsers of tool calls: what models write becomes the same calls, however the text is cut into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.chat.tool_calls import (
    BrokenToolCall,
    GenericParser,
    HermesParser,
    LlamaParser,
    MistralParser,
    Piece,
    ToolCall,
    ToolCallParser,
    parser_class,
)
from tests.support import tool_formats
from tests.support.tool_formats import check_cuts, joined

pytestmark = pytest.mark.one_version

TOOLS: dict[str, Any] = {name: {} for name in ("get_weather", "add", "写天气")}


class Recorded(NamedTuple):
    """What a model of a family writes, and what is in it."""

    parser: type[ToolCallParser]
    text: str
    pieces: Sequence[Piece]


def weather(place: str, **more: object) -> ToolCall:
    return ToolCall("get_weather", {"location": place, **more})


RECORDED = {
    "hermes_one": Recorded(
        HermesParser,
        '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Paris", "unit": "celsius"}}\n</tool_call>',
        [weather("Paris", unit="celsius")],
    ),
    "hermes_thought_then_two": Recorded(
        HermesParser,
        "<think>\nTwo cities, so two calls.\n</think>\n\nI look both up.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"location": "São Paulo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"location": "東京"}}\n</tool_call>',
        [
            "<think>\nTwo cities, so two calls.\n</think>\n\nI look both up.",
            weather("São Paulo"),
            weather("東京"),
        ],
    ),
    "hermes_text_after": Recorded(
        HermesParser,
        'First <tool_call>{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}]"}]}}</tool_call>\nthen more.\n',
        ["First", ToolCall("add", {"a": 1, "b": [2, {"c": "}]"}]}), "\nthen more.", "\n"],
    ),
    "hermes_tag_within_string": Recorded(
        HermesParser,
        '<tool_call>{"name": "add", "arguments": {"a": "</tool_call><tool_call> \\" \\\\"}}</tool_call>',
        [ToolCall("add", {"a": '</tool_call><tool_call> " \\'})],
    ),
    "hermes_no_closing_tag": Recorded(
        HermesParser,
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n<tool_call>{"name": "add", "arguments": "{\\"a\\": 2}"}',
        [ToolCall("add", {"a": 1}), ToolCall("add", {"a": 2})],
    ),
    "hermes_no_json": Recorded(
        HermesParser,
        "So <tool_call>\nget_weather(Paris)\n</tool_call> it is",
        [
            "So",
            BrokenToolCall("<tool_call>\nget_weather(Paris)\n</tool_call>", "There is no JSON object."),
            " it is",
        ],
    ),
    "hermes_extra_brace": Recorded(
        HermesParser,
        '<tool_call>\n{"name": "add", "arguments": {}}}\n</tool_call>',
        [
            BrokenToolCall(
                '<tool_call>\n{"name": "add", "arguments": {}}}\n</tool_call>',
                "The JSON object is followed by more text.",
                "add",
            )
        ],
    ),
    "hermes_cut_off": Recorded(
        HermesParser,
        'Hm.\n<tool_call>\n{"name": "add", "arguments": {"a": 1',
        [
            "Hm.",
            BrokenToolCall(
                '<tool_call>\n{"name": "add", "arguments": {"a": 1', "The text ended within the call.", "add"
            ),
        ],
    ),
    "hermes_unclosed_string_then_good_one": Recorded(
        HermesParser,
        '<tool_call>{"name": "add", "arguments": {"a": "1}}</tool_call>'
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
        [
            BrokenToolCall(
                '<tool_call>{"name": "add", "arguments": {"a": "1}}</tool_call>',
                "The text ended within the call.",
                "add",
            ),
            ToolCall("add", {"a": 1}),
        ],
    ),
    "hermes_named": Recorded(
        HermesParser,
        "Write `<tool_call>` and </tool_call>, as in <tool_call></tool_call>.\n<tool_call>\nfirst\n</tool_call>\n"
        '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\nNot <tool_call>.',
        [
            "Write `<tool_call>` and </tool_call>, as in <tool_call></tool_call>.\n<tool_call>\nfirst\n</tool_call>",
            ToolCall("add", {}),
            "\nNot <tool_call>.",
        ],
    ),
    "hermes_meant": Recorded(
        HermesParser,
        '<tool_call>\n<function=add>\n</function>\n</tool_call><tool_call>```json\n{"name": "add"}\n```</tool_call>'
        "<tool_call>addition</tool_call><tool_call>add",
        [
            BrokenToolCall("<tool_call>\n<function=add>\n</function>\n</tool_call>", "There is no JSON object."),
            BrokenToolCall('<tool_call>```json\n{"name": "add"}\n```</tool_call>', "There is no JSON object.", "add"),
            "<tool_call>addition</tool_call>",
            BrokenToolCall("<tool_call>add", "There is no JSON object."),
        ],
    ),
    "hermes_not_a_mark": Recorded(HermesParser, "a < b, <tool> and <tool_cal", ["a < b, <tool> and <tool_cal"]),
    "smollm_list": Recorded(
        GenericParser,
        '<tool_call>[{"name": "add", "arguments": {"a": 1}}, {"name": "get_weather", "arguments": '
        '{"location": "Ulm"}}]</tool_call>',
        [ToolCall("add", {"a": 1}), weather("Ulm")],
    ),
    "smollm_empty_list": Recorded(GenericParser, "<tool_call>[]</tool_call>", []),
    "smollm_half_a_list": Recorded(
        GenericParser,
        '<tool_call>[{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": [1]}]</tool_call>',
        [
            ToolCall("add", {"a": 1}),
            BrokenToolCall('<tool_call>{"name": "add", "arguments": [1]}', "The arguments are not an object.", "add"),
        ],
    ),
    "generic_fenced": Recorded(
        GenericParser,
        'I call it:\n```json\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n```\nThat was it.',
        ["I call it:", ToolCall("add", {"a": 1, "b": 2}), "\nThat was it."],
    ),
    "generic_bare_list": Recorded(
        GenericParser,
        '[{"name": "add", "arguments": {"a": 1}}]',
        [ToolCall("add", {"a": 1})],
    ),
    "generic_openai": Recorded(
        GenericParser,
        '{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}',
        [ToolCall("add", {"a": 1})],
    ),
    "generic_other_json": Recorded(
        GenericParser,
        'An example:\n{"name": "Ada", "type": "person"}\nand\n```python\nx = {"name": "add"}\n```\n{"a": [1]}',
        ['An example:\n{"name": "Ada", "type": "person"}\nand\n```python\nx = {"name": "add"}\n```\n{"a": [1]}'],
    ),
    "generic_cut_off": Recorded(
        GenericParser,
        'Well.\n{"name": "add", "arguments": {"a": ',
        [
            "Well.",
            BrokenToolCall('<tool_call>{"name": "add", "arguments": {"a": ', "The text ended within the call.", "add"),
        ],
    ),
    "generic_bracket": Recorded(
        GenericParser,
        '{"name": "add", "arguments": {"a": 1]}\nSorry.',
        [
            BrokenToolCall('<tool_call>{"name": "add", "arguments": {"a": 1]}', "A bracket does not match.", "add"),
            "\nSorry.",
        ],
    ),
    "llama_bare": Recorded(
        LlamaParser, '{"name": "get_weather", "parameters": {"location": "Oslo"}}', [weather("Oslo")]
    ),
    "llama_two": Recorded(
        LlamaParser,
        '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1}}; '
        '{"name": "写天气", "parameters": {"q": "雨"}}',
        [ToolCall("add", {"a": 1}), ToolCall("写天气", {"q": "雨"})],
    ),
    "llama_code": Recorded(
        LlamaParser,
        '<|python_tag|>brave_search.call(query="weather")',
        [BrokenToolCall('<|python_tag|>brave_search.call(query="weather")', "There is no JSON object.")],
    ),
    "llama_text": Recorded(
        LlamaParser,
        'Use {"name": "add"} for that.\nThen; {x}\n\n',
        ['Use {"name": "add"} for that.\nThen; {x}', "\n\n"],
    ),
    "mistral_list": Recorded(
        MistralParser,
        '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "a1B2c3D4e"}, '
        '{"name": "get_weather", "arguments": {"location": "Bonn"}}]',
        [ToolCall("add", {"a": 1}, "a1B2c3D4e"), weather("Bonn")],
    ),
    "mistral_new": Recorded(
        MistralParser,
        'Sure.[TOOL_CALLS]get_weather[ARGS]{"location": "Bonn"}[TOOL_CALLS]add[CALL_ID]a1B2c3D4e[ARGS]{"a": {}}',
        ["Sure.", weather("Bonn"), ToolCall("add", {"a": {}}, "a1B2c3D4e")],
    ),
    "mistral_broken": Recorded(
        MistralParser,
        '[TOOL_CALLS]add[TOOL_CALLS]add{"a": x}[TOOL_CALLS][ARGS]{}',
        [
            BrokenToolCall("[TOOL_CALLS]add", "There are no arguments.", "add"),
            BrokenToolCall(
                '[TOOL_CALLS]add{"a": x}',
                "The arguments are not JSON: Expecting value: line 1 column 7 (char 6).",
                "add",
            ),
            BrokenToolCall("[TOOL_CALLS][ARGS]{}", "There is no name before the arguments."),
        ],
    ),
    "mistral_cut_off": Recorded(
        MistralParser,
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}},',
        [
            BrokenToolCall(
                '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}},', "The text ended within the call.", "add"
            )
        ],
    ),
}
FAMILIES = [HermesParser, GenericParser, LlamaParser, MistralParser]
recorded = pytest.mark.parametrize("recording", RECORDED.values(), ids=RECORDED)


def parse(parser: type[ToolCallParser], chunks: Sequence[str]) -> list[Piece]:
    """What `tool_formats.parse` gives for the tools of these texts."""
    return tool_formats.parse(parser, chunks, TOOLS)


@recorded
def test_a_recorded_output_has_these_pieces(recording: Recorded) -> None:
    assert parse(recording.parser, [recording.text]) == joined(recording.pieces)


@recorded
def test_one_character_at_a_time(recording: Recorded) -> None:
    assert parse(recording.parser, list(recording.text)) == joined(recording.pieces)


@recorded
def test_every_split_in_two(recording: Recorded) -> None:
    for cut in range(len(recording.text) + 1):
        chunks = [recording.text[:cut], recording.text[cut:]]
        assert parse(recording.parser, chunks) == joined(recording.pieces), f"cut at {cut}: {chunks}"


@recorded
def test_every_size_of_chunk(recording: Recorded) -> None:
    text = recording.text
    for size in range(2, len(text)):
        chunks = [text[start : start + size] for start in range(0, len(text), size)]
        assert parse(recording.parser, chunks) == joined(recording.pieces), f"chunks of {size}"


@recorded
def test_no_part_of_a_mark_is_ever_released_as_text(recording: Recorded) -> None:
    reader = recording.parser(TOOLS)
    released = "".join(p for c in recording.text for p in reader.feed(c) if isinstance(p, str))
    expected = "".join(piece for piece in recording.pieces if isinstance(piece, str))
    assert expected.startswith(released)


# Fragments of which the formats are made, so that random texts come near to calls.
_FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<tool_",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "```json\n",
    "```",
    '{"name": "add", "arguments": {"a": 1}}',
    '{"name": "add", "parameters": ',
    '{"name": "',
    '{"a": NaN}',
    '{"name": "add", "arguments": {"a": 1e999, "b": "\\ud800"}}',
    "add",
    *'{}[]",:;\\ \n',
    "é",
    "\U0001f600",
]
texts = st.lists(st.sampled_from(_FRAGMENTS) | st.text(max_size=5), max_size=14).map("".join)


@pytest.mark.slow
@pytest.mark.parametrize("parser", FAMILIES)
@settings(max_examples=400)
@given(data=st.data())
def test_any_text_gives_the_same_pieces_however_it_is_cut(parser: type[ToolCallParser], data: st.DataObject) -> None:
    check_cuts(parser, data.draw(texts), data, TOOLS)


@pytest.mark.parametrize("parser", FAMILIES)
@settings(max_examples=200)
@given(text=st.text())
def test_plain_text_passes_whole(parser: type[ToolCallParser], text: str) -> None:
    if parser.mark not in text:
        assert "".join(str(piece) for piece in parse(parser, list(text))) == text


@pytest.mark.parametrize("parser", FAMILIES)
@pytest.mark.parametrize(
    "arguments",
    ["[" * 100_000, '{"a": ' * 50_000 + "1" + "}" * 50_000, '{"a": ' + "1" * 5000 + "}"],
    ids=["open", "deep", "huge"],
)
def test_hostile_json_is_a_broken_call(parser: type[ToolCallParser], arguments: str) -> None:
    text = parser.mark + '{"name": "add", "arguments": ' + arguments + "}"
    (piece,) = parse(parser, [text])
    assert isinstance(piece, BrokenToolCall)
    assert piece.name == "add"


def test_a_mark_that_nothing_follows_is_text_where_the_model_ends_there() -> None:
    for is_whole in (True, False):
        for text in ("So: <tool_call>", "<tool_call>\n"):
            reader = HermesParser(TOOLS)
            pieces = joined([*reader.feed(text), *reader.close(is_whole=is_whole)])
            if is_whole:
                assert pieces == [text]
            else:
                assert isinstance(pieces[-1], BrokenToolCall)


def test_the_text_behind_a_mark_that_is_named_is_not_held() -> None:
    reader = HermesParser(TOOLS)
    found = [joined(reader.feed(text)) for text in ("a `", "<tool_call>", "` b", " <tool_call> ", "ad", "di", "tion")]
    assert found == [["a `"], [], ["<tool_call>` b"], [], [], [" <tool_call> addi"], ["tion"]]


def test_the_parser_is_chosen_by_the_template() -> None:
    assert parser_class("... <tool_call> ...", shows_tools=True) is HermesParser
    assert parser_class("... <tool_call> ...", shows_tools=False) is GenericParser
    assert parser_class("[AVAILABLE_TOOLS] [TOOL_CALLS]", shows_tools=True) is MistralParser
    assert parser_class("<|start_header_id|> <|python_tag|>", shows_tools=True) is LlamaParser
    assert parser_class('<|start_header_id|> {"name": x, "parameters": y}', shows_tools=True) is LlamaParser
    assert parser_class("{{ tools }}", shows_tools=True) is GenericParser
