"""The command lines that the pages show, and the options that the programs have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from tests.support.source_code import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S.*\n)(?: {4}.*\n|\n(?= {4}))*")
_PLAN = re.compile(r"<!-- plan: .*?<!-- end of the plan -->", re.DOTALL)
_LEADING = ("do", "while", "done", "nohup", "then")


class Shown(NamedTuple):
    """A command as a page shows it.

    Attributes:
        page: Name of the page.
        line: All of the line that it stands in, pipes included.
        words: Its program and arguments, without what is before and after them in the line.
        in_block: Whether it is meant to be pasted, and not a part of a sentence.
    """

    page: str
    line: str
    words: tuple[str, ...]
    in_block: bool


def _simple_commands(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line of a shell, without redirections and variables."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|<>&")
    lexer.whitespace_split = True
    words: list[str] = []
    is_file = False
    for word in [*lexer, ";"]:
        if re.fullmatch(r"[;|&]+", word):
            while words and (words[0] in _LEADING or re.match(r"[A-Z_][A-Z0-9_]*=", words[0])):
                del words[0]
            if words:
                yield tuple(words)
            words = []
        elif re.fullmatch(r"[<>]+", word):
            is_file = True
        elif is_file:
            is_file = False
        else:
            words.append(word)


def blocks_of(text: str) -> Iterator[str]:
    """The blocks of a page that are no Python and no output: commands, and a few formulas and prompts."""
    for fence in _FENCE.finditer(text):
        if fence[1] not in ("python", "text"):
            yield fence[2]
    for block in _INDENTED.finditer(_FENCE.sub("", text)):
        yield block[0]


def _page_text(path: Path) -> str:
    return _PLAN.sub("", path.read_text(encoding="utf-8"))


def lines_of(block: str) -> list[str]:
    """The lines of a block, those that go on joined, without comments and a prompt."""
    joined = re.sub(r"\\\n\s*", "", block)
    lines = [re.sub(r"^\$ |(?:^|\s+)# .*$", "", line.strip()) for line in joined.splitlines()]
    return [line for line in lines if line]


def spans_of(text: str) -> list[str]:
    """What stands between backquotes in the prose and the tables of a page."""
    prose = _INDENTED.sub("", _FENCE.sub("", text))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def shown_commands(programs: frozenset[str]) -> list[Shown]:
    """Every command of the pages: each line of their blocks, and each span of prose that begins with a program."""
    found = []
    for path in PAGES:
        text, name = _page_text(path), str(path.relative_to(ROOT))
        for block in blocks_of(text):
            for line in lines_of(block):
                found += [Shown(name, line, words, True) for words in _simple_commands(line)]
        for span in spans_of(text):
            if re.match(r"(?:nohup )?([\w./-]+)(?: |$)", span) and span.removeprefix("nohup ").split()[0] in programs:
                plain = re.sub(r"[…\[\]]", " ", span) if span.count("'") % 2 == 0 and "pip " not in span else span
                if len(plain.split()) > 1:
                    found += [Shown(name, span, words, False) for words in _simple_commands(plain)]
    return found


def option_spans() -> list[tuple[str, list[str]]]:
    """Spans of prose that are options alone, with the page that they stand on."""
    return [
        (str(path.relative_to(ROOT)), shlex.split(span.replace("…", "")))
        for path in PAGES
        for span in spans_of(_page_text(path))
        if re.match(r"(?:… )?--?[a-z]", span)
    ]


def commands_of(app: typer.Typer) -> dict[str, Any]:
    """The commands of a program by name."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def flags_of(command: Any) -> set[str]:
    """The options of a command."""
    return {flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("-")} | {
        "--help",
        "-h",
    }


def parse(command: Any, arguments: list[str]) -> None:
    """Parse the options of a command, without a look at their values.

    Raises:
        UsageError: There is no such option, or it lacks its value.
    """
    command.make_parser(command.context_class(command)).parse_args(list(arguments))
