"""A daemon without standard streams that loads a model, answers, and ends by SIGTERM."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from langchain_specdec import SpeculativeLLM
from tests.support.hosts.programs import environment, exits_within
from tests.support.tiny_models import wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_a_daemon_answers_and_ends(tiny_folder, tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.support.hosts.daemon", str(report)]
    started = subprocess.run(command, env=environment(tiny_folder), timeout=60, check=True, capture_output=True)  # noqa: S603
    assert (started.stdout, started.stderr) == (b"", b"")
    assert wait_until(report.exists, 120.0)
    found = json.loads(report.read_text(encoding="utf-8"))
    daemon = psutil.Process(found["pid"])
    try:
        with SpeculativeLLM.from_model_id(tiny_folder, drafter="none", num_slots=1, max_new_tokens=24) as llm:
            assert found.get("texts") == [llm.invoke("The sea")] * 2, found.get("error")
        daemon.terminate()
        # Whoever is the first process of the machine may not look after it at once.
        assert wait_until(lambda: not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE, exits_within()), (
            "the daemon did not end"
        )
    finally:
        if daemon.is_running():
            daemon.kill()
