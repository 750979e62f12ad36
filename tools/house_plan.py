"""The plan of the house: writes it into CONTRIBUTING.md and docs/how-it-works.md.

    python tools/house_plan.py            # or: make plan

Its sources are the floors below and the first sentence of each file. tests/unit/test_project.py checks that the two
pages are up to date, and that imports only point down.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("langchain_specdec", "tgi_launcher")

# The rooms of langchain_specdec, from the top floor to the cellar. A module may import rooms of its own floor and of
# the floors below. A name stands for a module, or for a package with all that is in it.
FLOORS = (
    ("__main__", "cli"),
    ("bench", "server"),
    ("pages",),
    ("__init__",),
    ("documents", "training"),
    ("llms", "chat_models", "decisions"),
    ("langchain_base",),
    ("construction",),
    ("chat",),
    ("backends",),
    ("engine",),
    ("drafters", "models"),
    ("runner",),
    ("completions",),
    ("sampling",),
    ("grammar",),
    ("options",),
    ("errors", "parameter_names", "paths", "progress", "_version"),
)


class Entry(NamedTuple):
    """A room or a file: how many folders deep it is, its path and its caption."""

    depth: int
    path: Path
    caption: str


def _caption(path: Path) -> str:
    """The first sentence of a file, which begins with a docstring or a comment."""
    if path.is_dir():
        path /= "__init__.py"
    with path.open(encoding="utf-8") as lines:
        line = re.sub(r'^(r?"""|// )|"""$', "", lines.readline().strip())
    return re.split(r"\.(?: |$)", line)[0]


def _place(path: Path) -> tuple[int, int, bool, str]:
    """Where a file or folder stands in the listing of its parent: by floor, files before folders, then by name."""
    for number, floor in enumerate(FLOORS):
        if path.parent == ROOT / PACKAGES[0] and path.stem in floor:
            return number, floor.index(path.stem), False, path.name
    return len(FLOORS), 0, path.is_dir(), path.name


def _entries(folder: Path, depth: int = 0) -> Iterator[Entry]:
    yield Entry(depth, folder, _caption(folder))
    for path in sorted(folder.iterdir(), key=_place):
        if path.is_dir() and (path / "__init__.py").exists():
            yield from _entries(path, depth + 1)
        elif path.suffix in (".py", ".cpp", ".h") and path.name != "__init__.py":
            yield Entry(depth + 1, path, _caption(path))


def _list() -> str:
    """Both packages as a nested list, for CONTRIBUTING.md."""
    lines = []
    for depth, path, caption in (entry for package in PACKAGES for entry in _entries(ROOT / package)):
        indent = "    " * depth
        text = f"- `{path.name}{'/' * path.is_dir()}` – {caption}"
        lines.append(textwrap.fill(text, 120, initial_indent=indent, subsequent_indent=f"{indent}  "))
    return "\n".join(lines)


def _table() -> str:
    """The files of langchain_specdec, for docs/how-it-works.md."""
    package = ROOT / PACKAGES[0]
    rows = ["| File | What it is |", "| --- | --- |"]
    for _, path, caption in list(_entries(package))[1:]:
        name = f"`{path.relative_to(package)}{'/' * path.is_dir()}`"
        rows.append(f"| **{name}** | **{caption}** |" if path.is_dir() else f"| {name} | {caption} |")
    return "\n".join(rows)


def pages() -> dict[Path, str]:
    """The text that each page with a plan in it should have."""
    texts = {}
    for name, plan in (("CONTRIBUTING.md", _list()), ("docs/how-it-works.md", _table())):
        text = (ROOT / name).read_text(encoding="utf-8")
        begin, end = "<!-- plan: written by `make plan` -->\n\n", "\n\n<!-- end of the plan -->"
        before, rest = text.split(begin)
        texts[ROOT / name] = f"{before}{begin}{plan}{end}{rest.split(end)[1]}"
    return texts


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
