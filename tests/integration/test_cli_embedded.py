"""The command line on the embedded model, in processes of its own, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from langchain_specdec.cli.reporting import INTERRUPTED
from langchain_specdec.models import embedded
from tests.support.terminal import without_progress

pytestmark = [
    pytest.mark.process,
    pytest.mark.embedded,
    pytest.mark.slow,
    pytest.mark.skipif(not embedded.is_available(), reason="needs the embedded model"),
]

SPECDEC = [sys.executable, "-c", "from langchain_specdec.cli import main; main()"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def specdec(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [*SPECDEC, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False
    )


def test_the_demo_summarises_and_compares() -> None:
    result = specdec("demo", "--max-new-tokens", "48", "--rounds", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "\x1b" not in result.stdout
    assert "Loading weights" not in result.stderr
    assert re.search(r"^tokens per step +1\.00 +\d\.\d\d$", result.stdout, re.MULTILINE)
    assert re.search(r"^speed-up +\d+\.\d\dx$", result.stdout, re.MULTILINE)
    assert "identical: yes" in result.stdout
    assert "1698" in result.stdout, "the summary has something of the document"


def test_generate_answers_in_the_chat_format() -> None:
    result = specdec("generate", "What is the capital of France?", "--json", "--max-new-tokens", "30")
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    assert "Paris" in answer["text"]
    assert answer["model"] == "embedded"
    assert answer["finish_reason"] == "eos_token"
    assert without_progress(result.stderr) == ""


def test_ctrl_c_ends_the_demo_without_a_traceback() -> None:
    process = subprocess.Popen(  # noqa: S603
        [*SPECDEC, "demo"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("document"):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    assert without_progress(stderr) == "Interrupted.\n"
