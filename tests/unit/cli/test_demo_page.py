"""`specdec demo --html`: the page of a demo, also of one that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from langchain_specdec.cli import demo_chain
from langchain_specdec.cli.app import app
from langchain_specdec.cli.demo_chain import Run
from langchain_specdec.cli.demo_page import Record, make_page
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.pages.page import Step


def demo(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


@pytest.fixture
def flags(folder: str, tmp_path: Path) -> tuple[object, ...]:
    document = tmp_path / "document.md"
    document.write_text("# A <i>title</i>\n\nThe cat sat on the mat. The cat sat on the mat.\n")
    return "--model", folder, "--document", document, "--max-new-tokens", 24, "--html", tmp_path / "page.html"


def test_a_demo_writes_a_page(flags: tuple[object, ...], tmp_path: Path) -> None:
    result = demo(*flags)
    assert result.exit_code == 0, result.output
    assert result.stderr == f"wrote {tmp_path / 'page.html'}\n"
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    for part in (
        "<h1>Summary of A &lt;i&gt;title&lt;/i&gt;</h1>",
        "PromptTemplate | SpeculativeLLM | StrOutputParser",
        "Time with and without speculation",
        "the median of 2 runs of each kind",
        "tokens per second",
        "Figures of 2 runs each",
        "characters in each of 4 runs",
        "The cat sat on the mat.",
    ):
        assert part in html
    assert "Interrupted" not in html


@pytest.mark.parametrize(("calls", "is_written"), [(2, False), (3, True), (4, True), (6, True)])
def test_a_demo_that_is_interrupted_writes_what_there_is(
    flags: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, is_written: bool
) -> None:
    """The calls are two to warm up, one with and one without speculation, and two of another round."""
    summarise, made = demo_chain.summarise, []

    def interrupted(backend: Any, document: str, show: Any, steps: Any = None, tell: Any = None, **params: Any) -> Run:
        made.append(1)
        if len(made) == calls:

            def stop(tokens: Any) -> None:
                show(tokens)
                raise KeyboardInterrupt

            return summarise(backend, document, stop, steps, tell, **params)
        return summarise(backend, document, show, steps, tell, **params)

    monkeypatch.setattr(demo_chain, "summarise", interrupted)
    result = demo(*flags)
    assert result.exit_code == 130
    page = tmp_path / "page.html"
    if is_written:
        assert f"wrote {page}\n" in result.stderr
        assert "Interrupted: only what was written until then." in page.read_text(encoding="utf-8")
    else:
        assert f"Nothing was written yet, so {page} is not written.\n" in result.stderr
        assert not page.exists()


def test_a_page_must_not_overwrite_the_document(flags: tuple[object, ...], tmp_path: Path) -> None:
    document = tmp_path / "notes.html"
    document.write_text("precious")
    result = demo("--document", document, "--html", document)
    assert result.exit_code == 2
    assert result.stderr == f"error: --html {document} would overwrite the file that is read. Give another name.\n"
    assert document.read_text() == "precious"
    assert (
        "cannot write" in demo(*flags[:-1], tmp_path).stderr or "whose name ends" in demo(*flags[:-1], tmp_path).stderr
    )


def record(**kwargs: Any) -> Record:
    return Record("Cats", "The cat sat.", [("model", "m")], torch.device("cpu"), **kwargs)


def test_bars_of_the_demo_are_medians_in_turn() -> None:
    runs = [[Run("x", SpeculationStats(decode_seconds=s)) for s in seconds] for seconds in ((1.0, 2.0, 4.0), (4.0,))]
    page = make_page(record(steps=[Step("a", "b", 1, 2)], speculative=runs[0], plain=runs[1]))
    (chart,) = page.charts
    assert [(bar.label, bar.value, bar.text, bar.is_ours) for bar in chart.groups[0][1]] == [
        ("without speculation", 4.0, "4.00 s", False),
        ("with speculation", 2.0, "2.00 s (1.50 – 3.00 s)", True),
    ]
    assert page.warnings == ["Interrupted: only what was written until then."]


def test_texts_that_differ_are_what_the_page_says_first() -> None:
    table = (("", "without"), [("tokens per second", "1.0")])
    page = make_page(record(table=table, verdict=["identical: no, from 3 on:", "  'x'"], is_same=False))
    assert page.warnings == ["identical: no, from 3 on:", "  'x'"]
    assert [name for name, _ in page.facts] == ["command", "machine", "versions", "model"]


def test_a_long_document_is_shown_by_its_beginning() -> None:
    page = make_page(Record("Cats", "x" * 300_000, [], torch.device("cpu")))
    assert len(page.document) == 200_000
    assert page.notes == ["Of the document's 300000 characters the first 200000 are shown."]
