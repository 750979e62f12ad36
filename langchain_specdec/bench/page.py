"""A report as a page to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from langchain_specdec.bench.contestant import StepCounts
from langchain_specdec.bench.report import ContestantReport, Report
from langchain_specdec.bench.statistics import ALL, Run, Spread
from langchain_specdec.bench.table import footnotes, headlines, parties, rate_name, summary_rows
from langchain_specdec.engine.detokenizer import Detokenizer
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.pages.page import Answer, Bar, Chart, Page, Step, Table, positions_chart, summary_of

# Texts are shown up to so many bytes of HTML, so that a page of many prompts still opens at once.
_MAX_TEXT_BYTES = 1_500_000
_STEP_BYTES = 80
_PROMPT_CHARACTERS = 300


def make_page(report: Report, prompts: Mapping[str, str], tokenizer: Any) -> Page:
    """The page of a report.

    Args:
        report: What was measured.
        prompts: The prompts' texts, by their ids.
        tokenizer: The model's.
    """
    warnings = []
    if report.is_interrupted:
        warnings.append("Interrupted: only what was measured until then.")
    warnings += [f"{c.name} failed and dropped out: {c.failure}" for c in report.contestants if c.failure]
    shown = _contestant_to_show(report)
    answers, num_left_out = _answers(report, shown, prompts, tokenizer) if shown else ([], 0)
    title = f"The texts of {shown.name if shown else ''}, as they were written"
    notes = [*(f"{name}: {note}" for name, note in parties(report)), *footnotes(report)]
    notes = [note for note in notes if note not in warnings]
    if num_left_out:
        notes.insert(0, f"The texts of {num_left_out} more prompts are left out, to keep the page small.")
    positions = [
        (c.name, c.by_category[ALL].drafted_per_position, c.by_category[ALL].accepted_per_position)
        for c in report.contestants
    ]
    charts = [_seconds_chart(report), _ratio_chart(report), positions_chart(positions)]
    return Page(
        title=f"Benchmark of {report.header['model']['name']}",
        facts=list(headlines(report)),
        warnings=warnings,
        charts=[chart for chart in charts if chart is not None],
        tables=[_table(report)],
        answers_title=title,
        answers=answers,
        notes=notes,
    )


def _seconds_chart(report: Report) -> Chart:
    is_single = report.header["settings"]["batch"] == 1
    what = "an answer" if is_single else f"{report.header['settings']['batch']} answers together"
    bars = [
        _bar(c, c.by_category[ALL].seconds, report.baseline, lambda value: f"{value:.2f} s") for c in report.contestants
    ]
    note = (
        f"Seconds for {what}, from the prompt to the last token: the median of all prompts; the line is from the lower "
        "to the upper quartile. Contestants ran each prompt in turn."
    )
    return Chart("Time by contestant", note, [("", bars)])


def _ratio_chart(report: Report) -> Chart | None:
    others = [c for c in report.contestants if c.name != report.baseline]
    categories = [*report.categories, *([ALL] if len(report.categories) > 1 else [])]
    groups = [
        (
            category,
            [_bar(c, c.by_category[category].ratio, report.baseline, lambda value: f"{value:.2f}×") for c in others],
        )
        for category in categories
    ]
    note = (
        f"{rate_name(report)}, × {report.baseline}: the median of prompts; the line is from the lower to the upper "
        f"quartile. The dashed line is {report.baseline}."
    )
    return Chart(f"Speed against {report.baseline}, by category", note, groups, reference=1.0) if others else None


def _bar(contestant: ContestantReport, spread: Spread | None, baseline: str, shown: Callable[[float], str]) -> Bar:
    is_ours = bool(contestant.by_category[ALL].drafted_per_position) and contestant.name != baseline
    if spread is None:
        return Bar(contestant.name, None, "–")
    if spread.count == 1:
        return Bar(contestant.name, spread.median, shown(spread.median), is_ours=is_ours)
    text = f"{shown(spread.median)} ({shown(spread.low)} – {shown(spread.high)})"
    return Bar(contestant.name, spread.median, text, spread.low, spread.high, is_ours)


def _table(report: Report) -> Table:
    rates = [c.by_category[ALL].tokens_per_second for c in report.contestants]
    first = [f"{rate_name(report)} (total)", *("–" if rate is None else f"{rate:.1f}" for rate in rates)]
    rows = [first, *([name, *(cell.replace("\n", ", ") for cell in cells)] for name, cells in summary_rows(report))]
    return Table("All prompts together", ["", *(c.name for c in report.contestants)], rows)


def _contestant_to_show(report: Report) -> ContestantReport | None:
    """The first whose drafts are known; else the first whose texts are."""
    with_texts = {run.contestant for run in report.runs if run.result.steps}
    candidates = [c for c in report.contestants if c.name in with_texts]
    return next((c for c in candidates if c.by_category[ALL].drafted_per_position), next(iter(candidates), None))


def _answers(
    report: Report, shown: ContestantReport, prompts: Mapping[str, str], tokenizer: Any
) -> tuple[list[Answer], int]:
    """Its texts, and how many more there are than go onto a page."""
    written: dict[str, tuple[Run, int]] = {}
    for run in report.runs:
        if run.contestant == shown.name:
            for place, prompt_id in enumerate(run.prompt_ids):
                written.setdefault(prompt_id, (run, place))
    own_tokenizer = PrivateTokenizer.of(tokenizer)
    answers: list[Answer] = []
    size = 0
    for prompt_id, (run, place) in written.items():
        steps = read_steps(own_tokenizer, run.result.token_ids[place], run.result.steps[place])
        prompt = prompts.get(prompt_id, "")
        if len(prompt) > _PROMPT_CHARACTERS:
            prompt = f"{prompt[:_PROMPT_CHARACTERS]} …"
        text = prompt + "".join(s.accepted_text + s.own_text for s in steps)
        size += len(escape(text).encode(errors="replace")) + _STEP_BYTES * len(steps)
        if answers and size > _MAX_TEXT_BYTES:
            break
        answers.append(Answer(f"{run.category}: prompt {prompt_id}", steps, prompt, summary_of(steps)))
    return answers, len(written) - len(answers)


def read_steps(tokenizer: PrivateTokenizer, token_ids: Sequence[int], counts: Sequence[StepCounts]) -> list[Step]:
    """The text of a run, step by step.

    Args:
        tokenizer: The model's.
        token_ids: Tokens of the answer.
        counts: Its steps, as in `RunResult`.
    """
    detokenizer = Detokenizer(tokenizer)
    steps, at = [], 0
    for emitted, accepted, drafted in counts:
        texts = [detokenizer.add(token) for token in token_ids[at : at + emitted]]
        at += emitted
        steps.append(Step("".join(texts[:accepted]), "".join(texts[accepted:]), accepted, drafted))
    if rest := detokenizer.flush():
        steps[-1] = replace(steps[-1], own_text=steps[-1].own_text + rest)
    return steps
