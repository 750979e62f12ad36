"""What the demo says of a summary: how it was made, what its figures are of, and what not to make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from langchain_specdec.cli import demo as demo_module
from langchain_specdec.cli import demo_chain, demo_view
from langchain_specdec.cli.app import app
from langchain_specdec.cli.demo_chain import Run, summarise
from langchain_specdec.cli.demo_page import Record, make_page
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.errors import PromptTooLongError
from langchain_specdec.sampling.params import SamplingParams
from tests.support.backends import ScriptedBackend

LOOP = "The cat sat on the mat and it was a happy cat. "


def demo(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(app, ["demo", *map(str, arguments)], **options)


def summary(backend: ScriptedBackend, document: str = "A tale.", **options: Any) -> Run:
    return summarise(backend, document, lambda tokens: None, **options)  # type: ignore[arg-type]


def test_a_summary_ends_at_a_sentence_near_the_limit() -> None:
    text = "One cat sat here. " * 20
    run = summary(ScriptedBackend(text), max_new_tokens=100)
    assert run.text.endswith(".")
    assert 80 <= len(run.text) <= 100, "tokens are characters here"
    assert run.finish_reason == "stop_sequence"
    exact = summary(ScriptedBackend(text), max_new_tokens=100, ignore_eos=True)
    assert len(exact.text) == 100


def test_a_document_beyond_the_context_is_summarised_in_pieces() -> None:
    backend = ScriptedBackend("A short summary.")
    backend.max_length = 600
    told: list[tuple[str, int, int]] = []
    run = summary(
        backend, "The cat sat on the mat. " * 40, tell=lambda *progress: told.append(progress), max_new_tokens=100
    )
    pieces = told[0][2]
    assert pieces > 1
    assert told[: pieces + 2] == [
        *(("Summarising pieces of the text", done, pieces) for done in range(pieces + 1)),
        ("Summarising the summaries", 0, 1),
    ]
    assert run.text == run.answers[-1] == "A short summary."
    assert len(run.answers) == pieces + 1
    assert run.stats.emitted_tokens >= (pieces + 1) * len("A short summary."), "the table counts all answers"


def test_no_room_for_any_piece_is_told() -> None:
    backend = ScriptedBackend("A summary.")
    backend.max_length = 200
    with pytest.raises(PromptTooLongError, match="lower max_new_tokens"):
        summary(backend, "The cat sat on the mat. " * 40, max_new_tokens=150)


@pytest.fixture
def long_document(tmp_path: Path) -> Path:
    path = tmp_path / "my notes.txt"
    path.write_bytes(b"The cat sat on the mat.\r\nIt ran.\r\n\r\n" * 60)
    return path


def test_the_demo_takes_a_document_beyond_the_context(folder: str, long_document: Path) -> None:
    flags = ("--model", folder, "--document", long_document, "--max-length", 400, "--max-new-tokens", 24)
    result = demo(*flags, "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert "document  my notes.txt (480 words" in result.stdout
    assert result.stderr.count("Summarising pieces of the text: 0 of ") == 2, "once with speculation, once without"
    assert "identical: yes" in result.stdout
    assert "\nFigures of one run of each\n" in result.stdout


def test_no_run_drafts_from_what_was_written_before(
    folder: str, long_document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts of a second run would else be the first one's answer."""
    done: list[object] = []
    for drafter in (LookupTreeDrafter, CombinedDrafter):
        monkeypatch.setattr(drafter, "forget", lambda self: done.append("forget"))
    original = demo_chain.summarise

    def noted(backend: Any, *args: Any, **params: Any) -> Run:
        done.append(backend)
        return original(backend, *args, **params)

    monkeypatch.setattr(demo_chain, "summarise", noted)
    document = long_document.with_name("short.txt")
    document.write_text("The cat sat on the mat. The cat sat on the mat.")
    assert demo("--model", folder, "--document", document, "--max-new-tokens", 12, "--rounds", 3).exit_code == 0
    speculative = done[0]
    before = [done[index - 1] for index, backend in enumerate(done) if backend is speculative][1:]
    assert before == ["forget"] * 3


def conclude(run: Run, capsys: pytest.CaptureFixture[str], rounds: int = 1) -> tuple[str, Record]:
    record = Record("Cats", "Cats.", [], torch.device("cpu"), speculative=[run] * rounds, plain=[run] * rounds)
    demo_module._conclude(demo_view.PlainView(), record, SamplingParams(max_new_tokens=200))
    return capsys.readouterr().out, record


def test_a_text_that_loops_is_not_boasted_of(capsys: pytest.CaptureFixture[str]) -> None:
    stats = SpeculationStats(10, 9, 2, 12, 1.0)
    text = LOOP * 10
    told, record = conclude(Run(text, stats, [text], "stop_sequence"), capsys)
    assert "speed-up" not in told
    assert "The model repeats itself: 89% of what it wrote stands in it before." in told
    assert "being 1.00x as fast says little about other texts." in told
    assert make_page(record).notes == record.notes
    told, _ = conclude(Run(LOOP, stats, [LOOP], "stop_sequence"), capsys)
    assert "speed-up" in told
    assert "repeats itself" not in told


def test_a_summary_that_is_cut_off_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    stats = SpeculationStats(10, 9, 2, 12, 1.0)
    told, _ = conclude(Run("The cat", stats, ["The cat"], "length"), capsys)
    assert "The summary is cut off at --max-new-tokens 200, in mid-sentence.\n" in told
    told, _ = conclude(Run("The cat sat.", stats, ["The cat sat."], "length"), capsys)
    assert "cut off" not in told


@pytest.mark.parametrize(("rounds", "title"), [(1, "Figures of one run of each"), (3, "Figures of 3 runs each")])
def test_the_table_says_what_its_figures_are_of(capsys: pytest.CaptureFixture[str], rounds: int, title: str) -> None:
    told, record = conclude(Run("The cat sat.", SpeculationStats(10, 9, 2, 12, 1.0)), capsys, rounds)
    assert f"\n{title}\n" in told
    assert make_page(record).tables[0].title == title


def test_what_is_no_text_is_told_for_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my notes.txt").write_bytes(b"caf\xe9")
    result = demo("--document", "my notes.txt")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: my notes.txt is not UTF-8 text (byte 3). Convert it first, from Latin-1 for example: "
        "iconv -f LATIN1 -t UTF-8 'my notes.txt' | specdec demo --document -\n"
    )
    assert demo("--document", ".").stderr == (
        "error: . is a folder. Name a file in it, such as: specdec demo --document ./notes.txt\n"
    )
    assert demo("--document", "-", input="").stderr == "error: Standard input is empty. Give text to summarise.\n"
