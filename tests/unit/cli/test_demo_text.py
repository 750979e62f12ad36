"""Texts of the demo: files of every kind, titles, whole sentences and loops."""

from __future__ import annotations

from pathlib import Path

import pytest

from langchain_specdec.cli.demo_text import (
    ends_sentence,
    is_looping,
    paragraphs_of,
    repeated_share,
    sentence_check,
    title_of,
)


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_paragraphs_are_lines_and_markdown_keeps_its_own(line_break: str) -> None:
    text = (
        "# Notes\nThe cat\n  sat.\n\n \t\nIt\nran.\n\n- one\n  goes on\n- two\n3. three\n\n| a | b |\n| 1 | 2 |\n\n"
        "```\nx = 1\n\n    y\n```\nafter\n> said\nhe\n"
    )
    assert paragraphs_of(text.replace("\n", line_break)) == (
        "# Notes\nThe cat sat.\n\nIt ran.\n\n- one goes on\n- two\n3. three\n\n| a | b |\n| 1 | 2 |\n\n"
        "```\nx = 1\n\n    y\n```\nafter\n> said he"
    )


def test_an_underlined_heading_keeps_its_line() -> None:
    text = paragraphs_of("Notes\n=====\n\nThe cat\nsat.\n")
    assert text == "Notes\n=====\n\nThe cat sat."
    assert title_of(text, Path("x.md")) == "Notes"


@pytest.mark.parametrize(
    ("document", "path", "title"),
    [
        ("The cat sat on the mat.\n\nIt ran.", Path("folder/my notes.txt"), "my notes.txt"),
        ("## A  title ##\n\nText.", Path("notes.md"), "A  title"),
        ("#hashtag and more", Path("notes.md"), "notes.md"),
        ("- item", Path("list.md"), "list.md"),
        ("The cat sat.", Path("-"), "standard input"),
        ("x", Path("caf\udce9.txt"), "caf?.txt"),
        ("# " + "long " * 40, None, "long " * 15 + "long…"),
    ],
)
def test_a_document_is_called_by_its_heading_or_its_file(document: str, path: Path | None, title: str) -> None:
    assert title_of(document, path) == title


@pytest.mark.parametrize(
    ("text", "is_end"),
    [
        ("The cat sat.", True),
        ('He said "no." ', True),
        ("It ended in 2023.", True),
        ("Is it so?", True),
        ("猫坐着。", True),
        ("- one point\n", True),
        ("**Bold.**", True),
        ("Key points:\n", False),
        ("The cat sat", False),
        ("It is 3.", False),
        ("the keeper J.", False),
        ("together with Mr.", False),
        ("together with Mrs.", False),
        ("", False),
    ],
)
def test_where_a_sentence_ends(text: str, is_end: bool) -> None:
    assert ends_sentence(text) is is_end


def test_a_text_ends_at_a_sentence_near_the_limit_only() -> None:
    make = sentence_check(10)
    check = make()
    tokens = ["The", " cat", " sat", ".", " It", " ran", " away", " fast", ".", " And"]
    assert [check(token) for token in tokens].index(True) == 8
    assert not any(map(make(), ["so"] * 10)), "each text has a check of its own"


def test_a_text_that_loops_is_told_from_one_that_does_not() -> None:
    told = (
        "In 1698 Henry Winstanley lit the first lighthouse in the open sea. In 1759 John Smeaton finished a tower of "
        "granite on the same rocks. In 1823 Augustin Fresnel put a new kind of lens into the lighthouse of Cordouan."
    )
    assert repeated_share([told]) < 0.02
    assert repeated_share([told, told]) < 0.02, "each summary is looked at by itself"
    assert is_looping(repeated_share([told, "The keepers left one by one, and the lamp was out. " * 8]))
    assert is_looping(repeated_share(["灯塔守护者离开了灯塔" * 12]))
    assert repeated_share(["", "short"]) == 0.0
