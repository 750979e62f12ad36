"""How a chat's answers are shown: Markdown or marked drafts in a terminal, the text alone elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from langchain_specdec.cli.growing_text import GrowingText, Line, text_of_line
from langchain_specdec.cli.terminal_markdown import SafeMarkdown, blocks_of, shows_all
from langchain_specdec.cli.terminal_text import printable, visible

if TYPE_CHECKING:
    from langchain_core.messages import AIMessageChunk

    from langchain_specdec.completions.events import Token

# Enough for the eye; a long table takes longer to draw than a token to come.
_REDRAW_SECONDS = 0.08
_DRAWING_SHARE = 5.0


class PlainView:
    """Answers as the model writes them and nothing else, for pipes, files and terminals that only print."""

    is_terminal = False
    shows_markdown = False
    _has_begun = False

    @contextmanager
    def answer(self) -> Iterator[None]:
        """The time of one answer. One that fails before it begins leaves no line."""
        self._has_begun = False
        try:
            yield
        except BaseException:
            if self._has_begun:
                print(flush=True)
            raise
        print(flush=True)

    def think(self, text: str) -> None:
        """A part of a thought: it is no part of the answer, and not shown."""

    def add(self, tokens: Sequence[Token]) -> None:
        """The tokens of one step."""
        self._has_begun = True
        print(printable("".join(token.text for token in tokens), sys.stdout), end="", flush=True)

    def sum_up(self, answer: AIMessageChunk) -> None:
        """What is said of an answer at its end: nothing, unless a thought left no room for it."""
        if not answer.content and answer.response_metadata.get("finish_reason") == "length":
            say("There is no answer: the thought took all tokens. Raise --max-new-tokens, or try --reasoning off.")


class TerminalView:
    """Answers in a terminal, broken between words: as Markdown, or as written with drafted tokens in colour.

    Args:
        console: The terminal.
        shows_markdown: Whether Markdown is rendered. May be changed between answers.
    """

    is_terminal = True

    def __init__(self, console: Console, *, shows_markdown: bool) -> None:
        self.shows_markdown = shows_markdown
        self._console = console
        self._drafted = "underline" if console.no_color else "green"
        self._growing = GrowingText(console)
        self._text = Text()  # of the block that grows
        self._is_thought = False
        self._next_draw = 0.0

    @contextmanager
    def answer(self) -> Iterator[None]:
        """The time of one answer; what has come stays when it ends early."""
        self._text = Text()
        self._is_thought = False
        self._next_draw = 0.0
        with self._growing.heeding_suspension():
            try:
                yield
            finally:
                self._finish_blocks()
                self._growing.finish(self._lines_of(self._text))

    def think(self, text: str) -> None:
        """A part of a thought, which is shown dimly and apart."""
        self._begin_part(is_thought=True)
        self._text.append(visible(text), "dim")
        self._draw()

    def add(self, tokens: Sequence[Token]) -> None:
        """The tokens of one step."""
        self._begin_part(is_thought=False)
        for token in tokens:
            self._text.append(visible(token.text), self._drafted if token.drafted else "")
        self._draw()

    def _begin_part(self, *, is_thought: bool) -> None:
        """Leave an empty line between a thought and the answer."""
        if is_thought != self._is_thought:
            if self._text.plain.strip():
                self._finish_blocks()
                self._growing.finish([*self._lines_of(self._text), []])
            self._text = Text()
            self._is_thought = is_thought

    def _draw(self) -> None:
        begin = time.monotonic()
        if begin < self._next_draw:
            return
        self._finish_blocks()
        self._growing.draw(self._lines_of(self._text))
        end = time.monotonic()
        self._next_draw = end + max(_REDRAW_SECONDS, _DRAWING_SHARE * (end - begin))

    def sum_up(self, answer: AIMessageChunk) -> None:
        """The figures of an answer."""
        self._console.print(Text(_figures(answer) + "\n", style="dim"))

    @property
    def _renders(self) -> bool:
        """Whether what is written now is Markdown to be rendered."""
        return self.shows_markdown and not self._is_thought

    def _finish_blocks(self) -> None:
        if self._renders:
            *final, last = map(Text, blocks_of(self._text.plain, is_ended=False))
        else:
            *final, last = self._text.split("\n", allow_blank=True) or [Text()]
        for block in final:
            # Markdown's blocks stand apart.
            self._growing.finish([*self._lines_of(block), *([[]] if self._renders else [])])
        self._text = last

    def _lines_of(self, text: Text) -> Sequence[Line]:
        if not self._renders:
            return self._growing.lines_of(text)
        lines: list[Line] = []
        for block in blocks_of(text.plain, is_ended=True):
            lines += [*([[]] if lines else []), *self._lines_of_block(block)]
        return lines

    def _lines_of_block(self, block: str) -> Sequence[Line]:
        lines = _without_margins(self._growing.lines_of(SafeMarkdown(block)))
        if shows_all(block, "".join(map(text_of_line, lines))):
            return lines
        return self._growing.lines_of(Text(block.rstrip("\n")))


View = PlainView | TerminalView


def make_view(*, shows_markdown: bool) -> View:
    """The view that fits standard output."""
    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return TerminalView(console, shows_markdown=shows_markdown)
    return PlainView()


def say(text: str) -> None:
    """Tell the user something on stderr, broken between words in a terminal."""
    if sys.stderr.isatty():
        Console(stderr=True, highlight=False).print(Text(visible(text)))
    else:
        print(visible(text), file=sys.stderr)


def _without_margins(lines: list[Line]) -> list[Line]:
    """The lines without empty ones above and below."""
    full = [index for index, line in enumerate(lines) if text_of_line(line).strip()]
    return lines[full[0] : full[-1] + 1] if full else []


def _figures(answer: AIMessageChunk) -> str:
    usage = answer.usage_metadata
    if usage is None or "finish_reason" not in answer.response_metadata:
        return "stopped"
    speculation = answer.response_metadata["speculation"]
    seconds = speculation["decode_seconds"]
    parts = [
        f"{usage['output_tokens']} tokens",
        f"{usage['output_tokens'] / seconds:.1f} tokens/s" if seconds else "",
        # Some servers do not tell it.
        f"{steps:.2f} tokens/step" if (steps := speculation["tokens_per_step"]) is not None else "",
        f"{usage.get('input_token_details', {}).get('cache_read', 0)} of {usage['input_tokens']} read before",
        "cut off by --max-new-tokens" if answer.response_metadata["finish_reason"] == "length" else "",
    ]
    return " · ".join(part for part in parts if part)
