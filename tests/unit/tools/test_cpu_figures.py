"""The measurements of docs/benchmarks.md for a CPU: their options exist, and the page names each."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from langchain_specdec.cli import bench
from langchain_specdec.cli.app import app
from tests.support.source_code import ROOT
from tools.cpu_figures import FIGURES, command, main


class Reached(Exception):  # noqa: N818 - nothing is wrong
    """The command has taken its options, and begins."""


@pytest.mark.parametrize("name", FIGURES)
def test_its_options_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr("langchain_specdec.bench.build.check_packages", begin)
    monkeypatch.setattr(bench, "load_workload", lambda path: [])
    monkeypatch.setattr(bench, "select", lambda questions, categories, limit: questions)
    found = CliRunner().invoke(app, ["bench", *command(name, "spec_bench.jsonl")])
    assert found.stderr.startswith("error: Reached"), found.output


def test_the_page_names_each() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    for name, options in FIGURES.items():
        assert f"`{name}`" in page
        assert options


def test_unknown_figures_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["questions.jsonl", "speed"]) == 2
    assert "cpu/two-neighbours" in capsys.readouterr().err
