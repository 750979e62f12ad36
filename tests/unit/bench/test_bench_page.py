"""`specdec bench --html`: the page of a report, with bars, figures and the texts of the contestant that drafts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from langchain_specdec.bench import measure as measure_module
from langchain_specdec.bench.contestant import RunResult
from langchain_specdec.bench.machine import describe_machine, versions
from langchain_specdec.bench.measure import Measurement
from langchain_specdec.bench.page import make_page, read_steps
from langchain_specdec.bench.report import Report, make_report
from langchain_specdec.bench.statistics import Run
from langchain_specdec.cli.app import app
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.pages.render import render
from tests.support.tiny_models import byte_tokenizer

TOKENIZER = byte_tokenizer()


def report(num_prompts: int = 2, text: str = "words of no weight", **kwargs: Any) -> Report:
    """Of a contestant that writes a text in two steps, beside one that does not draft, and one without details."""
    row = tuple(TOKENIZER(text).input_ids)
    half = len(row) // 2
    steps = ((half, half - 1, 9), (len(row) - half, 0, 0))
    told = RunResult(
        (row,), 1.0, 1, 3.0, num_steps=2, drafted_tokens=9, accepted_tokens=half - 1, drafted_per_position=(1, 1),
        accepted_per_position=(1, 0), steps=(steps,), drafted_by_source={"lookup": 8, "recycled": 1},
        accepted_by_source={"lookup": half - 1},
    )  # fmt: skip
    results = {"plain": RunResult((row,), 1.0, 1, 5.0), "auto": told, "hf": RunResult((row,), 1.0, 1, 9.0)}
    runs = [
        Run(name, group, f"kind {group % 2}", 0, 0, (str(group),), 4, result)
        for group in range(num_prompts)
        for name, result in results.items()
    ]
    header = {
        "command": "specdec bench --limit 1",
        "machine": describe_machine(torch.device("cpu")),
        "versions": versions(),
        "model": {"name": "m", "dtype": "float32", "step_bytes": 100, "num_packed": 0},
        "draft_model": None,
        "settings": {
            "workload": "default", "num_prompts": num_prompts, "num_cut": 0, "is_chat": True, "batch": 1, "repeat": 1,
            "max_new_tokens": 30, "temperature": 0.0, "seed": 0,
        },
    }  # fmt: skip
    notes = {"plain": "no drafts", "auto": "drafts", "hf": "transformers"}
    return make_report(
        Measurement(runs, **kwargs), notes, header, baseline="plain", batch=1, max_new_tokens=30, comparable=["auto"]
    )


def test_the_page_has_bars_figures_and_the_texts_of_who_drafts() -> None:
    page = make_page(report(), {"0": "Why?", "1": "x" * 400}, TOKENIZER)
    assert page.title == "Benchmark of m"
    assert [name for name, _ in page.facts] == ["command", "machine", "versions", "model", "workload"]
    assert page.facts[0] == ("command", "specdec bench --limit 1")
    time, ratio, positions = page.charts
    assert [(bar.label, bar.value, bar.text, bar.is_ours) for bar in time.groups[0][1]] == [
        ("plain", 5.0, "5.00 s (5.00 s – 5.00 s)", False),
        ("auto", 3.0, "3.00 s (3.00 s – 3.00 s)", True),
        ("hf", 9.0, "9.00 s (9.00 s – 9.00 s)", False),
    ]
    assert ratio.reference == 1.0
    assert [(category, [bar.text for bar in bars]) for category, bars in ratio.groups] == [
        ("kind 0", ["2.00×", "0.50×"]),
        ("kind 1", ["2.00×", "0.50×"]),
        ("all", ["2.00× (2.00× – 2.00×)", "0.50× (0.50× – 0.50×)"]),
    ]
    assert [(name, [bar.text for bar in bars]) for name, bars in positions.groups] == [
        ("auto", ["100% (2 of 2)", "0% (0 of 2)"])
    ]
    assert page.tables[0].head == ["", "plain", "auto", "hf"]
    rows = {name: cells for name, *cells in page.tables[0].rows}
    assert rows["accepted / drafted"] == ["–", "89%", "–"]
    assert rows["accepted by place"] == ["–", "100 0%", "–"]
    # Of two prompts.
    assert rows["accepted by source"] == ["–", "lookup 16 / 16, recycled 0 / 2", "–"]
    assert page.answers_title == "The texts of auto, as they were written"
    first, second = page.answers
    assert (first.title, first.prompt) == ("kind 0: prompt 0", "Why?")
    assert first.summary == "2 steps · 8 of 9 drafted tokens accepted"
    assert second.prompt == "x" * 300 + " …"
    assert [(step.accepted_text, step.own_text, step.rejected) for step in first.steps] == [
        ("words of", " ", 1),
        ("", "no weight", 0),
    ]
    assert page.notes == ["plain: no drafts", "auto: drafts", "hf: transformers"]


def test_the_page_of_a_part_says_so() -> None:
    page = make_page(report(is_interrupted=True, failures={"hf": "no room"}), {}, TOKENIZER)
    assert page.warnings == ["Interrupted: only what was measured until then.", "hf failed and dropped out: no room"]
    assert not set(page.warnings) & set(page.notes)


def test_a_page_of_many_prompts_stays_small_and_says_what_it_lacks() -> None:
    page = make_page(report(80, "a word or two " * 40), {}, TOKENIZER)
    assert len(page.answers) == 80
    assert len(render(page)) < 300_000
    page = make_page(report(80, "<'&'>" * 1600), {}, TOKENIZER)
    assert 1 < len(page.answers) < 80
    assert page.notes[0] == f"The texts of {80 - len(page.answers)} more prompts are left out, to keep the page small."
    assert len(render(page).encode()) < 2_000_000


def test_characters_that_span_steps_belong_to_the_one_that_ends_them() -> None:
    ids = TOKENIZER("né€").input_ids
    tokenizer = PrivateTokenizer(TOKENIZER)
    steps = read_steps(tokenizer, ids, [(2, 1, 1), (2, 1, 3), (2, 2, 2)])
    assert [(step.accepted_text, step.own_text) for step in steps] == [("n", ""), ("é", ""), ("€", "")]
    cut = read_steps(tokenizer, ids[:-1], [(4, 0, 0), (1, 0, 0)])
    assert "".join(step.own_text for step in cut) == "né\ufffd"


def bench(*arguments: object) -> Result:
    flags = ("--model", "random:tiny", "--max-prompt-tokens", 60, "--max-new-tokens", 12, "--category", "math")
    return CliRunner().invoke(app, ["bench", *map(str, (*flags, *arguments))])


@pytest.mark.slow
def test_the_command_writes_a_page_beside_the_table(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("older")
    found = bench("--contestants", "plain,auto", "--json", "--html", path)
    assert found.exit_code == 0, found.output
    assert found.stderr.endswith(f"wrote {path}\n")
    ours = [run["result"] for run in json.loads(found.stdout)["runs"] if run["contestant"] == "auto"]
    (steps,) = ours[0]["steps"]
    assert [sum(counts) for counts in zip(*steps, strict=True)] == [
        12,
        ours[0]["accepted_tokens"],
        ours[0]["drafted_tokens"],
    ]
    assert sum(ours[0]["accepted_per_position"]) == ours[0]["accepted_tokens"]
    html = path.read_text(encoding="utf-8")
    for part in ("Benchmark of random:tiny", "Time by contestant", "math: prompt", f"{len(steps)} steps"):
        assert part in html


@pytest.mark.slow
def test_a_page_of_nothing_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "measure", lambda *_: Measurement(is_interrupted=True))
    path = tmp_path / "page.html"
    found = bench("--contestants", "plain", "--html", path)
    assert found.exit_code == 130
    assert f"Nothing was measured, so {path} is not written." in found.stderr
    assert not path.exists()
