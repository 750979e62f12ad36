"""What MkDocs does beside its plugins: takes in the pages of the root, and describes the command lines."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.cli import get_docs_for_click

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that stand in the root of the repository; their links lead to pages of the site."""
    from mkdocs.structure.files import File

    for page, name in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\]\((?:docs/)?([\w-]+\.md)", lambda link: f"]({link[1].lower()}", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- command line: module name -->` by what `--help` says of each command."""

    def describe(marker: re.Match[str]) -> str:
        command = typer.main.get_command(import_module(marker[1]).app)
        text = get_docs_for_click(obj=command, ctx=typer.Context(command), indent=1, name=marker[2])
        return re.sub(r"^\* `--help`: .*\n", "", text, flags=re.MULTILINE)

    return re.sub(r"<!-- command line: ([\w.]+) ([\w-]+) -->", describe, markdown)
