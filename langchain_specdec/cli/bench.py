"""`specdec bench`: measure this engine and its peers against each other."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_specdec.bench.contestant import KINDS, ContestantSpec, fitting, parse_contestants
from langchain_specdec.bench.plot import check_plot, draw
from langchain_specdec.bench.workload import Question, load_workload, select
from langchain_specdec.cli.loading import calm_libraries, spinner, tell_once
from langchain_specdec.cli.options import CHAT, FLAGS, OUTPUT, Given, takes_options
from langchain_specdec.cli.progress import Lines, rows_on, ticking
from langchain_specdec.cli.reporting import FAILED, INTERRUPTED, flag_of
from langchain_specdec.cli.signals import handled
from langchain_specdec.cli.terminal_text import is_drawable, json_line, visible
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import Option
from langchain_specdec.pages.render import check_page, write_page

if TYPE_CHECKING:
    from rich.console import Console

    from langchain_specdec.bench.memory import MemoryUse
    from langchain_specdec.bench.plan import Plan
    from langchain_specdec.bench.report import Report
    from langchain_specdec.bench.startup import StartUp

_WHAT, _WHO, _HOW = "Workload", "Contestants", "Measurement"
_BASELINE = "plain"
_SYNTHETIC_AGREEMENT, _SYNTHETIC_COST = 0.9, 0.05
_WHO_HELP = "Who takes part, with commas, each NAME, NAME:SETTING or NAME@PROMPTS_AT_ONCE. Names: " + ", ".join(KINDS)
# The engine's options that are the same for all contestants; the rest is each contestant's, or the workload's.
_ENGINE = ("max_draft_tokens", "max_tree_nodes", "shared_lookup", "prompt_lookup_max_ngram", "prefill_chunk",
           "num_threads")  # fmt: skip
# Those that peers have too.
_EVERYBODYS = ("num_threads",)
# All that --startup has a use for.
_OF_STARTUP = ("startup", "model", "contestants", "repeat", "neighbours", "as_json", "debug")
_FLAGS = ("model", "draft_model", "dtype", "device", "compile", *_ENGINE, "max_new_tokens", "temperature", "seed",
          "ignore_eos")  # fmt: skip


def _whole(default: int | None, help_text: str, unset: str = "") -> Option:
    return Option(default, help_text, int, 1, 2**31, range="a whole number from 1", unset=unset)


# fmt: off
@takes_options(
    _FLAGS, compile={"default": "off"}, max_new_tokens={"default": 64}, seed={"default": 0},
    model={"help": "Model id, folder, GGUF file, `embedded`, or `random:SHAPE` as random:llama-8b."},
    num_threads={"help": "On a CPU, threads of each contestant."})
def bench(
    given: Given,
    *,
    workload: Annotated[Path | None, Option(
        None, "File of prompts in Spec-Bench's format.", Path, unset="one that comes along"), _WHAT],
    category: Annotated[list[str] | None, Option(None, "Only this category. May be repeated.", list), _WHAT],
    limit: Annotated[int | None, _whole(None, "Most prompts of a category."), _WHAT],
    chat: Annotated[bool | None, CHAT] = None,
    max_prompt_tokens: Annotated[int | None, _whole(None, "Cut longer prompts.", "what fits"), _WHAT],
    contestants: Annotated[str, Option("plain,auto,hf,hf-prompt-lookup", _WHO_HELP, str), _WHO],
    baseline: Annotated[str | None, Option(None, "Compare with this one.", str, unset="plain, else the first"), _WHO],
    synthetic_agreement: Annotated[float | None, Option(
        None, "Chance that a synthetic draft token is right.", float, 0, 1, range="from 0 to 1", unset="0.9"), _WHO],
    synthetic_cost: Annotated[float | None, Option(
        None, "Its cost in plain steps.", float, 0, 10, range="from 0 to 10 plain steps",
        unset="0.05, or the draft model's where there is one"), _WHO],
    repeat: Annotated[int, _whole(1, "How often each prompt is run."), _HOW],
    batch: Annotated[int, _whole(1, "Prompts handed over together."), _HOW],
    keep_prefixes: Annotated[bool, Option(
        False, "Let the engine reuse what prompts have in common with earlier ones.", bool), _HOW],
    step_cost: Annotated[str, Option(
        "measured", "What the engine takes wide steps to cost: what it measures, or (flat) no more than narrow ones, "
        "for counts that do not depend on the machine.", str, words=("measured", "flat")), _HOW],
    memory: Annotated[bool, Option(False, "Measure peak memory instead, each contestant in a process.", bool), _HOW],
    startup: Annotated[bool, Option(
        False, "Measure the time to the first token instead, each contestant in fresh processes.", bool), _HOW],
    neighbours: Annotated[int, Option(
        0, "Busy processes beside.", int, 0, 64, range="a whole number from 0 to 64"), _HOW],
    neighbour_engines: Annotated[int, Option(
        0, "Processes beside that decode by this engine, as plain does.", int, 0, 64,
        range="a whole number from 0 to 64"), _HOW],
    as_json: Annotated[bool, Option(
        False, "Print one JSON object, every run in it; the table goes to stderr.", bool), OUTPUT],
    plot: Annotated[Path | None, Option(None, "Draw bars by category into this file.", Path), OUTPUT],
    html: Annotated[Path | None, Option(
        None, "Write a page to look at into this file: bars, and texts with their drafts marked.", Path), OUTPUT],
) -> None:
# fmt: on
    """Measure this engine and its peers on the same weights, prompt by prompt in turns."""
    options = given.options
    has_draft_model = options["draft_model"] is not None
    names = [name.strip() for name in contestants.split(",") if name.strip()]
    specs = parse_contestants(names, has_draft_model=has_draft_model, batch=batch)
    _check_synthetic(synthetic_agreement, synthetic_cost, specs)
    _baseline(baseline, specs)
    ours_only = [name for name in _ENGINE if name not in _EVERYBODYS]
    asked = [flag_of(name) for name in ours_only if options[name] != FLAGS[name].default]
    asked += ["--compile"] * (options["compile"] != "off") + ["--step-cost"] * (step_cost == "flat")
    if asked and not any(spec.is_ours for spec in specs):
        msg = f"{' and '.join(asked)} can be given for this engine only, and none of its contestants is asked for."
        raise InvalidParameterError(msg)
    if startup:
        _check_startup(specs, given.model, [flag_of(name) for name in given.named if name not in _OF_STARTUP])
    if memory and (neighbours or neighbour_engines):
        msg = "--memory measures no speed: leave out --neighbours and --neighbour-engines."
        raise InvalidParameterError(msg)
    if memory and (plot is not None or html is not None or repeat > 1 or baseline is not None):
        msg = "--memory measures no speed: leave out --plot, --html, --repeat and --baseline."
        raise InvalidParameterError(msg)
    questions = select(load_workload(workload), category or (), limit)
    if plot is not None:
        check_plot(plot, workload)
    if html is not None:
        check_page(html, workload)
    with spinner("Starting PyTorch"):
        from langchain_specdec.bench.build import check_packages, named_head, why_no_mtp
        from langchain_specdec.bench.plan import Plan
    if startup:
        check_packages(specs)
        _startup(specs, given.model, repeat, neighbours, as_json=as_json)
        return
    left_out: dict[str, str] = {}
    is_head = named_head(options["draft_model"]) is not None
    if has_draft_model:
        specs, left_out = fitting(specs, "head" if is_head else "model", options["draft_model"])
    if any(spec.kind == "mtp" for spec in specs):
        # On the Hub they are downloaded.
        with spinner("Looking for MTP layers") as shown:
            calm_libraries(downloads=not shown.is_drawn, debug=given.debug)
            reason = why_no_mtp(given.model)
        without = [spec.name for spec in specs if spec.kind == "mtp" and reason]
        left_out |= dict.fromkeys(without, reason)
        specs = [spec for spec in specs if spec.name not in without]
        if not specs:
            msg = f"Nothing is left to be measured: {reason}. Take other contestants, such as auto."
            raise InvalidParameterError(msg)
    for name, reason in left_out.items():
        print(visible(f"{name} is left out: {reason}."), file=sys.stderr)
    check_packages(specs)
    if synthetic_cost is None and (is_head or not has_draft_model):
        synthetic_cost = _SYNTHETIC_COST
    plan = Plan(
        given.model,
        specs,
        given.params,
        engine={name: options[name] for name in _ENGINE},
        draft_model=options["draft_model"],
        left_out=left_out,
        batch=batch,
        dtype=options["dtype"],
        device=options["device"],
        is_chat=chat,
        max_prompt_tokens=max_prompt_tokens,
        keep_prefixes=keep_prefixes,
        synthetic_agreement=_SYNTHETIC_AGREEMENT if synthetic_agreement is None else synthetic_agreement,
        synthetic_cost=synthetic_cost,
        step_cost=step_cost,
        compile=options["compile"],
        neighbours=neighbours,
        neighbour_engines=neighbour_engines,
    )
    if memory:
        _memory(plan, questions, as_json=as_json)
        return
    chosen = _baseline(baseline, specs)
    report, tokenizer = _measure(plan, questions, str(workload or "default"), chosen, repeat, debug=given.debug)
    _show(report, as_json=as_json)
    _write(report, questions, tokenizer, plot, html)
    if report.is_interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(contestant.failure for contestant in report.contestants):
        raise typer.Exit(FAILED)


def _write(
    report: Report, questions: Sequence[Question], tokenizer: Any, plot: Path | None, html: Path | None
) -> None:
    """Write what was asked for of a report."""
    for path in (plot, html):
        if path is not None and not report.runs:
            print(visible(f"Nothing was measured, so {path} is not written."), file=sys.stderr)
        elif path is not None:
            if path is plot:
                draw(report, path)
            else:
                from langchain_specdec.bench.page import make_page

                write_page(make_page(report, {q.question_id: q.text for q in questions}, tokenizer), path)
            print(visible(f"wrote {path}"), file=sys.stderr)


def _baseline(asked: str | None, specs: Sequence[ContestantSpec]) -> str:
    names = [spec.name for spec in specs]
    if asked is None:
        return _BASELINE if _BASELINE in names else names[0]
    if asked not in names:
        msg = f"The baseline {asked!r} is not among the contestants: {', '.join(map(repr, names))}."
        raise InvalidParameterError(msg)
    return asked


def _check_synthetic(agreement: float | None, cost: float | None, specs: Sequence[ContestantSpec]) -> None:
    if not any(spec.kind == "synthetic" for spec in specs) and (agreement, cost) != (None, None):
        msg = "--synthetic-agreement and --synthetic-cost are for the contestant synthetic, which is not asked for."
        raise InvalidParameterError(msg)


def _measure(
    plan: Plan, questions: Sequence[Question], workload: str, baseline: str, repeat: int, *, debug: bool
) -> tuple[Report, Any]:
    """The report, and the model's tokenizer."""
    from langchain_specdec.bench.build import set_up
    from langchain_specdec.bench.header import describe_graphs, make_header
    from langchain_specdec.bench.machine import read_bandwidth
    from langchain_specdec.bench.measure import grouped, measure
    from langchain_specdec.bench.neighbours import EngineNeighbours, busy_neighbours
    from langchain_specdec.bench.report import make_report

    with spinner(f"Loading {plan.model}") as shown:
        calm_libraries(downloads=not shown.is_drawn, debug=debug)
        context = set_up(plan, questions, tell_once(shown))
        setup = context.__enter__()
    try:
        with spinner("Measuring the bandwidth of the memory"):
            bandwidth = read_bandwidth(setup.target.device)
        header = make_header(plan, setup, shlex.join(["specdec", *sys.argv[1:]]), workload, repeat)
        groups = grouped(setup.prompts, plan.batch)
        runs = len(setup.contestants) * len(groups) * repeat
        engines = EngineNeighbours(plan, questions, plan.neighbour_engines)
        with (
            _ended_like_ctrl_c(),
            busy_neighbours(plan.neighbours),
            engines.running(),
            _progress(f"Measuring {runs} runs of {len(setup.contestants)} contestants") as tell,
        ):
            measurement = measure(setup.contestants, groups, repeat, tell)
        header["neighbours"] = {"busy": plan.neighbours, "engines": engines.tokens_per_second}
        # Only now is it known what was captured, and whether it held.
        header["steps"] = describe_graphs(setup.target.captured, setup.target.obstacle)
        report = make_report(
            measurement,
            {contestant.name: contestant.note for contestant in setup.contestants},
            header,
            baseline=baseline,
            batch=plan.batch,
            max_new_tokens=plan.params.max_new_tokens,
            comparable=_comparable(plan, baseline),
            step_bytes=setup.target.num_bytes,
            bandwidth=bandwidth,
        )
        return report, setup.target.tokenizer
    finally:
        context.__exit__(None, None, None)


def _comparable(plan: Plan, baseline: str) -> list[str]:
    """Contestants that have to write what the baseline writes: all when greedy, else those that share its noise."""
    specs: Sequence[ContestantSpec] = plan.specs
    is_ours = {spec.name: spec.is_ours for spec in specs}
    return [
        n for n, ours in is_ours.items() if n == baseline or not plan.params.temperature or (ours and is_ours[baseline])
    ]


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Take SIGTERM, as `timeout` sends it, for Ctrl-C: what was measured is worth its hours."""

    def interrupt(*_: object) -> None:
        # `timeout` sends it twice; the second must not hit what writes the report.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    with handled(signal.SIGTERM, interrupt):
        yield


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left on stderr; where that is no terminal, a line now and every few seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    if not is_drawable(sys.stderr):
        print(what, file=sys.stderr, flush=True)
        with ticking(Lines(what)) as lines:
            yield lambda name, done, total: lines.follow(f"Measuring, now {name}", done, total)
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    # Few redraws: they take time from the same cores that are measured.
    with rows_on(console, *columns, refresh_per_second=2) as progress:
        task = progress.add_task("")

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield tell


def _show(report: Report, *, as_json: bool) -> None:
    from langchain_specdec.bench.table import print_report

    print_report(report, _console(report, is_stderr=as_json))
    if as_json:
        print(json_line(report.as_dict()))


def _console(report: Report, *, is_stderr: bool) -> Console:
    from rich.console import Console

    from langchain_specdec.bench.table import natural_width

    console = Console(stderr=is_stderr)
    if not console.is_terminal:
        # Nobody's window limits a file or a pipe.
        console = Console(stderr=is_stderr, width=max(natural_width(report, Console(width=1000)), 100))
    return console


def _memory(plan: Plan, questions: Sequence[Question], *, as_json: bool) -> None:
    from rich.console import Console

    from langchain_specdec.bench.memory import measure_memory
    from langchain_specdec.bench.table import memory_table

    uses = []
    for spec in plan.specs:
        with spinner(f"Running {spec.name} in a process of its own"):
            uses.append(measure_memory(replace(plan, specs=[spec]), questions))
    if as_json:
        print(json_line([asdict(use) for use in uses]))
    else:
        Console().print(memory_table(uses))
    _tell_failures(uses)


def _check_startup(specs: Sequence[ContestantSpec], model: str, others: Sequence[str]) -> None:
    from langchain_specdec.bench.startup import check_startup

    if others:
        msg = f"--startup measures how long a process takes to its first token: leave out {', '.join(others)}."
        raise InvalidParameterError(msg)
    check_startup(specs, model)


def _startup(specs: Sequence[ContestantSpec], model: str, repeat: int, neighbours: int, *, as_json: bool) -> None:
    from rich.console import Console

    from langchain_specdec.bench.neighbours import busy_neighbours
    from langchain_specdec.bench.startup import measure_startup, sources
    from langchain_specdec.bench.table import startup_table

    models = sources(model, specs)
    starts = []
    with _ended_like_ctrl_c(), busy_neighbours(neighbours):
        for spec in specs:
            with spinner(f"Starting {spec.name} in processes of its own"):
                starts.append(measure_startup(spec, models, repeat))
    if as_json:
        print(json_line([asdict(start) for start in starts]))
    else:
        Console().print(startup_table(starts))
    _tell_failures(starts)


def _tell_failures(results: Sequence[MemoryUse | StartUp]) -> None:
    for result in results:
        if result.failure:
            print(visible(f"{result.contestant} failed: {result.failure}"), file=sys.stderr)
    if any(result.failure for result in results):
        raise typer.Exit(FAILED)
