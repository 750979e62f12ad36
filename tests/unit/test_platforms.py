"""What holds on systems and Pythons that these tests do not run on."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.source_code import ROOT


@pytest.mark.process
def test_all_but_servers_works_without_what_windows_lacks():
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.elsewhere"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    modules, text, *commands = done.stdout.splitlines() or [""] * 2
    assert modules.endswith(" modules"), done.stderr
    assert text == "same text"
    assert commands == [
        "tgi-launch start some/model -> 1",
        "tgi-launch check -> 1",
        "tgi-launch cleanup -> 1",
        "specdec 0.1.0",
        "specdec --version -> 0",
    ]
    refusals = done.stderr.splitlines()
    assert len(refusals) == 3
    assert all("not on Windows: run it in WSL" in line for line in refusals)


PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
INSTALL = (ROOT / "docs/install.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLASSIFIED = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
STATES = ("tested", "checked", "untested", "refused")


def rows() -> dict[str, str]:
    """Platforms of the table in docs/install.md, and their states."""
    table = INSTALL.split("\n## Platforms\n")[1]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert all(known for state, known in (row[1:] for row in found[2:]) if state in ("tested", "checked"))
    assert not [known for _, _, known in found[2:] if known.isupper()], "a word that stands for another"
    return {platform: state for platform, state, _ in found[2:]}


def test_the_table_of_platforms_names_what_is_declared():
    table = rows()
    assert set(table.values()) == set(STATES)
    tested = " ".join(platform for platform, state in table.items() if state == "tested")
    assert re.findall(r"3\.\d+", tested) == ["3.11", *(version for version in CLASSIFIED if version != "3.11")]
    assert f'requires-python = ">={CLASSIFIED[0]}"' in PYPROJECT
    # Where nothing ran, nothing is claimed.
    assert re.findall(r'"(Operating System :: .*)"', PYPROJECT) == ["Operating System :: POSIX :: Linux"]
    assert all(
        table[platform] == "tested" for platform in table if "Linux x86-64" in platform and "3.14" not in platform
    )


def test_the_readme_says_the_same_of_platforms():
    short = README.split("\n| Platform | State")[1].split("\n\n")[0]
    said = [[cell.strip() for cell in line.strip("|").split("|")] for line in short.splitlines()[2:]]
    assert [state.split(",")[0].split(":")[0] for _, state in said] == list(STATES)
    assert f"Python {CLASSIFIED[0]} to {CLASSIFIED[-1]}" in said[0][0]
    for state, words in {
        "checked": ("Linux ARM64", "Apple silicon", "Windows x86-64", "3.14"),
        "untested": ("NVIDIA", "AMD", "WSL"),
        "refused": ("Intel Macs", "Windows on ARM", "32-bit Python", "musl", "`tgi_launcher`"),
    }.items():
        (mine,) = (platforms for platforms, text in said if text.startswith(state))
        theirs = " ".join(platform for platform, its in rows().items() if its == state)
        assert [word for word in words if word not in mine or word not in theirs] == []


def test_ci_runs_the_pythons_that_are_declared():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r"3\.\d+", matrix) == CLASSIFIED


@pytest.mark.process
def test_make_takes_pytorch_from_the_index_that_is_named():
    def planned(*arguments: str) -> list[str]:
        command = ["make", "-n", "-B", ".venv", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603
        return [line.strip() for line in done.stdout.splitlines() if "-m pip install" in line]

    usual, (first, *others) = planned(), planned("TORCH_INDEX=https://packages.example/cpu")
    assert others == usual
    assert first.endswith("-c constraints.txt --index-url 'https://packages.example/cpu' torch")
    assert "make demo TORCH_INDEX=ADDRESS" in README
    assert "make demo TORCH_INDEX=ADDRESS" in INSTALL


def test_a_make_checks_types_as_on_other_systems():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"types-on,(\w+),([\d.]+)\)", makefile) == [("win32", CLASSIFIED[0]), ("darwin", "3.14")]
