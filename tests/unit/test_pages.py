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


def ratios(name: str, contestant: str = "auto") -> dict[str, float]:
    """How a contestant compares with the baseline, `plain` where it takes part: totals by category."""
    report = json.loads((ROOT / "docs/benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    (found,) = (one for one in report["contestants"] if one["name"] == contestant)
    return {category: figures["ratio_of_totals"] for category, figures in found["by_category"].items()}


def test_the_second_promise_is_as_measured():
    four, one = (
        [value for category, value in ratios(name).items() if category != "all"] for name in ("cpu/auto", "cpu-gguf")
    )
    text = promises((ROOT / "README.md").read_text(encoding="utf-8"))
    assert f"the {len(four)} kinds of task" in text
    assert f"at {min(four):.2f} to {max(four):.2f} times the speed of plain decoding (four prompts of each" in text
    assert f"single prompts at {min(one):.2f} to {max(one):.2f}" in text
    batches = [ratios(f"cpu/batch-{size}")["all"] for size in (8, 32)]
    assert f"of one length at {batches[0]:.2f} and {batches[1]:.2f}" in text
    assert f"{1 / ratios('cpu-gguf', 'llama-cpp')['all']:.1f} times the speed of llama.cpp" in text
    assert f"{ratios('cpu/peers', 'plain')['all'] / ratios('cpu/peers', 'hf')['all']:.0f} times that of transf" in text
