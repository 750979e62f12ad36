"""Pools of processes and of threads: a model for each worker, and one that a worker came to have by accident."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import pytest

from langchain_specdec import SpeculativeLLM
from tests.support.hosts.pools import PROMPTS
from tests.support.hosts.programs import ROOT, environment
from tests.support.tiny_models import wait_until

process_pool = import_module("process_pool")

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def expected(tiny_folder) -> list[str]:
    with SpeculativeLLM.from_model_id(tiny_folder, drafter="none", num_slots=8, max_new_tokens=24) as llm:
        return llm.batch(PROMPTS)


@pytest.fixture
def run(tiny_folder):
    """Runs the pool of a kind: what it printed."""

    def run(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.support.hosts.pools", *arguments]
        env = environment(tiny_folder, HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=150, check=False)  # noqa: S603
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return dict(json.loads(done.stdout))

    return run


# joblib stands for all whose workers begin anew (`spawn`, `forkserver`), which take a model along by pickling it.
REFUSED = {
    "joblib": "A running model cannot be pickled",
    "fork": "EngineClosedError: This engine was made in another process. Load the model in the process that uses it",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_pool_whose_parent_has_a_model_too(run, expected, kind):
    """It is refused in words where a worker would use the parent's; with one each, they answer and hold no more."""
    if kind == "joblib":
        pytest.importorskip("joblib")
    found = run(kind)
    assert [REFUSED[kind] in told for told in found["refused"]] == [True] * len(found["refused"]), found["refused"]
    assert [text for _, text in found["answers"]] == expected
    assert found["parent"] == found["parent again"] == expected[0]
    assert found["pid"] not in {pid for pid, _ in found["answers"]}
    before = {pid: (files, mb) for pid, files, mb, _ in found["before"]}
    for pid, files, mb, taken in found["after"]:
        assert taken == 0, "a slot is still taken"
        if pid in before:
            assert files <= before[pid][0] + 3
            assert mb <= before[pid][1] + 40


def test_the_program_of_the_documentation(tiny_folder):
    command = [sys.executable, str(ROOT / "docs/examples/process_pool.py")]
    env = environment(tiny_folder, HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=150, check=False)  # noqa: S603
    assert done.stderr == ""
    with SpeculativeLLM.from_model_id(tiny_folder, drafter="none", num_slots=3, max_new_tokens=24) as llm:
        texts = llm.batch(list(process_pool.PROMPTS))
    lines = [f"{prompt}: {' '.join(text.split())}\n" for prompt, text in zip(process_pool.PROMPTS, texts, strict=True)]
    assert done.stdout == "".join(lines)


def test_threads_share_one_model(tiny_folder, expected):
    with SpeculativeLLM.from_model_id(tiny_folder, num_slots=2, max_new_tokens=24) as llm:
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(llm.invoke, PROMPTS)) == expected
        backend: Any = llm.backend
        engine = backend.engine
        assert wait_until(lambda: engine.num_running == engine.num_waiting == 0)
