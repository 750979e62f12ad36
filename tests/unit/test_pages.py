"""What the pages say holds: figures are the measured ones, addresses are those of projects, code uses public names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.source_code import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {".cfg", ".cpp", ".h", ".html", ".in", ".js", ".json", ".jsonl", ".md", ".py", ".sh", ".svg", ".toml", ".txt",
         ".yaml", ".yml"}  # fmt: skip
LEFT_OUT = {".git", ".hypothesis", "build", "dist", "site"}
# Hosts of package indexes, in parts: this file is looked at too.
INDEXES = [f"{name}.{end}" for name, end in (("pypi", "org"), ("pypi.python", "org"), ("pythonhosted", "org"),
           ("piwheels", "org"), ("anaconda", "org"), ("conda.anaconda", "org"), ("libraries", "io"))]  # fmt: skip


def words(text: str) -> str:
    return " ".join(text.split())


def page(name: str) -> str:
    return words((ROOT / name).read_text(encoding="utf-8"))


def files() -> list[Path]:
    """The texts of the project, committed or about to be."""
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if (path.suffix in TEXTS or path.name == "Makefile")
        and not any(part in LEFT_OUT or part.startswith(".venv") for part in path.relative_to(ROOT).parts)
        and path.is_file()
    ]


def test_no_address_of_a_package_index():
    """Other projects are linked by their own pages, and an index has no page of this one."""
    found = []
    for path in files():
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {host}" for host in INDEXES if host in text]
    assert len(files()) > 400
    assert not found


def test_code_of_the_pages_uses_public_names_only():
    found = []
    for path in [*PAGES, *(ROOT / "docs/examples").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL) if path.suffix == ".md" else [text]
        for block in blocks:
            # A class in an example may define hooks that LangChain calls.
            found += [f"{path.relative_to(ROOT)}: {name}" for name in re.findall(r"\w(?<!\bself)\._(?!_)\w+", block)]
            found += [
                f"{path.relative_to(ROOT)}: {line}" for line in re.findall(r"^.*import .*\b_[a-z]\w*", block, re.M)
            ]
    assert not found


@pytest.mark.parametrize("name", ["README.md", "docs/tgi.md", "docs/tgi-launcher.md"])
def test_whoever_reads_of_tgi_learns_that_it_is_archived(name):
    text = page(name)
    assert re.search(
        r"archived (it )?(TGI )?(is )?(in|since) March 2026|archived since March 2026|is archived\*\* since", text
    )
    assert "3.3.7" in text
    assert "what to use instead" in text.lower()


def promises(text: str) -> str:
    listed = re.search(r"## Four promises\n\n(.*?)(?:\n## |\Z)", text, re.DOTALL)
    assert listed is not None
    return words(re.sub(r"\]\([^)]*\)", "]", listed[1]))


def test_the_promises_are_the_same_on_both_pages():
    readme, index = (promises((ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "docs/index.md"))
    assert readme == index


def ratios(name: str) -> dict[str, float]:
    """How `auto` compares with `plain` in a measurement: totals by category."""
    report = json.loads((ROOT / "docs/benchmarks" / name).read_text(encoding="utf-8"))
    (auto,) = (contestant for contestant in report["contestants"] if contestant["name"] == "auto")
    return {category: figures["ratio_of_totals"] for category, figures in auto["by_category"].items()}


def test_the_second_promise_is_as_measured():
    three, one = (ratios(f"cpu-2-cores{name}.json") for name in ("-three-prompts", ""))
    (low, high), (least, most) = (
        (min(values), max(values)) for values in ([v for c, v in r.items() if c != "all"] for r in (three, one))
    )
    text = promises((ROOT / "README.md").read_text(encoding="utf-8"))
    assert f"at {low:.2f} to {high:.2f} times the speed of plain decoding" in text
    assert f"single prompts at {least:.2f} to {most:.2f}" in text
    assert f"the {len(three) - 1} kinds of task" in text
    # Of the exception the benchmarks speak in the same figures.
    assert "take 3 to 5% longer" in text
    assert "`auto` is behind `plain` by 3 to 5%" in page("docs/benchmarks.md")


def test_the_table_of_results_is_as_measured():
    three, one = (ratios(f"cpu-2-cores{name}.json") for name in ("-three-prompts", ""))
    rows = re.findall(r"^\| \**([a-z_]+)(?:, of totals)?\** \|.*\| ([\d.]+) \| ([\d.]+) \|$",
                      (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8"), re.MULTILINE)  # fmt: skip
    assert {name: (a, b) for name, a, b in rows} == {name: (f"{one[name]:.2f}", f"{three[name]:.2f}") for name in one}
