"""`specdec bench`: names, workloads, turns, figures, table, JSON and plot, and every contestant on a tiny model."""

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers.utils import logging
from typer.testing import CliRunner

from langchain_specdec.bench import plot
from langchain_specdec.bench.build import check_packages, set_up, why_no_mtp
from langchain_specdec.bench.contestant import KINDS, Prompt, RunResult, fitting, parse_contestants
from langchain_specdec.bench.machine import describe_machine, versions
from langchain_specdec.bench.measure import MIXED, grouped, measure
from langchain_specdec.bench.memory import MemoryUse
from langchain_specdec.bench.module_weights import step_bytes
from langchain_specdec.bench.plan import Plan
from langchain_specdec.bench.random_weights import SHAPES, random_model
from langchain_specdec.bench.report import make_report
from langchain_specdec.bench.statistics import ALL, Run, Spread, figures, first_difference, mismatches, spread
from langchain_specdec.bench.table import memory_table, print_report
from langchain_specdec.bench.weights import load_weights
from langchain_specdec.bench.workload import Question, encode, load_workload, select
from langchain_specdec.cli.app import app
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError
from langchain_specdec.models import make_runner
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.kernel_linear import can_use_panels
from langchain_specdec.sampling.params import SamplingParams
from tests.support.eagle3_folders import TinyHead, write_files
from tests.support.hybrid_models import MISSING
from tests.support.mtp_layers import chained_hybrid, write_with_mtp
from tests.support.oracle_heads import successors
from tests.support.tiny_models import byte_tokenizer, tiny_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
INSTALLED = [name for name in ("flashspec", "economize") if importlib.util.find_spec(name) is not None]
TINY = ("--model", "random:tiny", "--max-prompt-tokens", "60", "--max-new-tokens", "12", "--limit", "1")


@pytest.fixture(autouse=True)
def as_found():
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)


def prompt(number=0, category="qa", length=4):
    return Prompt(str(number), category, tuple(range(length)))


def result(*rows, first=1.0, seconds=3.0, first_tokens=1, **counts):
    return RunResult(tuple(map(tuple, rows)), first, first_tokens, seconds, **counts)


def run(contestant, group, res, *, repeat=0, category="qa"):
    return Run(contestant, group, category, repeat, 0, (str(group),), 4, res)


class Fake:
    """Returns what it is told, and writes down that it was asked."""

    def __init__(self, name, log, rows=(1, 2, 3), error=None, seconds=3.0):
        self.name, self.note, self._log = name, f"{name} runs", log
        self._rows, self._error, self._seconds = rows, error, seconds

    def warm_up(self, groups):
        self._log.append((self.name, "warm-up"))

    def run(self, prompts):
        self._log.append((self.name, tuple(p.prompt_id for p in prompts)))
        if self._error is not None:
            raise self._error
        return result(*(self._rows for _ in prompts), seconds=self._seconds)

    def close(self):
        self._log.append((self.name, "close"))


# Names of contestants


def parsed(*names, has_draft_model=False, batch=1):
    return parse_contestants(names, has_draft_model=has_draft_model, batch=batch)


def test_a_contestant_has_a_name_a_setting_and_a_concurrency():
    specs = parsed("plain", "auto@8", "hf-prompt-lookup:3@1", "hf-compiled:max-autotune", batch=8)
    assert [(s.name, s.kind, s.setting, s.concurrency) for s in specs] == [
        ("plain", "plain", None, None),
        ("auto@8", "auto", None, 8),
        ("hf-prompt-lookup:3@1", "hf-prompt-lookup", 3, 1),
        ("hf-compiled:max-autotune", "hf-compiled", "max-autotune", None),
    ]
    assert [s.is_ours for s in specs] == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("fast", "no contestant 'fast'"),
        ("plain:3", "'plain' has no setting"),
        ("auto:0", "from 1 to 64"),
        ("auto:65", "from 1 to 64"),
        ("auto:", "got ''"),
        ("auto@0", "prompts at once"),
        ("auto@x", "prompts at once"),
        ("auto@2@3", "no contestant"),
        ("hf-compiled:fastest", "max-autotune"),
        ("economize:0", "its cycle_length, a whole number from 1 to 1000"),
        ("llama-cpp:3", "'llama-cpp' has no setting"),
        ("llama-cpp-lookup:ngram-mod", "its kind of speculation, ngram-simple, ngram-map-k, ngram-map-k4v"),
        ("draft_model", "needs a draft model"),
        ("hf-assisted:4", "needs a draft model"),
        ("flashspec:composite-g4", "needs a draft model"),
        ("economize-eagle3", "needs a trained head"),
    ],
)
def test_a_wrong_name_is_refused_with_what_is_allowed(name, part):
    with pytest.raises(InvalidParameterError, match=part):
        parsed(name)


def test_contestants_that_do_not_go_with_the_rest_are_refused():
    with pytest.raises(InvalidParameterError, match="hf-prompt-lookup:3@1"):
        parsed("hf-prompt-lookup:3", batch=4)
    with pytest.raises(InvalidParameterError, match="once only: 'plain'"):
        parsed("plain", "plain")
    with pytest.raises(InvalidParameterError, match="No contestant would use the draft model"):
        parsed("plain", "hf", has_draft_model=True)
    with pytest.raises(InvalidParameterError, match="no contestants"):
        parsed()


@pytest.mark.parametrize(
    ("form", "kept", "reason"),
    [
        ("model", ["plain", "auto", "hf-assisted"], "it takes a trained head, and a/b is a draft model"),
        ("head", ["plain", "auto", "economize-eagle3"], "it takes a draft model, and a/b is a trained head"),
    ],
)
def test_contestants_that_take_another_form_of_draft_are_left_out_with_the_reason(form, kept, reason):
    names = ("plain", "auto", "hf-assisted", "economize-eagle3")
    specs, left_out = fitting(parsed(*names, has_draft_model=True), form, "a/b")
    assert [spec.name for spec in specs] == kept
    assert left_out == {name: reason for name in names if name not in kept}
    other = "hf-assisted" if form == "head" else "economize-eagle3"
    with pytest.raises(InvalidParameterError, match=r"no contestant would use it[.] Take one of 'draft_model', 'auto'"):
        fitting(parsed("plain", other, has_draft_model=True), form, "a/b")


@pytest.mark.transformers
@pytest.mark.parametrize(
    ("name", "package"), [("flashspec", "flashspec"), ("economize", "economize"), ("llama-cpp-lookup", "xllamacpp")]
)
def test_a_missing_package_is_named(name, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=f"pip install {package}"):
        check_packages(parsed("plain", name))
    check_packages(parsed("plain", "hf"))


# Workloads


def test_the_workload_that_comes_along():
    questions = load_workload(None)
    categories = [question.category for question in questions]
    assert len(questions) == len(set(categories)) == len({q.question_id for q in questions}) == 10
    assert "random_words" in categories


def test_a_workload_in_spec_bench_s_format(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text(
        '{"question_id": 7, "category": "qa", "turns": ["Who?", "And why?"], "reference": []}\n\n'
        '{"question_id": "b", "category": "math", "turns": ["1 + 1"]}\n'
    )
    questions = [Question("7", "qa", "Who?"), Question("b", "math", "1 + 1")]
    assert load_workload(path) == questions
    path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n"), newline="")
    assert load_workload(path) == questions, "as an editor of Windows writes it"
    path.write_text('{"question_id": 1, "category": "qa", "turns": ["a line\u2028separator"]}')
    assert load_workload(path) == [Question("1", "qa", "a line\u2028separator")]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"question_id": 1}', '{"question_id": 1, "category": "qa", "turns": []}',
     '{"question_id": 1, "category": "qa", "turns": [" "]}', '{"question_id": 1, "category": 2, "turns": ["x"]}',
     r'{"question_id": 1, "category": "\u001b[31mqa", "turns": ["x"]}',
     r'{"question_id": "\u001b]0;title\u0007", "category": "qa", "turns": ["x"]}'],
)  # fmt: skip
def test_a_line_that_is_not_in_the_format_is_named(tmp_path, line):
    path = tmp_path / "w.jsonl"
    path.write_text('{"question_id": 1, "category": "qa", "turns": ["x"]}\n' + line)
    with pytest.raises(InvalidParameterError, match=r"w\.jsonl, line 2"):
        load_workload(path)


def test_a_workload_that_cannot_be_read(tmp_path):
    with pytest.raises(InvalidParameterError, match="No such file"):
        load_workload(tmp_path / "none.jsonl")
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidParameterError, match="UTF-8"):
        load_workload(tmp_path / "latin")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InvalidParameterError, match="empty"):
        load_workload(tmp_path / "empty")


def test_selecting_categories_and_a_number_of_each():
    questions = [Question(str(i), "ab"[i % 2], "x") for i in range(6)]
    assert [q.question_id for q in select(questions, (), 2)] == ["0", "1", "2", "3"]
    assert [q.question_id for q in select(questions, ("b",), None)] == ["1", "3", "5"]
    with pytest.raises(InvalidParameterError, match=r"no category 'c'\. It has: a, b"):
        select(questions, ("c",), None)


@pytest.mark.transformers
def test_a_prompt_that_is_too_long_keeps_its_beginning_and_the_chat_format():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    question = Question("1", "qa", "abcdefgh" * 10)
    whole = encode(question, tokenizer, 200, is_chat=True)
    assert tokenizer.decode(list(whole.token_ids)) == f"<user>{question.text}<assistant>"
    assert not whole.is_cut
    cut = encode(question, tokenizer, 40, is_chat=True)
    assert tokenizer.decode(list(cut.token_ids)) == f"<user>{question.text[:23]}<assistant>"
    assert cut.is_cut
    assert len(cut.token_ids) == 40
    assert tokenizer.decode(list(encode(question, tokenizer, 5, is_chat=False).token_ids)) == "abcde"
    with pytest.raises(InvalidParameterError, match="no room for question 1"):
        encode(question, tokenizer, 17, is_chat=True)


# Taking turns


def test_contestants_run_in_turns_and_the_first_one_rotates():
    log: list[Any] = []
    contestants = [Fake(name, log) for name in "abc"]
    groups = grouped([prompt(i) for i in range(4)], 1)
    told = []
    measurement = measure(contestants, groups, 2, lambda *what: told.append(what))
    assert [entry for entry in log if entry[1] == "warm-up"] == log[:3]
    order = ["".join(name for name, ids in log[3:] if ids == (str(i),)) for i in range(4)]
    assert order == ["abcbca", "bcacab", "cababc", "abcbca"]
    assert len(measurement.runs) == 3 * 4 * 2
    assert [r.order for r in measurement.runs[:6]] == [0, 1, 2, 0, 1, 2]
    assert sorted(measurement.warm_up_seconds) == ["a", "b", "c"]
    assert told[-1] == ("done", 27, 27)
    assert [done for _, done, _ in told] == list(range(28))


def test_a_group_of_several_categories_is_mixed():
    prompts = [prompt(0, "qa"), prompt(1, "qa"), prompt(2, "qa"), prompt(3, "math"), prompt(4, "math")]
    runs = measure([Fake("a", [])], grouped(prompts, 2), 1).runs
    assert [(r.prompt_ids, r.category) for r in runs] == [
        (("0", "1"), "qa"),
        (("2", "3"), MIXED),
        (("4",), "math"),
    ]
    assert [r.prompt_tokens for r in runs] == [8, 8, 4]


def test_a_contestant_that_fails_drops_out_and_the_others_go_on():
    log: list[Any] = []
    contestants = [Fake("a", log), Fake("b", log, error=RuntimeError("no\nroom"))]
    measurement = measure(contestants, grouped([prompt(0), prompt(1)], 1), 1)
    assert measurement.failures == {"b": "RuntimeError: no room"}
    assert [r.contestant for r in measurement.runs] == ["a", "a"]
    assert log.count(("b", ("0",))) == 1
    assert ("b", ("1",)) not in log


def test_an_interruption_keeps_what_was_measured():
    contestants = [Fake("a", []), Fake("b", [], error=KeyboardInterrupt())]
    measurement = measure(contestants, grouped([prompt(0), prompt(1)], 1), 1)
    assert measurement.is_interrupted
    assert [r.contestant for r in measurement.runs] == ["a"]


# Figures


def test_spread():
    assert spread([]) is None
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0, 1)
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(2.0, 3.0, 4.0, 5)


def test_the_decode_rate_leaves_out_the_first_delivery_with_all_its_tokens():
    res = result(range(11), first=1.0, seconds=6.0, first_tokens=3)
    found = figures([run("a", 0, res)], "a", "a", ALL, "decode")
    assert found.tokens_per_second == pytest.approx(8 / 5)
    assert figures([run("a", 0, res)], "a", "a", ALL, "overall").tokens_per_second == pytest.approx(11 / 6)


def test_ratios_are_medians_of_repeats_and_then_of_prompts():
    runs = []
    # Seconds of decoding 4 tokens: prompt 0 in three repeats, prompts 1 and 2 once.
    for group, repeat, mine, theirs in [(0, 0, 1, 2), (0, 1, 1, 4), (0, 2, 1, 30), (1, 0, 2, 2), (2, 0, 4, 2)]:
        for name, seconds in (("a", mine), ("plain", theirs)):
            runs.append(run(name, group, result(range(5), seconds=1.0 + seconds), repeat=repeat))
    found = figures(runs, "a", "plain", ALL, "decode")
    # Prompts' ratios: 4 (the median of 2, 4 and 30), 1 and 0.5.
    assert found.ratio == Spread(0.75, 1.0, 2.5, 3)
    assert found.ratio_of_totals == pytest.approx((20 / 9) / (20 / 40))
    assert found.tokens_per_second == pytest.approx(20 / 9)
    assert found.rate is not None
    assert found.rate.median == pytest.approx(2.0)
    assert found.num_groups == 3
    same = figures(runs, "plain", "plain", ALL, "decode").ratio
    assert same is not None
    assert same.median == 1.0


def test_only_runs_that_both_have_are_compared():
    fast, slow = result(range(5), seconds=2.0), result(range(5), seconds=3.0)
    runs = [run("a", 0, fast), run("plain", 0, slow), run("a", 1, result(range(5), seconds=100.0))]
    found = figures(runs, "a", "plain", ALL, "decode")
    assert found.ratio_of_totals == pytest.approx(2.0)
    assert found.ratio is not None
    assert found.ratio.median == pytest.approx(2.0)
    assert found.num_groups == 2


def test_an_answer_in_one_delivery_has_no_decode_rate():
    runs = [run(name, 0, result([1], first=1.0, seconds=1.0)) for name in ("a", "plain")]
    found = figures(runs, "a", "plain", ALL, "decode")
    assert (found.tokens_per_second, found.rate, found.ratio, found.ratio_of_totals) == (None, None, None, None)
    assert found.first_seconds is not None
    assert found.first_seconds.median == 1.0
    nothing = figures(runs, "b", "plain", ALL, "decode")
    assert (nothing.num_groups, nothing.first_seconds) == (0, None)


def test_counts_are_summed_and_unknown_ones_stay_unknown():
    known = result(range(6), num_steps=3, drafted_tokens=8, accepted_tokens=3, prefilled_tokens=4)
    found = figures([run("a", 0, known), run("a", 1, known)], "a", "a", ALL, "decode")
    assert (found.tokens_per_step, found.acceptance_rate, found.prefilled_tokens) == (2.0, 0.375, 8)
    unknown = figures([run("a", 0, result(range(6)))], "a", "a", ALL, "decode")
    assert (unknown.tokens_per_step, unknown.acceptance_rate, unknown.prefilled_tokens) == (None, None, None)
    assert figures([run("a", 0, known), run("a", 1, known, category="x")], "a", "a", "x", "decode").num_groups == 1


def test_prompt_tokens_a_second_are_those_that_were_read_over_the_time_to_the_first_delivery():
    runs = [run("a", n, result([1, 2], first=1.0 + n, prefilled_tokens=30)) for n in range(2)]
    assert figures(runs, "a", "a", ALL, "decode").prefill_per_second == pytest.approx(60 / 3)
    # Of several at once only one has its first delivery at that time.
    assert figures(runs, "a", "a", ALL, "overall").prefill_per_second is None
    unknown = figures([run("a", 0, result([1, 2]))], "a", "a", ALL, "decode")
    assert unknown.prefill_per_second is None


def test_first_difference():
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert first_difference([], []) is None


def test_mismatches_are_found_in_any_repeat_and_not_beyond_the_limit():
    runs = [
        run("plain", 0, result([1, 2, 3])),
        run("plain", 0, result([1, 2, 3]), repeat=1),
        run("plain", 1, result([1, 2, 3])),
        run("a", 0, result([1, 2, 3])),
        run("a", 0, result([1, 9, 3]), repeat=1),
        run("a", 1, result([1, 2, 3, 4, 5])),
        run("a", 2, result([7])),
    ]
    found = mismatches(runs, "a", "plain", 3)
    assert (found.num_prompts, found.positions, found.num_beyond) == (2, {"0": 1}, 2)
    assert mismatches(runs, "plain", "plain", 3).positions == {}


# Reports


def header():
    return {
        "command": "specdec bench",
        "machine": describe_machine(torch.device("cpu")),
        "versions": versions(),
        "model": {"name": "m", "dtype": "float32", "step_bytes": 100, "num_packed": 3},
        "draft_model": None,
        "settings": {
            "workload": "default", "num_prompts": 2, "num_cut": 1, "is_chat": True, "batch": 1, "repeat": 1,
            "max_new_tokens": 3, "temperature": 0.0, "seed": 0,
        },
    }  # fmt: skip


def report(*, failing=None, seconds=2.0, categories=("qa", "math")):
    contestants = [
        Fake("plain", []),
        Fake("auto", [], seconds=seconds),
        Fake("hf", [], rows=(1, 9, 3, 4), error=failing),
    ]
    prompts = [prompt(number, category) for number, category in enumerate(categories)]
    measurement = measure(contestants, grouped(prompts, 1), 1)
    notes = {c.name: c.note for c in contestants}
    return make_report(
        measurement, notes, header(), baseline="plain", batch=1, max_new_tokens=3, comparable=list(notes),
        step_bytes=100, bandwidth=200.0,
    )  # fmt: skip


def printed(rep, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    print_report(rep, console)
    return console.export_text()


def test_the_table_shows_rates_ratios_and_what_differs():
    text = printed(report())
    assert "plain   1.0" not in text
    for part in (
        "$ specdec bench",
        "a step reads 0 MB of weights",
        "50% of what bandwidth allows",
        "2 prompts (1 cut to fit) in the chat format, 3 new tokens, greedy",
        "2.00×",
        "2.00× (2.00–2.00)",
        "2 of 2",
        "hf returned 2 tokens beyond max_new_tokens; they are counted.",
        "hf differs from plain: prompt 0 at token 1, 1 at token 1",
    ):
        assert part in text
    assert "\nsteps " not in text
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert {"qa", "math", "all", "tokens per step", "first token, ms", "warm-up, s"} <= set(rows)


@pytest.mark.parametrize(
    ("obstacle", "used", "line"),
    [
        ("", (True, False), "captured, 1 of 2 CUDA graphs in use, made in 12.5 s (20% to 20% less time a step)"),
        ("RuntimeError: no", (False, False), "not captured (RuntimeError: no)"),
        ("", (), "not captured\n"),
        ("it runs on a CPU device", (), "not captured (it runs on a CPU device)"),
    ],
)
def test_how_steps_ran_is_told(obstacle, used, line):
    shapes = [("verify 1 x 1 tokens", 0.2, 4.5), ("verify 1 x 5 tokens", -0.1, 8.0)]
    graphs = [
        {"shape": shape, "seconds": seconds, "saving": saving, "is_used": is_used}
        for (shape, saving, seconds), is_used in zip(shapes, used, strict=False)
    ]
    rep = report()
    rep.header["steps"] = {"is_captured": any(used), "obstacle": obstacle, "graphs": graphs}
    assert f"steps     of this engine {line}" in printed(rep, 200)


def test_names_are_shown_as_they_are():
    rep = report(categories=("[red]qa", "[/] :cat:"))
    rep.header["model"]["name"] = "models[/x]/:cat:"
    text = printed(rep)
    for part in ("[red]qa", "[/] :cat:", "models[/x]/:cat:"):
        assert part in text


@pytest.mark.parametrize(
    ("neighbours", "line"),
    [
        (None, ""),
        ({"busy": 0, "engines": []}, ""),
        ({"busy": 1, "engines": []}, "1 busy process"),
        ({"busy": 2, "engines": [20.25, None]},
         "2 busy processes, an engine that decoded plainly at 20.2 tokens/s, an engine that decoded plainly"),
    ],
)  # fmt: skip
def test_neighbours_are_told(neighbours, line):
    rep = report()
    if neighbours is not None:
        rep.header["neighbours"] = neighbours
    assert rep.beside == line
    assert (f"beside    {line}\n" in printed(rep, 200)) == bool(line)
    assert ("beside  " in printed(rep, 200)) == bool(line)


def test_a_failure_and_an_interruption_are_told():
    text = printed(report(failing=RuntimeError("out of memory")))
    assert "hf failed and dropped out: RuntimeError: out of memory" in text
    assert "Interrupted: only what was measured until then." in printed(report(failing=KeyboardInterrupt()))


def test_the_object_has_every_run_and_survives_json():
    rep = report()
    read = json.loads(json.dumps(rep.as_dict()))
    assert len(read["runs"]) == 6
    assert read["runs"][0]["result"]["token_ids"] == [[1, 2, 3]]
    assert {"command", "machine", "versions", "model", "settings", "baseline", "is_interrupted"} <= set(read)
    assert read["contestants"][1]["by_category"]["all"]["ratio"]["median"] == 2.0
    # Two tokens in two seconds after the first: one second a step, of which reading 100 bytes takes half.
    assert read["roofline"]["share"] == pytest.approx(0.5)


# matplotlib asks the system for its fonts, in a process, when it is first used.
@pytest.mark.process
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"bars.{suffix}"
    plot.check_plot(path)
    # Formulas to matplotlib, the second of them a wrong one.
    rep = report(categories=("$x$", r"$\frac$"))
    rep.header["model"]["name"] = r"$\sqrt$"
    plot.draw(rep, path)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_a_plot_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InvalidParameterError, match=r"--plot writes .* \.png, \.svg, \.pdf"):
        plot.check_plot(tmp_path / "bars.gif")
    (tmp_path / "read.png").touch()
    with pytest.raises(InvalidParameterError, match="overwrite"):
        plot.check_plot(tmp_path / "read.png", tmp_path / "read.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install .matplotlib>="):
        plot.check_plot(tmp_path / "bars.png")


# Theory: what speculation can bring, by the chance that a draft token is accepted, those before it being accepted
# (Leviathan, Kalman and Matias 2023). Costs are in plain target steps.


def tokens_per_step(acceptance, draft_length):
    """Expected tokens per target forward, the bonus token included: their equation 1."""
    return sum(acceptance**i for i in range(draft_length + 1))


def speed_up(acceptance, draft_length, cost):
    """Expected speed-up over plain decoding: their theorem 3.8, where `cost` is what one more draft token costs."""
    return tokens_per_step(acceptance, draft_length) / (1 + draft_length * cost)


def best_draft_length(acceptance, cost):
    return max(range(65), key=lambda length: speed_up(acceptance, length, cost))


def accepted_over_drafted(acceptance, draft_length):
    """Lower than the chance of acceptance: what follows the first wrong token of a draft was drafted too."""
    return (tokens_per_step(acceptance, draft_length) - 1) / draft_length


def test_tokens_per_step_and_speed_up():
    assert tokens_per_step(0.0, 5) == 1.0
    assert tokens_per_step(1.0, 5) == 6.0
    for acceptance, length in ((0.5, 3), (0.9, 4)):
        closed = (1 - acceptance ** (length + 1)) / (1 - acceptance)
        assert tokens_per_step(acceptance, length) == pytest.approx(closed)
    assert speed_up(0.8, 0, 0.5) == 1.0
    assert best_draft_length(0.5, 0.5) == 0
    assert accepted_over_drafted(1.0, 4) == 1.0


def test_the_numbers_of_the_benchmarks_page():
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0\.\d+) \|(.*)\|$", page, re.MULTILINE)
    assert len(rows) == 4
    for cost, cells in rows:
        for acceptance, cell in zip((0.5, 0.6, 0.7, 0.8, 0.9), cells.split("|"), strict=True):
            # Two lengths may be equally good to the last bit but one.
            cell_match = re.fullmatch(r" ([\d.]+) \((\d+)\) ", cell)
            assert cell_match is not None
            shown, length = cell_match.groups()
            optimum = speed_up(acceptance, best_draft_length(acceptance, float(cost)), float(cost))
            assert speed_up(acceptance, int(length), float(cost)) == pytest.approx(optimum, abs=1e-9)
            assert f"{optimum:.2f}" == shown

    def at_four(cost):
        return f"{speed_up(0.9, 4, cost):.2f}"

    def best(cost):
        return speed_up(0.9, best_draft_length(0.9, cost), cost)

    assert f"{tokens_per_step(0.9, 4):.2f} tokens a step" in page
    assert f"{at_four(0.05)}× at `c + v = 0.05`, but {at_four(0.1)}× at 0.10 and {at_four(0.2)}× at 0.20" in page
    assert best(0.13) >= 3 > best(0.131)
    assert best(0.072) >= 4 > best(0.073)
    assert [f"{accepted_over_drafted(0.9, g):.0%}" for g in (4, 10)] == ["77%", "59%"]
    assert accepted_over_drafted(0.958, 4) == pytest.approx(0.9, abs=1e-3)
    assert f"{tokens_per_step(0.9583, 4):.2f} tokens a step" in page
    named = re.findall(r"^\| (`[a-z0-9_`, -]+) \|", page, re.MULTILINE)
    assert {name.strip("` ") for names in named for name in names.split(",")} == set(KINDS)


# Weights


@pytest.mark.transformers
def test_peers_share_the_engine_s_weights_and_keep_plain_layers():
    model = tiny_model()
    assert model.generation_config.eos_token_id is not None
    weights = load_weights(model, byte_tokenizer(), for_ours=True, for_peers=True, dtype="auto", device="cpu")
    linears = [m for m in weights.peer.modules() if type(m) is torch.nn.Linear]
    assert len(linears) == 15
    assert weights.ours is not None
    ours: Any = weights.ours.model
    assert weights.num_packed in (0, 15)
    assert sum(type(m) is torch.nn.Linear for m in ours.modules()) == 15 - weights.num_packed
    assert ours.get_input_embeddings().weight is weights.peer.get_input_embeddings().weight
    assert ours.config._attn_implementation != weights.peer.config._attn_implementation == "sdpa"
    assert weights.peer.generation_config.eos_token_id is None
    ids = torch.tensor([[1, 2, 3, 4]])
    assert weights.peer(ids).logits.shape == (1, 4, model.config.vocab_size)


@pytest.mark.transformers
def test_bytes_of_a_step():
    untied, tied = tiny_model(), tiny_model(tie_word_embeddings=True)
    embedding = untied.model.embed_tokens.weight.numel()
    everything = sum(p.numel() for p in untied.parameters())
    assert step_bytes(untied) == 4 * (everything - embedding)
    assert step_bytes(tied) == 4 * sum(p.numel() for p in tied.parameters()) == 4 * (everything - embedding)


@pytest.mark.transformers
@pytest.mark.parametrize("is_native", [True, False])
def test_bytes_of_a_step_are_those_of_the_weights_as_the_engine_keeps_them(is_native, monkeypatch):
    if is_native and native_library() is None:
        pytest.skip("no native decoder here")
    model = tiny_model()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    everything = step_bytes(model)
    linears = sum(4 * m.weight.numel() for m in model.modules() if type(m) is torch.nn.Linear)
    if not is_native:
        monkeypatch.setattr(make_runner, "native_library", lambda: None)
    weights = load_weights(model, byte_tokenizer(), for_ours=True, for_peers=False, dtype="auto", device="cpu")
    if is_native:
        assert (weights.formats, weights.num_bytes) == ("BF16", linears // 2)
    else:
        assert weights.formats == ""
        assert weights.num_bytes == everything - (linears // 2 if can_use_panels(torch.float32) else 0)


@pytest.mark.transformers
def test_random_weights_have_a_tokenizer_that_knows_every_token():
    model, tokenizer = random_model("random:tiny", "auto", "cpu")
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size == SHAPES["tiny"]["vocab_size"]
    assert tokenizer.decode(tokenizer("Grüße").input_ids) == "Grüße"
    assert tokenizer.decode([300]) == "<300>"
    assert model.generation_config.eos_token_id is None
    with pytest.raises(InvalidParameterError, match="llama-8b"):
        random_model("random:huge", "auto", "cpu")
    with pytest.raises(InvalidParameterError, match="got 'abacus'"):
        random_model("random:tiny", "auto", "abacus")


def test_shapes_have_the_published_sizes():
    def parameters(shape):
        s = SHAPES[shape]
        head_dim = s.get("head_dim", s["hidden_size"] // s["num_attention_heads"])
        attention = 2 * s["hidden_size"] * head_dim * (s["num_attention_heads"] + s["num_key_value_heads"])
        layer = attention + 3 * s["hidden_size"] * s["intermediate_size"]
        heads = 1 if s.get("tie_word_embeddings") else 2
        return layer * s["num_hidden_layers"] + heads * s["vocab_size"] * s["hidden_size"]

    sizes = {shape: round(parameters(shape) / 1e9, 2) for shape in SHAPES if shape != "tiny"}
    assert sizes == {
        "llama-8b": 8.03, "llama-3b": 3.21, "llama-1b": 1.24, "qwen1.5-1.8b": 1.84, "qwen1.5-0.5b": 0.46,
        "qwen2.5-1.5b": 1.54, "qwen2.5-0.5b": 0.49, "smollm2-135m": 0.13,
    }  # fmt: skip


# Contestants on a tiny model


def results(*names, batch=1, num_prompts=3, repeat=1, draft_model=None, keep_prefixes=False, **params):
    """What contestants did. By flat costs: how much pays on this machine, with what else runs on it, is no matter."""
    sampling = SamplingParams(**{"max_new_tokens": 12, "seed": 0, **params})
    specs = parse_contestants(names, has_draft_model=draft_model is not None, batch=batch)
    plan = Plan(
        "random:tiny", specs, sampling, draft_model=draft_model, batch=batch, device="cpu", max_prompt_tokens=50,
        keep_prefixes=keep_prefixes, synthetic_cost=0.05 if draft_model is None else None, step_cost="flat",
    )  # fmt: skip
    questions = [Question(str(i), "qa", f"the cat {i} sat on the mat, the cat {i} sat on") for i in range(num_prompts)]
    with set_up(plan, questions) as setup:
        measurement = measure(setup.contestants, grouped(setup.prompts, batch), repeat)
    assert measurement.failures == {}
    return {name: [r.result for r in measurement.runs if r.contestant == name] for name in names}


PEERS = ["hf", "hf-prompt-lookup:4", *INSTALLED]


@pytest.mark.transformers
def test_all_write_what_plain_writes_and_say_how():
    found = results("plain", "prompt_lookup:4", "auto", "synthetic", *PEERS)
    plain = found["plain"]
    assert all(r.num_tokens == r.num_steps == 12 for r in plain)
    for name, runs in found.items():
        for mine, theirs in zip(runs, plain, strict=True):
            assert mine.token_ids[0][:12] == theirs.token_ids[0], name
            assert 0 < mine.first_seconds < mine.seconds, name
            assert 1 <= mine.first_tokens <= mine.num_tokens, name
            assert mine.prefilled_tokens > 20, name
    assert all(r.num_steps < 12 for r in found["prompt_lookup:4"] if r.accepted_tokens)
    assert sum(r.accepted_tokens for r in found["synthetic"]) > 15
    assert [r.num_steps for r in found["hf"]] == [12, 12, 12]


@pytest.mark.transformers
def test_draft_models_and_assistants():
    found = results(
        "plain", "draft_model:3", "auto", "synthetic:4", "hf-assisted:3", draft_model="random:tiny", num_prompts=2
    )
    for name, runs in found.items():
        assert [r.token_ids for r in runs] == [r.token_ids for r in found["plain"]], name
    # The draft model is the target's twin: every draft stands.
    assert [r.num_steps for r in found["draft_model:3"]] == [3, 3]


@pytest.mark.transformers
def test_a_trained_head_drafts_for_all_who_take_one(tmp_path):
    text = results("plain", num_prompts=1)["plain"][0].token_ids[0]
    # It drafts one token only: a frequent one.
    token = max(text, key=text.count)
    head = TinyHead(64, 512, 64, 4, 2, 16, mlp=128, taps=(0, 1, 2), draft_vocab=1)
    (tmp_path / "head").mkdir()
    weights = head.weights() | {"d2t": torch.tensor([token])}
    write_files(tmp_path / "head", head.speculators_config(), weights, "safetensors")
    peers = ["economize-eagle3:4"] if "economize" in INSTALLED else []
    found = results("plain", "draft_model:3", "auto", *peers, draft_model=str(tmp_path / "head"), num_prompts=1)
    for name, runs in found.items():
        assert [r.token_ids for r in runs] == [(text,)], name
    (ours,) = found["draft_model:3"]
    assert ours.num_steps + ours.accepted_tokens == len(text)
    assert 0 < ours.accepted_by_source["eagle3"] == ours.accepted_tokens < ours.drafted_by_source["eagle3"]
    for name in peers:
        (theirs,) = found[name]
        assert theirs.num_steps == ours.num_steps
        assert theirs.accepted_per_position == ours.accepted_per_position


@pytest.mark.transformers
@pytest.mark.skipif("qwen3_5_text" in MISSING, reason="this version of transformers lacks the family")
def test_mtp_layers_draft_where_the_model_has_some(tmp_path):
    model, weights = chained_hybrid(successors())
    folders = {name: str(tmp_path / name) for name in ("knowing", "lacking", "none")}
    lacking = {k: v for k, v in weights.items() if "q_norm" not in k}
    for folder, part in zip(folders.values(), (weights, lacking, {}), strict=True):
        write_with_mtp(model, part, Path(folder))
    found = on_mtp(folders["knowing"], "plain,mtp,mtp:3,hf")
    assert found.exit_code == 0, found.output
    results = by_contestant(found)
    assert len(results) == 4
    assert all(each["token_ids"] == results["plain"]["token_ids"] for each in results.values())
    # The first step has no states yet of what the layer needs.
    assert results["mtp:3"]["num_steps"] <= 1 + math.ceil(24 / 4)
    assert results["mtp:3"]["accepted_by_source"]["mtp"] > 0
    found = on_mtp(folders["none"], "plain,mtp")
    assert (found.exit_code, list(by_contestant(found))) == (0, ["plain"])
    assert found.stderr.startswith(f"mtp is left out: {why_no_mtp(folders['none'])}.")
    for model, reason in (
        (folders["knowing"], ""),
        (folders["none"], "has no MTP layers: no weights"),
        (folders["lacking"], "self_attn.q_norm.weight)"),
        ("embedded", "the embedded model has none"),
        ("random:tiny", "has no MTP layers"),
    ):
        told = why_no_mtp(model)
        assert reason in told
        assert bool(told) == bool(reason)


def on_mtp(folder, contestants):
    return bench(
        "--model", folder, "--contestants", contestants, "--category", "math", "--limit", "1", "--max-prompt-tokens",
        "40", "--max-new-tokens", "24", "--ignore-eos", "--step-cost", "flat", "--device", "cpu", "--json",
    )  # fmt: skip


def by_contestant(found):
    return {run["contestant"]: run["result"] for run in json.loads(found.stdout)["runs"]}


@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_groups_are_decoded_as_many_at_once_as_asked_for(temperature):
    names = ("plain", "auto", "auto@1", "auto@2", "synthetic", "hf", "hf@2", "hf-prompt-lookup:3@1",
             *(f"economize:4@{at_once}" for at_once in (1, 2) if "economize" in INSTALLED))  # fmt: skip
    found = results(*names, batch=3, num_prompts=5, temperature=temperature)
    for name, runs in found.items():
        assert [len(r.token_ids) for r in runs] == [3, 2], name
        if not temperature or not name.startswith(("hf", "economize")):
            rows = [[row[:12] for row in r.token_ids] for r in runs]
            assert rows == [list(r.token_ids) for r in found["plain"]], name


def test_with_flat_costs_steps_are_counted_and_not_timed(monkeypatch):
    def measure(*args):
        raise AssertionError("measured")

    monkeypatch.setattr("langchain_specdec.engine.draft_planner.measure_step_cost", measure)
    first, second = (results("auto", "synthetic") for _ in range(2))
    for name, runs in first.items():
        assert [r.num_steps for r in runs] == [r.num_steps for r in second[name]]
        assert [r.drafted_tokens for r in runs] == [r.drafted_tokens for r in second[name]]
        # Where width costs nothing, everything that there is gets drafted.
        assert all(r.drafted_tokens > 20 for r in runs), name


def test_steps_that_cannot_be_captured_are_told():
    obstacle = "it runs on a CPU device, and steps are captured on CUDA only"
    for mode in ("reduce-overhead", "max-autotune"):
        found = bench(*TINY, "--category", "math", "--contestants", "plain", "--compile", mode)
        assert found.exit_code == 2
        advice = "Leave out --compile, or set it to auto or off."
        assert f"random:tiny cannot be captured: {obstacle}. {advice}" in " ".join(found.stderr.split())
    found = bench(*TINY, "--category", "math", "--contestants", "plain", "--compile", "auto")
    assert found.exit_code == 0, found.output
    assert f"\nsteps     of this engine not captured ({obstacle})\n" in found.stdout


def test_prefixes_are_forgotten_between_runs_unless_they_are_to_be_kept():
    whole = len("the cat 0 sat on the mat, the cat 0 sat on") - 1
    cold = results("plain", "auto")
    assert [r.prefilled_tokens for runs in cold.values() for r in runs] == [whole] * 6
    kept = results("plain", keep_prefixes=True)["plain"]
    # What the prompts have in common is in the slot already.
    assert [r.prefilled_tokens for r in kept[1:]] == [whole - len("the cat ")] * 2


def test_a_repeat_drafts_nothing_from_the_answer_before():
    runs = results("auto", repeat=3, num_prompts=1)["auto"]
    assert len(runs) == 3
    assert runs[1].num_steps == runs[2].num_steps >= runs[0].num_steps - 1


@pytest.mark.transformers
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_end_of_text_ends_it_for_all_unless_ignored(tmp_path, ignore_eos):
    question = Question("1", "qa", "the end")
    tokenizer = byte_tokenizer()
    model: Any = tiny_model()
    written = model.generate(torch.tensor([tokenizer(question.text).input_ids]), max_new_tokens=9, eos_token_id=-1)
    # Whatever it writes at the ninth place ends a text from now on.
    eos = int(written[0, -1])
    model.generation_config.eos_token_id = eos
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    params = SamplingParams(max_new_tokens=20, ignore_eos=ignore_eos)
    specs = parse_contestants(["plain", "auto", *PEERS], has_draft_model=False, batch=1)
    with set_up(Plan(str(tmp_path), specs, params, device="cpu"), [question]) as setup:
        runs = measure(setup.contestants, grouped(setup.prompts, 1), 1).runs
    rows = {r.contestant: r.result.token_ids[0] for r in runs}
    assert len(rows) == len(specs)
    for name, row in rows.items():
        assert row[:20] == rows["plain"], name
        assert len(row) >= 20 if ignore_eos else (len(row) <= 9 and row[-1] == eos), name


# The command


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_prints_a_table():
    found = bench(*TINY, "--category", "math", "--category", "qa_none")
    assert found.exit_code == 2
    found = bench(*TINY, "--category", "math", "--contestants", "plain,auto,hf")
    assert found.exit_code == 0, found.output
    assert "decode tokens/s" in found.stdout
    assert found.stdout.count("0 of 1") == 3
    assert found.stderr == "Measuring 3 runs of 3 contestants\n"


def test_the_command_prints_json_and_the_table_beside_it(tmp_path):
    found = bench(*TINY, "--category", "math", "--contestants", "hf,auto", "--json", "--repeat", "2")
    assert found.exit_code == 0, found.output
    read = json.loads(found.stdout)
    assert read["baseline"] == "hf"
    assert len(read["runs"]) == 4
    assert read["settings"]["max_new_tokens"] == 12
    assert "decode tokens/s" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--contestants", "plain,fast"), "no contestant 'fast'. Known are: 'plain', 'prompt_lookup', 'draft_model', "),
        (("--contestants", "draft_model"), "'draft_model' needs a draft model or a trained head: give one with"),
        (("--draft-model", "a", "--contestants", "plain"), "take one of 'draft_model', 'auto'"),
        (("--draft-model", "a", "--contestants", "draft_model:x"), "The setting of 'draft_model' is its draft length"),
        (("--contestants", " , "), "no contestants"),
        (("--model", "random:tiny", "--contestants", "mtp"), "Nothing is left to be measured: random:tiny has no MTP"),
        (("--baseline", "hf-compiled"), "not among the contestants"),
        (("--repeat", "0"), "--repeat must be a whole number from 1"),
        (("--batch", "0"), "--batch"),
        (("--limit", "-1"), "--limit"),
        (("--workload", "/none.jsonl"), "/none.jsonl cannot be read: No such file"),
        (("--plot", "bars.gif"), ".png"),
        (("--html", "-"), "--html writes a file whose name ends in .html, .htm; got '-'"),
        (("--html", "/none/page.html"), "there is no folder '/none'"),
        (("--memory", "--html", "page.html"), "leave out --plot, --html"),
        (("--synthetic-cost", "0.1"), "contestant synthetic"),
        (("--contestants", "synthetic", "--synthetic-cost", "-1"), "from 0 to 10"),
        (("--contestants", "synthetic", "--synthetic-agreement", "1.5"), "from 0 to 1"),
        (("--contestants", "hf", "--compile", "auto"), "--compile can be given for this engine only"),
        (("--contestants", "hf", "--compile", "auto", "--step-cost", "flat"), "--compile and --step-cost can be given"),
        (("--memory", "--repeat", "2"), "--memory measures no speed"),
        (("--memory", "--neighbours", "1"), "leave out --neighbours and --neighbour-engines"),
        (("--neighbours", "-1"), "--neighbours must be a whole number from 0 to 64"),
        (("--startup", "--contestants", "plain", "--batch", "2", "--limit", "1"), "leave out --limit, --batch."),
        (("--startup", "--contestants", "plain", "--dtype", "bfloat16", "--raw"), "leave out --dtype, --chat."),
        (("--startup", "--contestants", "plain,hf-compiled"), "--startup measures plain, auto, hf, llama-cpp"),
        (("--startup", "--model", "random:tiny", "--contestants", "plain"), "random:tiny is made up"),
        (("--model", "random:huge"), "Shapes: llama-8b"),
        (("--model", "random:tiny", "--chat"), "no chat format"),
        (("--model", "random:tiny", "--max-new-tokens", "9000"), "4096 positions"),
        (("--max-new-tokens", "0"), "--max-new-tokens must be a whole number from 1, got 0."),
    ],
)
def test_wrong_use_is_one_line_on_stderr(arguments, part):
    found = bench(*arguments)
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert part in found.stderr


@pytest.mark.process
def test_memory_of_each_contestant():
    found = bench(*TINY, "--category", "math", "--contestants", "plain", "--memory", "--json")
    assert found.exit_code == 0, found.output
    uses = json.loads(found.stdout)
    assert [use["contestant"] for use in uses] == ["plain"]
    for use in uses:
        assert use["decoding_peak"] >= use["loaded"] * 0.9 > 0
        assert use["loading_peak"] >= use["at_start"] > 50
        assert use["own_peak"] == max(use["loading_peak"], use["decoding_peak"]) - use["at_start"]


def test_memory_of_contestants_that_all_failed():
    assert memory_table([MemoryUse("plain", failure="no")]).title == "memory in MiB, each in a process of its own"


def test_every_contestant_is_in_the_help():
    found = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200"})
    assert found.exit_code == 0
    words = found.stdout.replace("│", " ").split()
    for name in KINDS:
        assert name in words or f"{name}," in words, name
