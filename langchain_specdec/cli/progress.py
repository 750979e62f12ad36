"""What long work shows on stderr: a spinner with bars in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_specdec.cli.terminal_text import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

_LINE_SECONDS = 10.0
_POLL_SECONDS = 0.25
# For the ^C that a terminal echoes: in another row it would shift what is erased.
_FREE_COLUMNS = 4


class Bars:
    """A spinner in a terminal, and a bar below it for each kind of work that is told.

    Args:
        rich: The display.
        description: What is going on; shown as it is, brackets included.
    """

    is_drawn = True

    def __init__(self, rich: Progress, description: str) -> None:
        self.rich = rich
        self._tasks: dict[str, Any] = {}
        rich.add_task(visible(description), total=None, note="")

    def tell(self, what: str, done: int, total: int) -> None:
        """Say how far work is."""
        if what not in self._tasks:
            self._tasks[what] = self.rich.add_task(visible(what), total=total, note="")
        note = f"{done}/{total}" if total > 1 else ""
        self.rich.update(self._tasks[what], completed=done, total=total, note=note)

    follow = tell

    def note(self, text: str) -> None:
        """Write a line that stays, above the bars."""
        self.rich.print(visible(text), markup=False, highlight=False)


class Lines:
    """Lines of text: one where a kind of work begins that is told, and one every few seconds while it goes on.

    Args:
        description: What is going on; it is not written before some seconds have passed.
        clock: Seconds.
    """

    is_drawn = False

    def __init__(self, description: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._work = description, 0, 1
        self._begin = self._written = clock()

    def tell(self, what: str, done: int, total: int) -> None:
        """Say how far work is; what is new is written at once."""
        with self._lock:
            is_new = what != self._work[0]
            if is_new and done < total:
                self._begin = self._clock()
                self._write(what, done, total)
            if is_new or done > 0:
                self._work = what, done, total

    def follow(self, what: str, done: int, total: int) -> None:
        """Say how far work is, for the next line that is due."""
        with self._lock:
            self._work = what, done, total

    def note(self, text: str) -> None:
        """Write a line of its own."""
        with self._lock:
            print(visible(text), file=sys.stderr, flush=True)

    def tick(self) -> float:
        """Write a line if it is due; seconds until the next."""
        with self._lock:
            now = self._clock()
            if now - self._written >= _LINE_SECONDS:
                self._write(*self._work, f" ({now - self._begin:.0f} s)")
            return self._written + _LINE_SECONDS - now

    def _write(self, what: str, done: int, total: int, more: str = "") -> None:
        self._written = self._clock()
        how_far = f": {done} of {total}" if total > 1 else ""
        print(visible(f"{what}{how_far}{more}"), file=sys.stderr, flush=True)


Display = Bars | Lines


@contextmanager
def ticking(lines: Lines) -> Iterator[Lines]:
    """Write the lines that are due while the block runs."""
    with _thread(lambda: max(lines.tick(), _POLL_SECONDS), _LINE_SECONDS):
        yield lines


@contextmanager
def followed(display: Display, read: Callable[[], tuple[str, int, int]]) -> Iterator[None]:
    """Show how far something is that tells nobody by itself.

    Args:
        display: Where to show it.
        read: What it is, how much is done, of how much; called in another thread.
    """

    def look() -> float:
        display.follow(*read())
        return _POLL_SECONDS

    with _thread(look, 0.0):
        yield


@contextmanager
def _thread(act: Callable[[], float], wait: float) -> Iterator[None]:
    """Call a function again and again while the block runs, each time after the seconds that it returned."""
    is_over = threading.Event()

    def run() -> None:
        seconds = wait
        while not is_over.wait(seconds):
            seconds = act()

    thread = threading.Thread(target=run, name="specdec-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def rows_on(console: Console, *columns: ProgressColumn, refresh_per_second: float = 10.0) -> Progress:
    """A display of rows that vanish at their end, also where Ctrl-C is what ends them.

    Args:
        console: The terminal. Rows are narrower than it.
        columns: Of each row.
        refresh_per_second: Redraws.
    """
    from rich.console import RenderableType
    from rich.constrain import Constrain
    from rich.progress import Progress

    class Rows(Progress):
        def get_renderable(self) -> RenderableType:
            return Constrain(super().get_renderable(), max(1, console.width - _FREE_COLUMNS))

    return Rows(*columns, console=console, transient=True, refresh_per_second=refresh_per_second)
