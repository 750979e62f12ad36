"""Thoughts are told from answers wherever a reply is cut and whatever it holds; stop strings count in answers only."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from langchain_specdec.completions.stop_strings import StopText
from langchain_specdec.completions.thoughts import Reasoning, StopsOfAnswer, Thoughts, ThoughtSplitter, stops_of

TAGS = Thoughts(("<think>",), "</think>")
OPEN = Thoughts(("<think>",), "</think>", is_open=True)
SINGLE = Thoughts(("<think>",), "</think>", is_open=True, is_single=True)
GRANITE = Thoughts(("<think>",), "</think>", ("<response>", "</response>"))
GEMMA = Thoughts(("<|channel>thought\n", "<|channel>thought"), "<channel|>", ("<|channel>", "<channel|>"))
HARMONY = Thoughts(
    ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>analysis<|message|>"),
    "<|end|>",
    implied_ends=("<|start|>assistant", "<|channel|>final", "<|channel|>commentary", "<|channel|>analysis<|message|>"),
)
HARMONY_OPEN = replace(HARMONY, is_open=True)
# What is written, what was thought, and what was answered.
REPLIES: dict[str, tuple[Thoughts, str, str, str]] = {
    "a thought": (TAGS, "<think>\nTwo and two.\n</think>\n\nFour.\n", "Two and two.", "Four.\n"),
    "the template began it": (OPEN, "Two and two.\n</think>\n\nFour.", "Two and two.", "Four."),
    "and the model again": (OPEN, "\n<think>\nTwo <think> two.</think>Four.", "Two <think> two.", "Four."),
    "an end too many": (TAGS, "<think>Hm.</think>\n</think>\nFour </think>.", "Hm.", "Four </think>."),
    "an end alone": (TAGS, " </think>\n\nFour.", "", "Four."),
    "one of an answer that goes on": (replace(TAGS, is_begun=True), " </think> is it.", "", " </think> is it."),
    "no thought": (TAGS, " Four </think> is <thin> it.\n", "", " Four </think> is <thin> it.\n"),
    "an empty thought": (TAGS, "<think>\n\n</think>\n\nFour.", "", "Four."),
    "white space before it": (TAGS, "\n <think>Hm.</think> Four.", "Hm.", "Four."),
    "white space alone": (TAGS, "\n \n", "", "\n \n"),
    "a thought alone": (TAGS, "<think>Hm.\n</think>\n\n", "Hm.", ""),
    "no end": (TAGS, "<think>\nTwo and </thin", "Two and </thin", ""),
    "no end, from the template": (OPEN, "Two and two", "Two and two", ""),
    "several": (TAGS, "<think>One.</think>A <think> Two.\n</think> B", "One.\n\nTwo.", "A B"),
    "at once": (TAGS, "<think>One.</think>\n<think>Two.</think>B", "One.\n\nTwo.", "B"),
    "a mark that is mentioned": (TAGS, "<think>Hm.</think>A `<think>` is a tag.", "Hm.", "A `<think>` is a tag."),
    "one in JSON": (TAGS, '{"a":"<think>b</think>"}', "", '{"a":"<think>b</think>"}'),
    "one after a quote": (TAGS, 'Say "x"<think>Two.</think> B', "Two.", 'Say "x"B'),
    "one, before a form": (SINGLE, 'Hm.</think>\n{"a": "<think>b</think>"}', "Hm.", '{"a": "<think>b</think>"}'),
    "marks around the answer": (GRANITE, "<think>Hm.</think>\n<response>\nFour.</response>", "Hm.", "Four."),
    "gemma": (GEMMA, "<|channel>thought\nTwo.<channel|>Four.<channel|>", "Two.", "Four."),
    "gemma, in short": (GEMMA, "<|channel>thoughtTwo.<channel|>Four.", "Two.", "Four."),
    "gemma, another channel": (GEMMA, "<|channel>thinFour.", "", "thinFour."),
    "harmony": (
        HARMONY,
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Four.",
        "One.\n\nTwo.",
        "<|start|>assistant<|channel|>final<|message|>Four.",
    ),
    "harmony, a call": (
        HARMONY,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.f<|channel|>commentary",
        "Hm.",
        "<|start|>assistant to=functions.f<|channel|>commentary",
    ),
    "harmony, no end before the answer": (
        HARMONY,
        "<|channel|>analysis<|message|>Hm. <|channel|>final<|message|>Four.",
        "Hm.",
        "<|channel|>final<|message|>Four.",
    ),
    "harmony, no end before a message": (
        HARMONY_OPEN,
        "Hm.\n<|start|>assistant<|channel|>final<|message|>Four.",
        "Hm.",
        "<|start|>assistant<|channel|>final<|message|>Four.",
    ),
    "harmony, no end before a call": (
        HARMONY,
        "<|channel|>analysis<|message|>Hm.<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}",
        "Hm.",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}",
    ),
    "harmony, no end before further thoughts": (
        HARMONY,
        "<|channel|>analysis<|message|>One.<|channel|>analysis<|message|>Two.<|start|>assistant<|channel|>analysis"
        "<|message|>Three.<|channel|>final<|message|>Four.",
        "One.\n\nTwo.\n\nThree.",
        "<|channel|>final<|message|>Four.",
    ),
    "harmony, begun once more": (
        HARMONY_OPEN,
        "<|channel|>analysis<|message|>Hm.<|end|><|channel|>final<|message|>Four.",
        "Hm.",
        "<|channel|>final<|message|>Four.",
    ),
    "harmony, marks that are mentioned": (
        HARMONY,
        "<|channel|>analysis<|message|>Not `<|channel|>final` nor <|channel|> fin.<|end|>Four.",
        "Not `<|channel|>final` nor <|channel|> fin.",
        "Four.",
    ),
    "harmony, before a form": (
        replace(HARMONY_OPEN, is_single=True),
        "Hm. <|channel|>final<|end|><|channel|>final<|message|>4",
        "Hm. <|channel|>final",
        "<|channel|>final<|message|>4",
    ),
}


def read(thoughts: Thoughts, chunks: Iterable[str]) -> tuple[str, str]:
    """What was thought and what was answered."""
    splitter = ThoughtSplitter(thoughts)
    parts = [part for chunk in chunks for part in splitter.feed(chunk)]
    parts += splitter.close()
    assert all(part if isinstance(part, str) else part.text for part in parts)
    thought = "".join(part.separator + part.text for part in parts if isinstance(part, Reasoning))
    return thought, "".join(part for part in parts if isinstance(part, str))


def cuts(text: str, rng: random.Random) -> Iterable[Sequence[str]]:
    """Every cut in two, every character by itself, and some cuts in several."""
    yield [text]
    yield list(text)
    for place in range(1, len(text)):
        yield [text[:place], text[place:]]
    for _ in range(30):
        places = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(6)))
        yield [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("name", REPLIES)
def test_every_cut_of_a_reply_gives_the_same_thoughts_and_answer(name: str) -> None:
    thoughts, text, thought, answer = REPLIES[name]
    for chunks in cuts(text, random.Random(name)):
        assert read(thoughts, chunks) == (thought, answer), chunks


@pytest.mark.parametrize("thoughts", [TAGS, OPEN, SINGLE, GRANITE, GEMMA, HARMONY, HARMONY_OPEN])
def test_no_text_raises_and_no_cut_matters(thoughts: Thoughts) -> None:
    rng = random.Random(repr(thoughts))
    marks = [*thoughts.begins, thoughts.end, *thoughts.strays, *thoughts.implied_ends]
    scraps = [
        *marks,
        *(mark[: rng.randrange(len(mark))] for mark in marks),
        " ",
        "\n",
        "a",
        "<",
        "|",
        "é",
        "<tool_call>",
    ]
    for _ in range(300):
        text = "".join(rng.choice(scraps) for _ in range(rng.randrange(12)))
        whole = read(thoughts, [text])
        for _ in range(5):
            place = rng.randrange(len(text) + 1)
            assert read(thoughts, [text[:place], text[place:]]) == whole, text
        assert read(thoughts, list(text)) == whole, text


def test_no_more_is_held_back_than_may_become_a_mark() -> None:
    splitter = ThoughtSplitter(TAGS)
    released = [
        list(splitter.feed(text)) for text in ("a", "<", "b", "<thi", "nk", "> ", "c ", "d", "</", "e", "</think>", "f")
    ]
    thought = [Reasoning("c"), Reasoning(" d"), Reasoning("</e")]
    assert released == [["a"], [], ["<b"], [], [], [], [thought[0]], [thought[1]], [], [thought[2]], [], ["f"]]


def test_marks_within_a_call_are_text() -> None:
    splitter = ThoughtSplitter(TAGS)
    text = "<think>x</think>call(<think>y</think>)"
    parts = [part for part in splitter.feed(text, lambda: True) if isinstance(part, str)]
    assert "".join([*parts, *map(str, splitter.close())]) == text


def stopped(stop: Sequence[str], thoughts: Thoughts, chunks: Iterable[str]) -> tuple[str, bool]:
    stops = stops_of(stop, thoughts)
    text = ""
    for chunk in chunks:
        text += stops.add(chunk)
        if stops.is_found:
            return text, True
    text += stops.flush()
    return text, stops.is_found


def test_stop_strings_are_looked_for_in_the_answer_only() -> None:
    text = "One. Two.</think>\n\nThree. Four."
    for chunks in cuts(text, random.Random(0)):
        assert stopped(["."], OPEN, chunks) == ("One. Two.</think>\n\nThree", True)
        assert stopped(["Two"], OPEN, chunks) == (text, False)
        # None begins in a thought and ends in the answer.
        assert stopped([".</think>", "k>\n"], OPEN, chunks) == (text, False)
    everywhere = Thoughts(("<think>",), "</think>", is_open=True, has_stops=True)
    assert stopped(["."], everywhere, [text]) == ("One", True)


def test_no_stop_string_is_looked_for_in_headers_of_an_answer() -> None:
    how = replace(HARMONY, header_begins=("<|start|>", "<|channel|>"), header_end="<|message|>", is_in_header=True)
    final = "<|channel|>final<|message|>"
    head = f"<|channel|>analysis<|message|>Hm, final.<|end|><|start|>assistant{final}"
    for text, place in ((f"{head}A final one.", len(head)), (f"{final}A final one.", len(final))):
        for chunks in cuts(text, random.Random(0)):
            assert stopped(["final"], how, chunks) == (text[: place + 2], True)
            assert stopped(["assistant", "channel", ">A", "<|message|>"], how, chunks) == (text, False)
            assert stopped(["A"], how, chunks) == (text[:place], True)
    # Where the prompt has ended the header, the text begins.
    assert stopped(["final"], replace(how, is_in_header=False), ["A final"]) == ("A ", True)
    assert stopped(["<|x"], replace(how, is_in_header=False), ["A <|", "x"]) == ("A ", True)


def test_what_was_held_back_may_be_a_stop_string() -> None:
    assert stopped(["<"], TAGS, ["a", "<"]) == ("a", True)
    assert stopped(["b<"], TAGS, ["a b<"]) == ("a ", True)
    assert stopped(["x"], TAGS, ["a <think>x</thin"]) == ("a <think>x</thin", False)


def test_special_tokens_are_parts_of_stop_strings_in_the_answer_only() -> None:
    stops = StopsOfAnswer(["<eot>"], OPEN)
    assert stops.add("x") + stops.add_special("<eot>") == "x"
    assert not stops.is_found
    assert stops.add("</think>y") + stops.add_special("<eot>") == "</think>y"
    assert stops.is_found


def test_texts_without_thoughts_or_stops_take_the_short_way() -> None:
    assert isinstance(stops_of(["a"], None), StopText)
    assert isinstance(stops_of([], TAGS), StopText)
