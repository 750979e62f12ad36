"""Draws `demo.svg`: what `specdec demo` shows in a terminal, run anew.

    python docs/images/make_demo_picture.py

Only the running figures are left out, which change while the text is written. Run it on a machine that is not busy.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from rich.rule import Rule
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from langchain_specdec.cli import demo_view
from langchain_specdec.cli.app import app

PICTURE = Path(__file__).with_name("demo.svg")
WIDTH = 100
BLACK, WHITE, GREEN = (24, 28, 34), (225, 228, 232), (126, 211, 133)
# Of the colours of a terminal the demo uses green and that of plain text.
THEME = TerminalTheme(BLACK, WHITE, [BLACK, WHITE, GREEN, *[WHITE] * 5])
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SPACE = "&#160;"
CELL = 12.2  # the width of a character in pictures by rich


class Picture(demo_view.TerminalView):
    """The demo's view of a terminal, without anything that moves."""

    def begin(self, title: str, *, is_marked: bool) -> None:
        """The head of a run."""
        self._console.print()
        self._console.print(Rule(Text(title, style="bold"), align="left", style="dim"))
        self._tail, self._figures, self._is_marked = Text(), demo_view.Figures(), is_marked
        self._live = SimpleNamespace(stop=lambda: None)


def tidied(svg: str) -> str:
    """The picture with fonts that are there already, and with spaces that every program leaves in place."""
    svg = re.sub(r" *@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", FONTS).replace("font-variant-east-asian: full-width;", "")

    def moved(match: re.Match[str]) -> str:
        x, between, length, end, spaces = match.groups()
        shift = CELL * len(spaces) / len(SPACE)
        return f'x="{float(x) + shift:g}"{between}textLength="{float(length) - shift:g}"{end}'

    svg = re.sub(rf'x="([\d.]+)"([^>]*)textLength="([\d.]+)"([^>]*>)((?:{SPACE})+)(?=[^<])', moved, svg)
    return re.sub(rf"<text [^>]*>(?:{SPACE})*\n?</text>\n?", "", svg)


def main() -> None:
    """Run the demo and write the picture."""
    console = Console(
        record=True, file=io.StringIO(), force_terminal=True, color_system="standard", width=WIDTH, highlight=False
    )
    console.print("$ specdec demo", style="bold", end="\n\n")
    demo_view.make_view = lambda: Picture(console)
    app(["demo"], standalone_mode=False)
    PICTURE.write_text(tidied(console.export_svg(title="specdec demo", theme=THEME)), encoding="utf-8")


if __name__ == "__main__":
    main()
