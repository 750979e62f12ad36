"""Busy processes beside a measurement: they run while it does, and end however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from langchain_specdec.bench.neighbours import EngineNeighbours, busy_neighbours
from langchain_specdec.bench.plan import Plan
from langchain_specdec.bench.workload import Question
from langchain_specdec.cli.app import app
from langchain_specdec.errors import SpecDecError
from langchain_specdec.sampling.params import SamplingParams
from tools import beside

pytestmark = [pytest.mark.process, pytest.mark.slow]

QUESTIONS = [Question("1", "qa", "the cat sat on the mat")]
PARENT = """
import psutil, sys, time
from langchain_specdec.bench.neighbours import busy_neighbours
with busy_neighbours(2):
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    time.sleep(60)
"""


def children() -> list[psutil.Process]:
    return psutil.Process().children()


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_they_are_busy_and_end_with_the_block() -> None:
    before = children()
    with busy_neighbours(2):
        mine = [child for child in children() if child not in before]
        assert len(mine) == 2
        for child in mine:
            wait_for(lambda child=child: child.cpu_times().user > 0.05)  # type: ignore[misc]
    assert not any(child.is_running() for child in mine)
    with busy_neighbours(0):
        assert children() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_they_end_with_an_error_too(error: type[BaseException]) -> None:
    before = children()
    with pytest.raises(error), busy_neighbours(1):
        raise error
    assert children() == before


def test_none_is_left_where_one_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = children(), subprocess.Popen
    started: list[Any] = []

    def limited(*args: Any, **options: Any) -> Any:
        if started:
            raise OSError("no more processes")
        started.append(start(*args, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", limited)
    with pytest.raises(OSError, match="no more processes"), busy_neighbours(2):
        pass
    assert children() == before


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_they_end_with_their_parent(number: str) -> None:
    if not hasattr(signal, number):
        pytest.skip("no such signal here")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], text=True, **pipes)  # noqa: S603
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        parent.send_signal(getattr(signal, number))
        parent.wait(20)
        wait_for(lambda: not any(map(is_running, pids)))
    finally:
        parent.kill()
        parent.communicate()


def test_an_engine_beside_tells_how_fast_it_was() -> None:
    before = children()
    options = ["--model", "random:tiny", "--limit", "1", "--category", "math", "--max-prompt-tokens", "60"]
    options += ["--max-new-tokens", "12", "--contestants", "auto", "--repeat", "20", "--json"]
    found = CliRunner().invoke(app, ["bench", *options, "--neighbours", "1", "--neighbour-engines", "1"])
    assert found.exit_code == 0, found.output
    read = json.loads(found.stdout)
    assert read["neighbours"]["busy"] == 1
    (rate,) = read["neighbours"]["engines"]
    assert rate is None or rate > 0
    assert (read["settings"]["neighbours"], read["settings"]["neighbour_engines"]) == (1, 1)
    assert "beside    1 busy process, an engine that decoded plainly" in found.stderr
    assert children() == before


def test_an_engine_that_cannot_run_is_told() -> None:
    plan = Plan("random:none", [], SamplingParams())
    engines = EngineNeighbours(plan, QUESTIONS, 1)
    with pytest.raises(SpecDecError, match="A neighbouring engine ended with code 1"), engines.running():
        pytest.fail("it runs")


def test_a_command_runs_beside_them(capfd: pytest.CaptureFixture[str]) -> None:
    before = children()
    code = "import psutil, sys; print(len(psutil.Process().parent().children())); sys.exit(7)"
    assert beside.main(["2", sys.executable, "-c", code]) == 7
    told = capfd.readouterr()
    assert int(told.out) == len(before) + 3
    assert told.err.endswith(" s beside 2 busy processes\n")
    assert children() == before
    assert beside.main(["two", "x"]) == beside.main(["2"]) == 2
    assert "PROCESSES COMMAND" in capfd.readouterr().err
