"""What the demo shows: text as it comes with its drafted tokens marked, in a terminal; plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from langchain_specdec.cli.progress import Lines, ticking
from langchain_specdec.cli.terminal_text import is_drawable, printable, visible

if TYPE_CHECKING:
    from langchain_specdec.completions.events import Token

# Enough for the eye, and cheap: the same number of redraws a second, however fast the tokens come.
_REDRAWS_PER_SECOND = 10


def full_lines(text: Text, console: Console, width: int) -> tuple[list[Text], Text]:
    """Break text that is still growing into lines.

    Args:
        text: What has come so far and is not printed yet.
        console: Where it will be printed.
        width: Columns of a line.

    Returns:
        The lines that are final, and the last, which may still change: words only ever move down from there.
    """
    *full, last = text.wrap(console, width) or [Text()]
    for line in full:
        line.rstrip()
    return full, last


class Figures:
    """Running counts of a text that is being written.

    Steps that release no text are not seen, so these are for looking at; the engine's own counts go into the table.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_steps = 0
        self._first = self._last = 0.0

    def add(self, tokens: Sequence[Token]) -> None:
        """Count the tokens of one step."""
        self._last = time.perf_counter()
        if not self.num_steps:
            self._first = self._last
        self.num_tokens += len(tokens)
        self.num_steps += 1

    def __str__(self) -> str:
        if self.num_steps < 2:
            return "writing …"
        # The first step's own time is not known, so neither it nor its tokens can count; a step is a step, though.
        speed = self.num_tokens * (self.num_steps - 1) / self.num_steps / (self._last - self._first)
        per_step = self.num_tokens / self.num_steps
        return f"{speed:.1f} tokens/s · {per_step:.2f} tokens/step · {self.num_tokens} tokens"


class View(Protocol):
    """Where the demo writes to."""

    def say(self, text: str = "") -> None:
        """A line of text."""

    def begin(self, title: str, *, is_marked: bool) -> None:
        """The head of a run; `is_marked` where some of its tokens come from a draft."""

    def tell(self, what: str, done: int, total: int) -> None:
        """How far the run is before its text begins."""

    def add(self, tokens: Sequence[Token]) -> None:
        """The tokens of one step."""

    def end(self) -> None:
        """The end of a run, also of one that was interrupted."""

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Figures, the first column holding their names."""


def make_view() -> View:
    """The view that fits standard output."""
    return TerminalView() if is_drawable(sys.stdout) else PlainView()


class PlainView:
    """Lines of text and nothing else, for files and pipes."""

    def __init__(self) -> None:
        self._lines = Lines("")
        self._ticking = ExitStack()

    def say(self, text: str = "") -> None:
        """A line of text."""
        print(printable(text, sys.stdout), flush=True)

    def begin(self, title: str, *, is_marked: bool) -> None:
        """The head of a run."""
        print(f"\n--- {title} ---", flush=True)
        self._lines = Lines(title)
        self._ticking = ExitStack()
        self._ticking.enter_context(ticking(self._lines))

    def tell(self, what: str, done: int, total: int) -> None:
        """How far the run is, on standard error."""
        if total > 1:
            self._lines.tell(what, done, total)
        else:
            self._lines.follow(what, done, total)

    def add(self, tokens: Sequence[Token]) -> None:
        """The tokens of one step."""
        self._ticking.close()
        print(printable("".join(token.text for token in tokens), sys.stdout), end="", flush=True)

    def end(self) -> None:
        """The end of a run."""
        self._ticking.close()
        print(flush=True)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Figures in aligned columns."""
        print(f"\n{title}\n")
        lines = [head, *rows]
        first, *others = [max(len(line[column]) for line in lines) for column in range(len(head))]
        for line in lines:
            cells = [line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))]
            print("   ".join(cells).rstrip())


class TerminalView:
    """Text that grows line by line above a footer of running figures.

    Lines that are full are printed once and scroll away as all text in a terminal does. Only the line that still
    grows and the footer are redrawn, so a text may be longer than the screen.

    Args:
        console: Where to draw; None is standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        # Without colours the marks have to be of another kind.
        self._drafted = "underline" if self._console.no_color else "green"
        self._live: Live | None = None
        self._tail = Text()
        self._figures = Figures()
        self._is_marked = False
        self._doing = ""

    def say(self, text: str = "") -> None:
        """A line of text."""
        self._console.print(Text(visible(text)))

    def begin(self, title: str, *, is_marked: bool) -> None:
        """The head of a run, and from here on a footer."""
        self._console.print()
        self._console.print(Rule(Text(title, style="bold"), align="left", style="dim"))
        self._tail, self._figures, self._is_marked = Text(), Figures(), is_marked
        self._doing = "Reading the text"
        self._live = Live(
            console=self._console,
            get_renderable=self._moving_part,
            refresh_per_second=_REDRAWS_PER_SECOND,
            transient=True,
        )
        self._live.start()

    def tell(self, what: str, done: int, total: int) -> None:
        """How far the run is, in the footer."""
        self._doing = f"{what}: {done} of {total}" if total > 1 else what

    def add(self, tokens: Sequence[Token]) -> None:
        """The tokens of one step, the drafted ones marked."""
        self._figures.add(tokens)
        for token in tokens:
            self._tail.append(visible(token.text), style=self._drafted if token.drafted else "")
        full, self._tail = full_lines(self._tail, self._console, self._console.width)
        if full:
            self._console.print(*full, sep="\n")

    def end(self) -> None:
        """The end of a run: what was moving stays."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        self._console.print(self._tail)
        # The running figures go: those of the table are exact, and two of a kind would only be a riddle.
        if self._is_marked and self._figures.num_steps:
            self._console.print(Text("\n").append_text(self._legend()))

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Figures in a table."""
        table = Table(*head, title=title, title_justify="left", title_style="bold")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._console.print(table)

    def _moving_part(self) -> Group:
        if not self._figures.num_steps:
            return Group(Text(), Spinner("dots", Text(f"{self._doing} …", style="dim")))
        return Group(self._tail, self._footer())

    def _footer(self) -> Text:
        footer = Text("\n")
        if self._is_marked:
            footer.append_text(self._legend()).append("   ")
        return footer.append(str(self._figures), style="dim")

    def _legend(self) -> Text:
        return Text.assemble(("from the draft", self._drafted), " · the model's own")
