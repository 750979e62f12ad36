"""What the demo showed, as a page to look at."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from langchain_specdec.bench.machine import describe_machine, machine_lines, versions
from langchain_specdec.bench.statistics import Spread, spread
from langchain_specdec.cli.demo_chain import Run
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.pages.page import (
    Answer,
    Bar,
    Chart,
    Page,
    Step,
    Table,
    positions_chart,
    positions_of,
    summary_of,
)

# A document that is longer is shown by its beginning.
_DOCUMENT_CHARACTERS = 200_000


@dataclass
class Record:
    """What the demo has done so far.

    Attributes:
        title: What was summarised.
        document: Its text.
        facts: What was run, and on what: names and values.
        device: Where the model runs.
        steps: How the text that is shown was written.
        speculative: Runs with speculation.
        plain: Runs without.
        table: The figures at the end: the head and the rows; None where it did not come to them.
        table_title: What they are figures of.
        notes: What else to know of the summary, a sentence each.
        verdict: Whether all texts are the same, in lines.
        is_same: The same as a truth value.
    """

    title: str
    document: str
    facts: list[tuple[str, str]]
    device: torch.device
    steps: list[Step] = field(default_factory=list)
    speculative: list[Run] = field(default_factory=list)
    plain: list[Run] = field(default_factory=list)
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    table_title: str = ""
    notes: list[str] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)
    is_same: bool = True


def make_page(record: Record) -> Page:
    """The page of a demo, also of one that was interrupted."""
    stats = sum((run.stats for run in record.speculative), start=SpeculationStats())
    charts = [_seconds_chart(record), positions_chart([("", *positions_of(stats))])]
    notes = list(record.notes)
    warnings = [] if record.table else ["Interrupted: only what was written until then."]
    document = record.document[:_DOCUMENT_CHARACTERS]
    if len(document) < len(record.document):
        notes.append(f"Of the document's {len(record.document)} characters the first {len(document)} are shown.")
    return Page(
        title=f"Summary of {record.title}",
        facts=[
            ("command", shlex.join(["specdec", *sys.argv[1:]])),
            *machine_lines(describe_machine(record.device), versions()),
            *record.facts,
            *(line.partition(": ")[::2] for line in record.verdict if record.is_same),
        ],
        warnings=warnings if record.is_same else [*warnings, *record.verdict],
        answers_title="The summary, as it was written",
        answers=[Answer("with speculation", record.steps, summary=summary_of(record.steps))] if record.steps else [],
        charts=[chart for chart in charts if chart is not None],
        tables=[Table(record.table_title, *record.table)] if record.table else [],
        notes=notes,
        document=document,
    )


def _seconds_chart(record: Record) -> Chart | None:
    kinds = (("without speculation", record.plain), ("with speculation", record.speculative))
    bars = [
        _bar(name, found, is_ours=runs is record.speculative)
        for name, runs in kinds
        if (found := spread(run.stats.decode_seconds for run in runs))
    ]
    rounds = max(len(record.plain), len(record.speculative))
    note = "Seconds to write the summary, once the document is read" + (
        f": the median of {rounds} runs of each kind, in turn; the line is from the lower to the upper quartile."
        if rounds > 1
        else ", of one run of each kind."
    )
    return Chart("Time with and without speculation", note, [("", bars)]) if bars else None


def _bar(name: str, found: Spread, *, is_ours: bool) -> Bar:
    if found.count == 1:
        return Bar(name, found.median, f"{found.median:.2f} s", is_ours=is_ours)
    text = f"{found.median:.2f} s ({found.low:.2f} – {found.high:.2f} s)"
    return Bar(name, found.median, text, found.low, found.high, is_ours)
