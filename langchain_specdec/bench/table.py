"""A report in a terminal: one table, with what it was made with above and what to know below."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from langchain_specdec.bench.machine import machine_lines
from langchain_specdec.bench.report import ContestantReport, Report
from langchain_specdec.bench.statistics import ALL, Figures

if TYPE_CHECKING:
    from langchain_specdec.bench.memory import MemoryUse
    from langchain_specdec.bench.startup import StartUp

_NOTHING = "–"
_SHOWN_MISMATCHES = 4
_SHOWN_PLACES = 5


def print_report(report: Report, console: Console) -> None:
    """Print header, table and footnotes."""
    for name, value in headlines(report):
        console.print(Text(f"$ {value}" if name == "command" else f"{name:<10}{value}"), soft_wrap=True)
    if report.runs:
        console.print(table(report))
    width = max((len(contestant.name) for contestant in report.contestants), default=0)
    for line in (*(f"{name:<{width}}  {note}" for name, note in parties(report)), *footnotes(report)):
        console.print(Text(line), soft_wrap=True)


def headlines(report: Report) -> Iterator[tuple[str, str]]:
    """What it was made with: names and values, the command first."""
    header = report.header
    machine, model = header["machine"], header["model"]
    yield "command", header["command"]
    yield from machine_lines(machine, header["versions"])
    draft = ""
    if given := header["draft_model"]:
        draft = f", {'trained head' if given.get('form') == 'head' else 'draft model'} {given['name']}"
    yield "model", f"{model['name']} in {model['dtype']} on {machine['device']}{draft}"
    if roof := report.roofline:
        yield (
            "roofline",
            f"a step reads {roof['step_bytes'] / 1e6:.0f} MB of weights; at "
            f"{roof['bytes_per_second'] / 1e9:.1f} GB/s that takes {1e3 * roof['least_step_seconds']:.2f} ms; "
            f"plain takes {1e3 * roof['plain_step_seconds']:.2f} ms a token: "
            f"{roof['share']:.0%} of what bandwidth allows",
        )
    if report.beside:
        yield "beside", report.beside
    if header.get("steps"):
        yield "steps", f"of this engine {captured_line(header['steps'])}"
    settings = header["settings"]
    cut = f" ({settings['num_cut']} cut to fit)" if settings["num_cut"] else ""
    form = "in the chat format" if settings["is_chat"] else "as they are"
    how = f"temperature {settings['temperature']}, seed {settings['seed']}" if settings["temperature"] else "greedy"
    at_once = f", {settings['batch']} at once" if settings["batch"] > 1 else ""
    yield (
        "workload",
        f"{settings['workload']}: {_count(settings['num_prompts'], 'prompt')}{cut} {form}{at_once}, "
        f"{settings['max_new_tokens']} new tokens, {how}, each run {_count(settings['repeat'], 'time')}",
    )


def captured_line(described: Mapping[str, Any]) -> str:
    """How its steps were captured; there may be dozens of graphs."""
    reason = f" ({described['obstacle']})" if described["obstacle"] else ""
    graphs = described["graphs"]
    savings = sorted(graph["saving"] for graph in graphs if graph["is_used"])
    if not savings:
        return f"not captured{reason}"
    seconds = sum(graph["seconds"] for graph in graphs)
    return (
        f"captured{reason}, {len(savings)} of {_count(len(graphs), 'CUDA graph')} in use, made in {seconds:.1f} s "
        f"({savings[0]:.0%} to {savings[-1]:.0%} less time a step)"
    )


def table(report: Report) -> Table:
    """Categories down, contestants across; below, what holds for each contestant."""
    built = Table(
        title=f"{rate_name(report)} (total), and × {report.baseline}: median of prompts (quartiles)",
        title_justify="left",
        title_style="bold",
    )
    built.add_column("category")
    for contestant in report.contestants:
        built.add_column(contestant.name, justify="right", no_wrap=True)
    for category in report.categories:
        built.add_row(Text(category), *(_cell(c.by_category[category], c.name, report) for c in report.contestants))
    built.add_section()
    if len(report.categories) > 1:
        built.add_row(ALL, *(_cell(c.by_category[ALL], c.name, report) for c in report.contestants), style="bold")
    for name, cells in summary_rows(report):
        built.add_row(name, *cells)
    return built


def rate_name(report: Report) -> str:
    """Which rate the figures are."""
    return "decode tokens/s" if report.rate == "decode" else "tokens/s from start to end"


def summary_rows(report: Report) -> Iterator[tuple[str, list[str]]]:
    """What holds for each contestant over all prompts: names, and a cell for each of them."""
    rows: dict[str, Callable[[ContestantReport], str]] = {
        "ratio of totals": lambda c: _times(c.by_category[ALL].ratio_of_totals),
        "first token, ms": lambda c: _milliseconds(c.by_category[ALL]),
        "prompt tokens/s": lambda c: _number(c.by_category[ALL].prefill_per_second, ".0f"),
        "tokens per step": lambda c: _number(c.by_category[ALL].tokens_per_step, ".2f"),
        "accepted / drafted": lambda c: _number(c.by_category[ALL].acceptance_rate, ".0%"),
        "accepted by place": lambda c: _by_place(c.by_category[ALL]),
        "accepted by source": lambda c: _by_source(c.by_category[ALL]),
        "prompt tokens run": lambda c: _prefilled(c.by_category[ALL]),
        "tokens returned": lambda c: str(c.by_category[ALL].num_tokens),
        f"prompts unlike {report.baseline}": _differing,
        "warm-up, s": lambda c: _number(c.warm_up_seconds, ".1f"),
    }
    for name, cell in rows.items():
        yield name, [cell(contestant) for contestant in report.contestants]


def parties(report: Report) -> Iterator[tuple[str, str]]:
    """The contestants and how each ran."""
    for contestant in report.contestants:
        _, _, at_once = contestant.name.partition("@")
        yield contestant.name, f"{contestant.note}{f', {at_once} at once' if at_once else ''}"


def footnotes(report: Report) -> Iterator[str]:
    """What was odd."""
    if (packed := report.header["model"].get("num_packed")) and any(
        "transformers" in c.note or "flashspec" in c.note for c in report.contestants
    ):
        yield (
            f"Two copies of the same weights: the engine holds {packed} linear layers packed for the CPU; peers run on "
            "the layers as transformers loads them."
        )
    for name, reason in report.header.get("left_out", {}).items():
        yield f"{name} was left out: {reason}."
    for contestant in report.contestants:
        yield from _oddities(contestant, report.baseline)
    if report.is_interrupted:
        yield "Interrupted: only what was measured until then."


def _oddities(contestant: ContestantReport, baseline: str) -> Iterator[str]:
    if contestant.failure:
        yield f"{contestant.name} failed and dropped out: {contestant.failure}"
    mismatches = contestant.mismatches
    if mismatches is None:
        return
    if mismatches.num_beyond:
        yield f"{contestant.name} returned {mismatches.num_beyond} tokens beyond max_new_tokens; they are counted."
    if mismatches.positions:
        places = [f"{prompt_id} at token {at}" for prompt_id, at in mismatches.positions.items()]
        more = f" and {len(places) - _SHOWN_MISMATCHES} more" if len(places) > _SHOWN_MISMATCHES else ""
        yield f"{contestant.name} differs from {baseline}: prompt {', '.join(places[:_SHOWN_MISMATCHES])}{more}"


def _cell(figures: Figures, name: str, report: Report) -> str:
    speed = _number(figures.tokens_per_second, ".1f")
    if name == report.baseline or figures.ratio is None:
        return speed
    ratio = figures.ratio
    quartiles = f" ({ratio.low:.2f}–{ratio.high:.2f})" if ratio.count > 1 else ""
    return f"{speed}\n{_times(ratio.median)}{quartiles}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _number(value: float | None, form: str) -> str:
    return _NOTHING if value is None else format(value, form)


def _times(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}×"


def _milliseconds(figures: Figures) -> str:
    return _NOTHING if figures.first_seconds is None else f"{1e3 * figures.first_seconds.median:.0f}"


def _prefilled(figures: Figures) -> str:
    return _NOTHING if figures.prefilled_tokens is None else f"{figures.prefilled_tokens}"


def _by_place(figures: Figures) -> str:
    """Of the steps that drafted a token at a place, the share in which it became text: 90 80 70%."""
    pairs = zip(figures.accepted_per_position, figures.drafted_per_position, strict=False)
    shares = [f"{100 * accepted / drafted:.0f}" for accepted, drafted in pairs if drafted][:_SHOWN_PLACES]
    return f"{' '.join(shares)}%" if shares else _NOTHING


def _by_source(figures: Figures) -> str:
    """Of each source's tokens the accepted ones, the source of most drafts first."""
    lines = [
        f"{source} {figures.accepted_by_source.get(source, 0)} / {drafted}"
        for source, drafted in figures.drafted_by_source.items()
    ]
    return "\n".join(lines) or _NOTHING


def _differing(contestant: ContestantReport) -> str:
    mismatches = contestant.mismatches
    return _NOTHING if mismatches is None else f"{len(mismatches.positions)} of {mismatches.num_prompts}"


def natural_width(report: Report, console: Console) -> int:
    """Columns that the table takes where nothing narrows it."""
    return console.measure(table(report)).maximum


def memory_table(uses: Sequence[MemoryUse]) -> Table:
    """Peak memory by contestant."""
    kind = next((f" ({use.kind})" for use in uses if use.kind), "")
    built = Table(title=f"memory in MiB{kind}, each in a process of its own", title_justify="left", title_style="bold")
    for column in ("contestant", "at start", "loading, peak", "loaded", "decoding, peak", "own, peak"):
        built.add_column(column, justify="left" if column == "contestant" else "right")
    for use in uses:
        values = (use.at_start, use.loading_peak, use.loaded, use.decoding_peak, use.own_peak)
        built.add_row(
            use.contestant, *((_NOTHING,) * len(values) if use.failure else (f"{value:.0f}" for value in values))
        )
    return built


def startup_table(starts: Sequence[StartUp]) -> Table:
    """Time to the first token by contestant."""
    built = Table(
        title="seconds to the first token of a fresh process (median)", title_justify="left", title_style="bold"
    )
    for column in ("contestant", "after import torch", "of the process"):
        built.add_column(column, justify="left" if column == "contestant" else "right")
    for start in starts:
        values = (start.seconds, start.process_seconds)
        cells = (_NOTHING if start.failure else f"{statistics.median(seconds):.2f}" for seconds in values)
        built.add_row(start.contestant, *cells)
    return built
