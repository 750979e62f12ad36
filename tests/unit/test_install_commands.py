"""What users are told to install can be installed: from a checkout, and without an index that has this package."""

from __future__ import annotations

import re

import pytest

from tests.support.source_code import ROOT
from tgi_launcher.extras import EXTRAS, install_command

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = [
    path
    for folder in ("langchain_specdec", "tgi_launcher", "docs", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def declared_extras() -> dict[str, list[str]]:
    """The extras of pyproject.toml. Python 3.10 has no reader of TOML."""
    table = PYPROJECT.split("[project.optional-dependencies]\n")[1].split("\n[project.scripts]")[0]
    found = re.findall(r"^([\w-]+) = \[(.*?)\]$", table, re.MULTILINE | re.DOTALL)
    return {name: re.findall(r'"([^"]+)"', packages) for name, packages in found}


DECLARED = declared_extras()


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_a_command_installs_what_its_extra_brings(extra):
    assert list(EXTRAS[extra]) == DECLARED[extra]
    command = install_command(extra)
    assert command.startswith("pip install ")
    assert re.findall(r"[\w.-]+(?:[<>=!~][^\"\s]*)?", command.removeprefix("pip install ")) == DECLARED[extra]


def test_versions_are_kept_from_the_shell():
    assert install_command("bench") == 'pip install "matplotlib>=3.8"'
    assert install_command("adapters", upgrade=True) == 'pip install -U "peft>=0.21"'
    assert install_command("cli").startswith('pip install "jinja2>=3.1" packaging ')


@pytest.mark.parametrize("path", [*PAGES, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_asks_an_index_for_this_package(path):
    text = " ".join(path.read_text(encoding="utf-8").split())
    asked = re.findall(r"pip install (?:-\S+ )*[\"']?langchain[-_.]specdec\b", text)
    assert not asked, f"{path.relative_to(ROOT)}: {asked}: no index has it; say how to install it from a checkout"
    named = {extra for extras in re.findall(r"'\.\[([\w,-]+)\]'", text) for extra in extras.split(",")}
    named |= set(re.findall(r"\bextra `([\w-]+)`", text))
    assert named <= set(DECLARED), f"{path.relative_to(ROOT)} names extras that do not exist: {named - set(DECLARED)}"


def test_the_makefile_installs_extras_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lists = re.findall(r"^EXTRAS4? := (\S+)$", makefile, re.MULTILINE)
    assert len(lists) == 2
    assert {extra for extras in lists for extra in extras.split(",")} == set(DECLARED)
