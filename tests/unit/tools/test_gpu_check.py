"""The check on a GPU: parts end as they should whatever they do, and a rehearsal writes what a GPU would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch

from langchain_specdec.models import embedded as embedded_model
from langchain_specdec.runner.attention import slot_attention
from tests.support.source_code import ROOT
from tools.gpu_check import __main__ as command_line
from tools.gpu_check import attention_cases, part_bench, part_capture, part_embedded, part_mask, part_unit
from tools.gpu_check.attention_cases import HEADS, LENGTHS, Case
from tools.gpu_check.check import Check
from tools.gpu_check.child import LeftOutError
from tools.gpu_check.parts import PARTS, PHASES, Part
from tools.gpu_check.records import read
from tools.gpu_check.time_boxes import Outcome, run_parts, table

PLANTED = "tests.support.planted_parts"


@pytest.fixture
def check(tmp_path: Path) -> Iterator[Check]:
    """A rehearsal's; what it puts in place of our kernels is taken back."""
    yield Check("part", tmp_path, is_rehearsal=True)
    mock.patch.stopall()


def planted(name: str, box: float = 60.0) -> Part:
    return Part(box, box, f"{PLANTED}:{name}")


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# --- Time boxes -------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.slow
def test_a_part_that_fails_or_hangs_costs_its_own_box_only(tmp_path: Path) -> None:
    names = ["works", "fails", "falls_short", "is_left_out", "dies", "hangs", "hangs_for_good", "works"]
    parts = {name: planted(name, 1.0 if "hangs" in name else 60.0) for name in names}
    outcomes = run_parts(names, parts, tmp_path, budget=600, is_rehearsal=True, grace=0.2)
    assert [outcome.status for outcome in outcomes] == [
        "ok",
        "failed: ValueError: planted",
        "failed: 1 unmet, first: the planted expectation",
        "left out: see its record",
        "failed: exit code -9",
        "failed: cut after 1 s",
        "failed: cut after 1 s",
        "ok",
    ]
    records = [{k: v for k, v in record.items() if k not in ("at", "seconds")} for record in read(tmp_path)]
    child = next(record.pop("child") for record in records if "child" in record)
    assert records == [
        {"part": "works", "worked": True},
        {"part": "works", "status": "ok"},
        {"part": "fails", "before": 1},
        {"part": "fails", "raised": "ValueError: planted"},
        {"part": "fails", "status": "failed: ValueError: planted"},
        {"part": "falls_short", "unmet": "the planted expectation"},
        {"part": "falls_short", "after": 1},
        {"part": "falls_short", "status": "failed: 1 unmet, first: the planted expectation"},
        {"part": "is_left_out", "left_out": "there is none here"},
        {"part": "is_left_out", "status": "left out: see its record"},
        {"part": "dies", "status": "failed: exit code -9"},
        {"part": "hangs", "before": 1},
        {"part": "hangs", "raised": "SystemExit: 143"},
        {"part": "hangs", "status": "failed: cut after 1 s"},
        {"part": "hangs_for_good"},
        {"part": "hangs_for_good", "status": "failed: cut after 1 s"},
        {"part": "works", "worked": True},
        {"part": "works", "status": "ok"},
    ]
    assert not is_running(child), "what a part has started outlives it"
    assert "raise ValueError(msg)" in (tmp_path / "fails.log").read_text(encoding="utf-8")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_check_that_is_interrupted_ends_its_part_and_keeps_its_records(name: str, tmp_path: Path) -> None:
    code = f"""
import sys
from tools.gpu_check import __main__ as command_line
from tools.gpu_check.parts import Part

if __name__ == "__main__":
    command_line.PARTS = {{"hangs": Part(60.0, 60.0, "{PLANTED}:hangs_with_a_child")}}
    sys.argv = ["gpu_check", "--out", {str(tmp_path)!r}, "--parts", "hangs"]
    sys.exit(command_line.main())
"""
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603
    while not any("child" in record for record in read(tmp_path)):
        assert process.poll() is None
        time.sleep(0.05)
    child = read(tmp_path)[0]["child"]
    process.send_signal(signal.Signals[name])
    written, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "failed: interrupted" in written
    assert [record.get("raised", record.get("status")) for record in read(tmp_path)] == [
        None, "SystemExit: 143", "failed: interrupted",
    ]  # fmt: skip
    assert not is_running(child), "what a part has started outlives it"


@pytest.mark.process
@pytest.mark.slow
def test_on_a_gpu_each_part_starts_from_nothing(tmp_path: Path) -> None:
    (outcome,) = run_parts(["works"], {"works": planted("works")}, tmp_path, budget=600, is_rehearsal=False)
    assert outcome.status == "ok"
    assert [record.get("worked") for record in read(tmp_path)] == [True, None]


@pytest.mark.process
@pytest.mark.slow
def test_the_budget_cuts_what_is_late_and_leaves_out_what_is_too_late(tmp_path: Path) -> None:
    names = ["works", "hangs", "hangs"]
    parts = {name: planted(name) for name in names}
    # The budget keeps three seconds back, and the second part has what the first one leaves.
    outcomes = run_parts(names[:1], parts, tmp_path, budget=600, is_rehearsal=True)
    outcomes += run_parts(names[1:], parts, tmp_path, budget=4.0, is_rehearsal=True, grace=0.2, least=0.5)
    assert [outcome.status for outcome in outcomes] == ["ok", "failed: cut after 1 s", "left out: no time left"]
    assert [record["status"] for record in read(tmp_path) if "status" in record] == [o.status for o in outcomes]


def test_the_table_has_a_line_for_each_part() -> None:
    lines = table([Outcome("env", "ok", 11.5), Outcome("flashspec", "left out: no time left", 0.0)]).splitlines()
    assert lines == ["env          11.5 s  ok", "flashspec     0.0 s  left out: no time left"]


def test_a_part_that_does_not_exist_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path), "--parts", "env,steep"])
    with pytest.raises(SystemExit, match="2"):
        command_line.main()
    assert "there is no part steep. Parts: env, mask," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["ok", "left out: no time left"], 0),
        (["ok", "failed: cut after 1 s"], 1),
        (["left out: no time left"] * 2, 1),
    ],
)
def test_the_exit_code_tells_whether_anything_failed_or_nothing_ran(
    statuses: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        command_line, "run_parts", lambda *_, **__: [Outcome("env", status, 1.0) for status in statuses]
    )
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path)])
    assert command_line.main() == code


@pytest.mark.process
def test_what_starts_the_parts_does_not_import_torch() -> None:
    code = "import sys, tools.gpu_check.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)  # noqa: S603


# --- The plan ---------------------------------------------------------------------------------------------------------


def test_each_part_has_its_function() -> None:
    for name, part in PARTS.items():
        module, _, function = part.function.partition(":")
        assert callable(getattr(import_module(module), function)), name


def test_phases_have_time_for_all_parts() -> None:
    assert {name for phase in PHASES for name in phase.parts} == set(PARTS)
    for phase in PHASES:
        assert sum(PARTS[name].expected for name in phase.parts) <= phase.budget, phase
    assert PHASES[0].arguments == "--budget 195 --parts env,mask,capture,unit,text"


def test_the_tests_for_a_gpu_exist() -> None:
    assert [path for path in part_unit.TESTS if not (ROOT / path).is_file()] == []


def test_attention_is_called_in_some_360_ways() -> None:
    cases = list(attention_cases.cases(tuple(HEADS), LENGTHS))
    calls = sum(1 + 2 * len(part_mask.WAYS) * part_mask.is_compared(case) for case in cases)
    assert (len(cases), calls) == (172, 364)
    assert {(case.rows, case.is_tree) for case in cases} == {(1, False), (1, True), (8, False), (8, True)}


@pytest.mark.parametrize("case", list(attention_cases.cases(("135m",), (65,))), ids=str)
def test_junk_that_a_mask_lets_through_is_seen(case: Case) -> None:
    device, dtype = torch.device("cpu"), torch.float32
    tensors = attention_cases.make(case, device, dtype)
    module = torch.nn.Module()
    call = (module, tensors.query, tensors.key, tensors.value)
    assert tensors.error(slot_attention(*call, tensors.mask)[0]) < 1e-5
    if case.rows > 1:
        assert tensors.error(slot_attention(*call, torch.zeros_like(tensors.mask))[0]) > part_mask.MAX_ERROR
    if case.is_tree:
        chain = Case(case.model, case.length, case.rows, case.width, is_tree=False)
        wrong = attention_cases.make(chain, device, dtype).mask
        assert tensors.error(slot_attention(*call, wrong)[0]) > part_mask.MAX_ERROR


def test_what_fails_in_a_process_of_its_own_fails_the_part(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    for holds in (True, False):
        monkeypatch.setattr(part_capture, "failed_capture", lambda check, holds=holds: check.expect(holds, "no"))
        with pytest.raises(SystemExit) as ended:
            part_capture._failed_alone(check)
        assert ended.value.code == (not holds)


# --- A rehearsal ------------------------------------------------------------------------------------------------------

# What the records of a part hold beside its name, in order, each once.
RECORDS = {
    "env": ["packages", "machine", "python_loop_seconds", "read_bytes_per_second", "eager_launch_us", "graph_nodes",
            "tolist_us", "pinned_copy_us"],
    "mask": ["chosen", "mask"],
    "capture": ["making", "nodes", "steady_steps", "outlived", "two_engines", "after_a_failed_capture", "beside",
                "device_waits_refused", "made"],
    "text": ["way", "text", "logits"],
    "steps": ["step", "pinned", "draft"],
    "profile": ["profile"],
    "eight": ["bench"],
    "batch": ["host_share", "bench"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part", RECORDS)
def test_a_rehearsal_writes_what_a_gpu_would(part: str, check: Check) -> None:
    module, _, function = PARTS[part].function.partition(":")
    getattr(import_module(module), function)(check)
    records = read(check.out)
    first = [next(key for key in record if key != "part") for record in records]
    assert list(dict.fromkeys(first)) == RECORDS[part]
    assert check.unmet == []
    # What runs on graphs has run on recordings of them.
    for record in records:
        assert record.get("failure", "") == ""
        assert record.get("graphs", 1) > 0
        assert record.get("code", 0) == 0


@pytest.mark.slow
def test_steps_that_are_rehearsed_do_not_wait(check: Check) -> None:
    part_unit._waits(check)
    assert [(record["of"], record["waits"]) for record in read(check.out)] == [
        ("captured", []), ("eager", []), ("draft", []),
    ] * 2  # fmt: skip


@pytest.mark.slow
def test_a_measurement_that_is_cut_keeps_its_runs(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    part_bench.pair(check)
    assert check.unmet == []
    *runs, report = [record for record in read(check.out) if "warm_up_seconds" not in record]
    names = ["plain", "plain@8", "auto", "draft_model:2", "synthetic", "hf"]
    assert [run["contestant"] for run in runs] == names
    assert {run["tokens"] for run in runs} == {4}
    assert [contestant["name"] for contestant in report["report"]["contestants"]] == names


def test_what_is_not_installed_is_left_out(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_bench, "find_spec", lambda name: None)
    with pytest.raises(LeftOutError, match="flashspec is not installed"):
        part_bench.flashspec(check)
    monkeypatch.setattr(embedded_model, "is_available", lambda: False)
    with pytest.raises(LeftOutError, match="the embedded model is not installed"):
        part_embedded.embedded(check)
