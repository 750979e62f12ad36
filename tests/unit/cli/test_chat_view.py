"""How `specdec chat` shows answers: Markdown, drafts in colour, words that wrap, on an emulated terminal."""

from __future__ import annotations

import os
import re
import signal
import unicodedata
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from langchain_specdec.cli import chat_view
from langchain_specdec.cli.chat_conversation import Conversation
from langchain_specdec.cli.chat_talk import Talk
from langchain_specdec.cli.chat_view import PlainView, TerminalView
from langchain_specdec.cli.terminal_markdown import SafeMarkdown, blocks_of, shows_all
from langchain_specdec.completions.events import Token
from tests.support.backends import scripted
from tests.support.terminal import Screen


@pytest.fixture(autouse=True)
def _every_step_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_view, "_REDRAW_SECONDS", 0.0)
    monkeypatch.setattr(chat_view, "_DRAWING_SHARE", 0.0)


def console_on(screen: Screen, columns: int = 60, lines: int = 20, *, is_colourless: bool = False) -> Console:
    return Console(
        file=screen,  # type: ignore[arg-type]
        force_terminal=True,
        color_system=None if is_colourless else "standard",
        no_color=is_colourless,
        width=columns,
        height=lines,
        highlight=False,
    )


def tokens_of(text: str) -> list[Token]:
    return [Token(index, piece, index % 2 == 1) for index, piece in enumerate(re.findall(r"(?s).{1,4}", text))]


def shown(text: str, columns: int = 60, lines: int = 20, *, shows_markdown: bool = True) -> Screen:
    screen = Screen(columns, lines)
    view = TerminalView(console_on(screen, columns, lines), shows_markdown=shows_markdown)
    with view.answer():
        tokens = tokens_of(text)
        for start in range(0, len(tokens), 5):
            view.add(tokens[start : start + 5])
    return screen


ANSWER = """\
# Colours

There are **three** of them, said `rgb`, and
*no* more:

1. red
2. green
   - light
   - dark

```python
def f():
    return "*"
```

| name | 数 |
|------|----|
| blue | 1  |

> The end."""


def test_markdown_is_rendered_while_it_comes() -> None:
    screen = shown(ANSWER, columns=40)
    lines = screen.text.splitlines()
    assert lines[0].strip() == "Colours"
    assert lines[2:6] == ["There are three of them, said rgb, and", "no more:", "", " 1 red"]
    assert lines[6:11] == [" 2 green", "    • light", "    • dark", "", "def f():"]
    assert lines[11:13] == ['    return "*"', ""]
    assert [line.split() for line in lines[13:16]] == [["name", "数"], ["─" * 8], ["blue", "1"]]
    assert lines[16:] == ["", "▌ The end."]
    assert "\x1b[1mthree" in screen.raw


def test_a_block_is_drawn_as_far_as_it_has_come() -> None:
    screen = Screen()
    view = TerminalView(console_on(screen), shows_markdown=True)
    with view.answer():
        view.add([Token(0, "Done.\n\n- on", False)])
        assert screen.text == "Done.\n\n • on"
        view.add([Token(1, "e\n- **tw", False)])
        assert screen.text == "Done.\n\n • one\n • **tw"
        view.add([Token(2, "o**", False)])
        assert screen.text == "Done.\n\n • one\n • two"


def test_plain_answers_show_what_was_drafted_and_each_sign_of_markdown() -> None:
    screen = shown("a *b* **c**\n\n- d", shows_markdown=False)
    assert screen.text == "a *b* **c**\n\n- d"
    assert "\x1b[32m" in screen.raw


def test_without_colours_what_was_drafted_is_underlined() -> None:
    screen = Screen()
    view = TerminalView(console_on(screen, is_colourless=True), shows_markdown=False)
    assert view._drafted == "underline"
    with view.answer():
        view.add(tokens_of("drafted text"))
    assert screen.text == "drafted text"
    assert "\x1b[32m" not in screen.raw


@pytest.mark.parametrize("shows_markdown", [True, False])
def test_words_wrap_at_the_width_of_the_window(shows_markdown: bool) -> None:
    text = "Words that are broken by no window, however narrow it may be made."
    lines = shown(text, columns=20, shows_markdown=shows_markdown).text.splitlines()
    assert " ".join(lines) == text
    assert len(lines) == 5
    assert max(map(len, lines)) < 20


@pytest.mark.parametrize("shows_markdown", [True, False])
def test_wide_characters_take_two_columns(shows_markdown: bool) -> None:
    text = "日本語の文章は単語の間に空白がない。" * 3 + " 🎉🎉🎉🎉🎉🎉🎉🎉🎉🎉🎉🎉 end"
    found = shown(text, columns=20, shows_markdown=shows_markdown).text
    assert re.sub(r"\s", "", found) == text.replace(" ", "")
    for line in found.splitlines():
        assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line if c != " ") <= 20


@pytest.mark.parametrize("shows_markdown", [True, False])
@pytest.mark.parametrize("columns", [20, 47])
def test_text_higher_than_the_window_is_all_there_once(shows_markdown: bool, columns: int) -> None:
    items = "\n".join(f"- item {i} with **some more** words" for i in range(15))
    text = f"Begin.\n\n{items}\n\n" + " ".join(f"word{i}" for i in range(60))
    found = shown(text, columns=columns, lines=6, shows_markdown=shows_markdown).text
    assert re.findall(r"item\s+(\d+)", found) == [str(i) for i in range(15)]
    assert re.findall(r"word(\d+)", found) == [str(i) for i in range(60)]


def test_a_mark_that_is_closed_above_the_window_loses_no_word() -> None:
    text = "**" + " ".join(f"word{i}" for i in range(60)) + "** end"
    assert re.findall(r"word(\d+)", shown(text, columns=24, lines=5).text) == [str(i) for i in range(60)]


@pytest.mark.parametrize("widths", [(60, 30), (30, 60), (60, 20, 45)])
@pytest.mark.parametrize("shows_markdown", [True, False])
def test_another_width_loses_and_repeats_nothing(widths: Iterable[int], shows_markdown: bool) -> None:
    first, *others = widths
    screen = Screen(200, 20)  # it breaks no line by itself, as one that had another width
    console = console_on(screen, first)
    view = TerminalView(console, shows_markdown=shows_markdown)
    tokens = tokens_of("- " + " ".join(f"word{i}" for i in range(40)))
    with view.answer():
        for index, token in enumerate(tokens):
            if others and index % 20 == 19:
                console.width = others.pop(0)
            view.add([token])
    assert re.findall(r"word(\d+)", re.sub(r"\s", "", screen.text)) == [str(i) for i in range(40)]
    assert max(map(len, screen.text.splitlines()[-3:])) < console.width


@pytest.mark.skipif(not hasattr(signal, "SIGCONT"), reason="no job control here")
def test_after_a_suspension_the_answer_goes_on_below_what_the_shell_wrote() -> None:
    screen = Screen()
    view = TerminalView(console_on(screen), shows_markdown=True)
    before = signal.getsignal(signal.SIGCONT)
    with view.answer():
        view.add(tokens_of("one two "))
        screen.write("^Z\nStopped\n$ fg\n")
        os.kill(os.getpid(), signal.SIGCONT)
        view.add(tokens_of("three"))
    assert screen.text.split() == ["one", "two^Z", "Stopped", "$", "fg", "three"]
    assert signal.getsignal(signal.SIGCONT) is before


def test_a_stopped_answer_is_told_as_such_and_can_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(60, 20)
    view = TerminalView(console_on(screen), shows_markdown=True)
    talk = Talk(scripted("one two three four"), Conversation(), view)
    add = view.add

    def add_and_stop(tokens: Sequence[Token]) -> None:
        add(tokens)
        if "tw" in screen.text:
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(view, "add", add_and_stop)
    talk.ask("How far?")
    assert screen.text.split("\n")[-1] == "stopped"
    assert [message.type for message in talk.conversation.messages] == ["human", "AIMessageChunk"]
    talk.retry()
    assert talk.conversation.messages[-1].text == "one two three four"
    assert re.search(r"\d+ tokens .* tokens/step .* read before$", screen.text)


def test_an_answer_that_fails_stays_as_far_as_it_came() -> None:
    screen = Screen()
    view = TerminalView(console_on(screen), shows_markdown=True)
    with pytest.raises(KeyboardInterrupt), view.answer():
        view.add(tokens_of("one **two"))
        raise KeyboardInterrupt
    assert screen.text == "one **two"
    with view.answer():
        view.add(tokens_of("three"))
    assert screen.text == "one **two\nthree"


HOSTILE = (
    "a\x1b[31mb\x1b]0;title\x07 [bank](https://evil.example 'hint') ![pic](https://track.example/i.png) "
    "<b>bold</b> &#27;[31m &#13;\x9b31m\r<https://auto.example>\n\n"
    "<details>hidden</details>\n\n[//]: # (comment)\n[x]: https://defined.example\n\n"
    "| a |\n|---|\n| b | beyond |\n\n``` py secret words\ncode\x1b[0m\n```"
)


@pytest.mark.parametrize("shows_markdown", [True, False])
def test_what_a_model_writes_commands_nothing_and_hides_nothing(shows_markdown: bool) -> None:
    screen = shown(HOSTILE, columns=100, lines=50, shows_markdown=shows_markdown)
    # Colours, the cursor's moves within the block, and erased lines are ours.
    own = re.sub(r"\x1b\[(\d+(;\d+)*m|\d*A|2K)", "", screen.raw)
    assert "\x1b" not in own
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in own if c not in "\n\r")
    for part in (
        "evil.example",
        "hint",
        "track.example/i.png",
        "<b>bold</b>",
        "&#27;[31m",
        "https://auto.example",
        "<details>hidden</details>",
        "comment",
        "defined.example",
        "beyond",
        "secret words",
        r"code\x1b[0m",
    ):
        assert part in screen.text, part


_PARTS = [
    "a ",
    "word ",
    "**",
    "*",
    "`",
    "```\n",
    "``` py\n",
    "\n",
    "\n\n",
    "- ",
    "1. ",
    "> ",
    "# ",
    "    ",
    "\t",
    "~~",
    "\\",
]
_PARTS += [
    "| a | b |\n|--|--|\n| c | d |\n",
    "[l](http://x.y)",
    "<b>",
    "日本 ",
    "🎉",
    "---\n",
    "===\n",
    "x\n- y\n",
    "&lt;",
    "\x1b",
]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(_PARTS), max_size=25).map("".join), st.sampled_from([20, 60]), st.booleans())
def test_any_text_is_shown_whole_at_any_step(text: str, columns: int, shows_markdown: bool) -> None:
    found = shown(text, columns, 50, shows_markdown=shows_markdown).text
    assert shows_all(text, found), (text, found)


@given(st.lists(st.sampled_from(_PARTS), max_size=25).map("".join))
def test_blocks_are_the_whole_text(text: str) -> None:
    for is_ended in (False, True):
        assert "\n".join(blocks_of(text, is_ended=is_ended)).strip() == text.strip()


def test_a_narrow_window_takes_markdown_too() -> None:
    for columns in (1, 2, 5):
        console_on(Screen(columns), columns).print(SafeMarkdown(ANSWER))


@pytest.mark.parametrize("shows_markdown", [True, False])
def test_thoughts_are_shown_dimly_before_the_answer(shows_markdown: bool) -> None:
    screen = Screen()
    view = TerminalView(console_on(screen), shows_markdown=shows_markdown)
    with view.answer():
        for piece in ("Is it *", "red?\nNo."):
            view.think(piece)
        view.add(tokens_of("It is **blue**."))
    # What is thought is no Markdown.
    answer = "It is blue." if shows_markdown else "It is **blue**."
    assert screen.text == f"Is it *red?\nNo.\n\n{answer}"
    assert "\x1b[2mNo." in screen.raw


def test_pipes_get_answers_without_thoughts(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    with view.answer():
        view.think("Hm.")
        view.add(tokens_of("Blue."))
    assert capsys.readouterr().out == "Blue.\n"
