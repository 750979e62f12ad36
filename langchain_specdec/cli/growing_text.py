"""Text that grows in a terminal: what is final is printed once, and what may still change is redrawn."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.control import Control
from rich.segment import ControlType, Segment

from langchain_specdec.cli.signals import handled

Line = Sequence[Segment]
"""One line of a terminal, without its line break."""

_UP = (ControlType.CURSOR_UP, 1)
_ERASE = (ControlType.ERASE_IN_LINE, 2)


class GrowingText:
    """One paragraph, list or other block after the other, each redrawn while it grows.

    A block higher than the window scrolls away line by line, as all text in a terminal does. How much of it is gone is
    counted in letters and digits, not in lines: a word that moves to another line, because a mark around it turned out
    to be one or the window got another width, is neither lost nor shown twice.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._num_gone = 0
        self._drawn: list[Line] = []
        self._drawn_width = self.width
        self._is_displaced = False

    @property
    def width(self) -> int:
        """Columns to fill. The last stays free: terminals differ in what they do after it."""
        return max(1, self._console.width - 1)

    def lines_of(self, renderable: RenderableType) -> list[Line]:
        """A block as lines of the window's width."""
        options = self._console.options.update(width=self.width, height=None)
        return [_trimmed(line) for line in self._console.render_lines(renderable, options, pad=False)]

    def draw(self, lines: Sequence[Line]) -> None:
        """Show the block as it is now, in place of how it was."""
        self._make_way()
        rest = _after(lines, self._num_gone)
        room = max(1, self._console.height - 2)
        final = rest[: max(0, len(rest) - room)]
        # A line without letters cannot be counted, so it stays until one below it goes.
        while final and not _num_letters(final[-1]):
            final = final[:-1]
        live = rest[len(final) :][-room:]
        self._write(final, live)
        self._num_gone += sum(map(_num_letters, final))

    def finish(self, lines: Sequence[Line]) -> None:
        """Show the block as it stays. What is drawn next is another."""
        self._make_way()
        self._write(_after(lines, self._num_gone), [])
        self._num_gone = 0

    @contextmanager
    def heeding_suspension(self) -> Iterator[None]:
        """Notice when the program goes on after Ctrl-Z: what a shell wrote meanwhile stands below the text."""
        if not hasattr(signal, "SIGCONT"):
            yield
            return

        def displace(*_: object) -> None:
            self._is_displaced = True

        with handled(signal.SIGCONT, displace):
            yield

    def _make_way(self) -> None:
        """Leave what is drawn where it cannot be found again to be erased, and go on below it."""
        width, is_displaced = self.width, self._is_displaced
        if width == self._drawn_width and not is_displaced:
            return
        self._drawn_width, self._is_displaced = width, False
        if not self._drawn:
            return
        *above, last = self._drawn
        # The line that is being written is one row still, if it fits: it goes on there.
        if is_displaced or _num_cells(last) > width:
            above, last = self._drawn, []
        self._num_gone += sum(map(_num_letters, above))
        self._drawn = [last]
        if not last:
            self._console.print()

    def _write(self, final: Sequence[Line], live: Sequence[Line]) -> None:
        erase = [Control(ControlType.CARRIAGE_RETURN, _ERASE, *((_UP, _ERASE) * (len(self._drawn) - 1)))]
        with self._console:  # written at once, so that it does not flicker
            self._console.print(*(erase if self._drawn else []), _Lines(final, live), end="")
        self._console.file.flush()
        self._drawn = list(live)


class _Lines:
    def __init__(self, final: Sequence[Line], live: Sequence[Line]) -> None:
        self.final = final
        self.live = live

    def __rich_console__(self, *_: object) -> Iterator[Segment]:
        for line in self.final:
            yield from line
            yield Segment.line()
        for index, line in enumerate(self.live):
            if index:
                yield Segment.line()
            yield from line


def text_of_line(line: Line) -> str:
    """A line as plain text."""
    return "".join(segment.text for segment in line)


def _num_letters(line: Line) -> int:
    """Letters and digits of a line: what stands in it however it is broken, unlike bullets and borders."""
    return sum(map(str.isalnum, text_of_line(line)))


def _num_cells(line: Line) -> int:
    return cell_len(text_of_line(line))


def _trimmed(line: Line) -> Line:
    """The line without blanks at its end, which would go along with what is copied from the terminal."""
    kept = list(line)
    while kept and not _is_painted(kept[-1]):
        text = kept[-1].text.rstrip(" ")
        if text:
            kept[-1] = Segment(text, kept[-1].style)
            break
        kept.pop()
    return kept


def _is_painted(segment: Segment) -> bool:
    """Whether its blanks are seen."""
    style = segment.style
    return style is not None and bool(style.underline or (style.bgcolor and not style.bgcolor.is_default))


def _after(lines: Sequence[Line], num_letters: int) -> list[Line]:
    """What comes after so many letters and digits."""
    if not num_letters:
        return list(lines)
    for index, line in enumerate(lines):
        num_here = _num_letters(line)
        if num_letters < num_here:
            text = text_of_line(line)
            counts = accumulate(map(str.isalnum, text))
            cut = cell_len(text[: next(at for at, count in enumerate(counts) if count > num_letters)])
            rest = list(Segment.divide(line, [cut, cell_len(text)]))[-1]
            return [rest, *lines[index + 1 :]]
        num_letters -= num_here
        if not num_letters:
            return list(lines[index + 1 :])
    return []
