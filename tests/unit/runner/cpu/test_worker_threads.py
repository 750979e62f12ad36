"""A thread's OpenMP workers end when they are let go of, and come back when they are needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from langchain_specdec.drafters.base import Drafter
from langchain_specdec.runner.cpu import worker_threads
from langchain_specdec.runner.cpu.worker_threads import release_workers
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import make_engine, tiny_model, wait_until

needs_openmp = pytest.mark.skipif(
    sys.platform != "linux" or worker_threads._pause() is None,
    reason="there are no OpenMP workers to count here",
)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    release_workers()
    torch.set_num_threads(1)


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def work() -> float:
    return float(torch.ones(1 << 21).sum())


def settles_at(count: int) -> bool:
    """Threads end a little after they are told to."""
    return wait_until(lambda: num_threads() <= count, seconds=5.0)


@needs_openmp
def test_workers_end_and_come_back() -> None:
    release_workers()
    time.sleep(0.2)
    before = num_threads()
    assert work() == 1 << 21
    assert num_threads() > before
    release_workers()
    assert settles_at(before)
    assert work() == 1 << 21, "new workers"
    release_workers()
    release_workers()
    assert settles_at(before)


@needs_openmp
def test_an_idle_engine_keeps_no_workers_and_neither_does_who_asked_it() -> None:
    params = SamplingParams(max_new_tokens=4)
    with closing(make_engine(tiny_model(), Drafter())) as engine:
        list(engine.submit([1, 2, 3], params))
        release_workers()
        time.sleep(0.2)
        before = num_threads()
        work()
        assert num_threads() > before
        list(engine.submit([1, 2, 3], params))
        assert settles_at(before)


def test_other_threads_go_on() -> None:
    results: list[float] = []
    thread = threading.Thread(target=lambda: results.extend(work() for _ in range(200)))
    thread.start()
    while thread.is_alive():
        release_workers()
    thread.join()
    assert results == [1 << 21] * 200


def test_a_system_without_openmp_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_threads, "_pause", lambda: None)
    release_workers()


FORK = """
import os, signal, sys, torch
import langchain_specdec.backends.local
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.errors import EngineClosedError
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import make_engine, tiny_model

def write(engine):
    return [t.id for event in engine.submit([1, 2, 3], params) for t in getattr(event, "tokens", ())]

torch.set_num_threads(2)
params = SamplingParams(max_new_tokens=8, ignore_eos=True)
parents = make_engine(tiny_model(), Drafter())
if "engine" in sys.argv:
    expected = write(parents)
if "running" in sys.argv:
    parents.submit([5], SamplingParams(max_new_tokens=200, ignore_eos=True))
torch.ones(1 << 21).sum()
child = os.fork()
if not child:
    signal.alarm(60)
    assert float(torch.ones(1 << 21).sum()) == 1 << 21
    try:
        write(parents)
    except EngineClosedError as error:
        assert "in another process" in str(error)
    written = write(make_engine(tiny_model(), Drafter()))
    assert len(written) == 8
    assert "engine" not in sys.argv or written == expected
    parents.close()
    sys.exit(7)  # by all that is registered to run at the end
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert float(torch.ones(1 << 21).sum()) == 1 << 21
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.parametrize("used", [[], ["engine", "running"]], ids=str)
def test_a_forked_child_loads_and_runs_a_model_of_its_own(used: list[str]) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, *used], check=True, timeout=300)  # noqa: S603
