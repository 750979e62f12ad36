"""The formats of many families: the same calls however the text is cut, and no text that raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.chat.tool_calls import BrokenToolCall, GenericParser, QwenCoderParser, ToolCall, ToolCallParser
from tests.support.tool_formats import FAMILIES, RECORDED, SCHEMAS, Recorded, check_cuts, joined, parse

pytestmark = pytest.mark.one_version

recorded = pytest.mark.parametrize("recording", RECORDED.values(), ids=RECORDED)


@recorded
def test_a_recorded_output_has_these_pieces(recording: Recorded) -> None:
    assert parse(recording.parser, [recording.text]) == joined(recording.pieces)


@recorded
def test_every_split_gives_the_same(recording: Recorded) -> None:
    text, expected = recording.text, joined(recording.pieces)
    for cut in range(len(text) + 1):
        assert parse(recording.parser, [text[:cut], text[cut:]]) == expected, f"cut at {cut}"
    for size in range(1, len(text)):
        chunks = [text[start : start + size] for start in range(0, len(text), size)]
        assert parse(recording.parser, chunks) == expected, f"chunks of {size}"


@recorded
def test_no_part_of_a_call_is_ever_released_as_text(recording: Recorded) -> None:
    reader = recording.parser(SCHEMAS)
    released = "".join(p for c in recording.text for p in reader.feed(c) if isinstance(p, str))
    assert "".join(piece for piece in recording.pieces if isinstance(piece, str)).startswith(released)


@recorded
def test_one_call_ends_the_answer_wherever_it_is_cut(recording: Recorded) -> None:
    calls = [piece for piece in recording.pieces if not isinstance(piece, str)]
    for size in (1, 3, 1000):
        reader = recording.parser(SCHEMAS)
        reader.expect_one_call()
        chunks = [recording.text[start : start + size] for start in range(0, len(recording.text), size)]
        found = [piece for chunk in chunks for piece in reader.feed(chunk)] + reader.close()
        first = [piece for piece in found if not isinstance(piece, str)]
        if calls and isinstance(calls[0], ToolCall):
            assert first == calls[:1]
        else:
            assert [type(piece) for piece in first] == [BrokenToolCall] * bool(calls)


def test_a_value_without_its_end_is_whole_only_where_the_model_has_ended_the_call() -> None:
    text = "<tool_call>\n<function=ferry>\n<parameter=harbour>\nKiel\n</function>\n"
    for ended, rest in ((True, ""), (False, ""), (True, "</tool_call>"), (False, "</tool_call>")):
        reader = QwenCoderParser(SCHEMAS)
        (call,) = [*reader.feed(text + rest), *reader.close(is_whole=ended)]
        # Where the text was cut, the value may have held the tag.
        assert isinstance(call, ToolCall if ended or rest else BrokenToolCall)


def test_broken_calls_of_every_family_tell_why() -> None:
    broken = [p for recording in RECORDED.values() for p in recording.pieces if isinstance(p, BrokenToolCall)]
    assert all(piece.error.endswith(".") and piece.text for piece in broken)


# The marks of all formats, so that random texts come near to calls.
_FRAGMENTS = [
    *dict.fromkeys(
        m for p in FAMILIES for m in (p.mark, *p.further_marks, *p.inner_marks, p.call_begin, *p.call_frame)
    ),
    *("ferry", "tide", "harbour", "cars", "(", ")", "=", "ferry(", "call:ferry{", ">", "<function=ferry>", "```", "\n"),
    *(
        '{"harbour": "Kiel"}',
        '"',
        "'",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "1e999",
        "-",
        "\\ud800",
        "\\",
        "None",
        "é",
        " to=",
    ),
]
texts = st.lists(st.sampled_from(_FRAGMENTS) | st.text(max_size=4), max_size=14).map("".join)


@pytest.mark.slow
@pytest.mark.parametrize("parser", FAMILIES)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_text_gives_the_same_pieces_however_it_is_cut(parser: type[ToolCallParser], data: st.DataObject) -> None:
    check_cuts(parser, data.draw(texts), data)


@pytest.mark.parametrize("parser", [*FAMILIES, GenericParser])
@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_plain_text_passes_whole(parser: type[ToolCallParser], text: str) -> None:
    if not any(mark in text for mark in (parser.mark, *parser.further_marks)):
        assert "".join(str(piece) for piece in parse(parser, list(text))) == text


@pytest.mark.parametrize("parser", FAMILIES)
@pytest.mark.parametrize("filling", ["[" * 100_000, '{"a":' * 50_000, "(" * 100_000, "1" * 5000], ids=lambda f: f[:5])
def test_hostile_nesting_raises_nothing(parser: type[ToolCallParser], filling: str) -> None:
    before, between, after = parser.call_frame
    for text in (
        f"{parser.call_begin}{before}ferry{between}{filling}{after}{parser.call_end}",
        f"<tool_call>\n<function=ferry>\n<parameter=stops>\n{filling}\n</parameter>\n</function>\n</tool_call>",
        f"<tool_call>ferry\n<arg_key>stops</arg_key>\n<arg_value>{filling}</arg_value>\n</tool_call>",
        f"[ferry(stops={filling})]",
        f"<|tool_call>call:ferry{{stops:{filling}}}<tool_call|>",
    ):
        for piece in parse(parser, [text]):
            if isinstance(piece, ToolCall):
                json.dumps(piece.arguments, allow_nan=False)
