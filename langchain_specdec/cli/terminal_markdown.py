"""Markdown of a model in a terminal: nothing that it wrote is hidden, and an address stands beside its link."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Markdown, MarkdownElement
from rich.syntax import Syntax

from langchain_specdec.cli.terminal_text import visible

# HTML and definitions of links would vanish, a picture would hide its address, and a control character can be written
# as its number: all stay the text that they are.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
_PARSER.disable(["entity", "html_block", "html_inline", "image", "reference"])


class _Code(CodeBlock):
    """Code as it is to be copied: at the left edge, in the terminal's own colours."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).removesuffix("\n")
        yield Syntax(code, self.lexer_name, theme="ansi_dark", word_wrap=True, background_color="default")


class SafeMarkdown(Markdown):
    """Markdown that an untrusted writer wrote.

    Control characters are shown as escapes. Links are their text and their address, never a link of the terminal's,
    which shows only the text.
    """

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = source
        self.parsed = _parsed(source)


def blocks_of(source: str, *, is_ended: bool) -> list[str]:
    """The paragraphs, lists, tables and so on of a text. Joined by line breaks they are the text.

    Args:
        source: The text.
        is_ended: Whether nothing follows. Otherwise all blocks but the last are final, whatever follows.
    """
    # A line that is still written may turn out to belong to the block above it.
    known = source if is_ended else source[: source.rfind("\n") + 1]
    starts = [token.map[0] for token in _PARSER.parse(known) if token.map and token.level == 0 and token.nesting >= 0]
    lines = source.split("\n")
    return ["\n".join(lines[start:end]) for start, end in pairwise([0, *starts[1:], len(lines)])]


def shows_all(source: str, rendered: str) -> bool:
    """Whether each letter of a block is there in its rendering, but for the language of code.

    What a table has beyond its columns is left out, and what is nested deeper than a narrow window is wide.
    """
    missing = _letters(source) - _letters(rendered)
    return not missing or missing <= _letters(_languages(source))


def _languages(source: str) -> str:
    return " ".join(token.info.partition(" ")[0] for token in _all(_PARSER.parse(source)) if token.type == "fence")


def _letters(text: str) -> Counter[str]:
    return Counter(filter(str.isalpha, text))


def _parsed(source: str) -> list[Token]:
    tokens = _PARSER.parse(visible(source))
    for token in _all(tokens):
        if token.type == "link_open" and "title" in token.attrs:
            token.attrs["href"] = f'{token.attrs["href"]} "{visible(str(token.attrs["title"]))}"'
    return tokens


def _all(tokens: Sequence[Any]) -> Iterator[Any]:
    for token in tokens:
        yield token
        yield from _all(token.children or ())
