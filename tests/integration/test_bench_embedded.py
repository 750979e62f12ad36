"""`specdec bench` on the embedded model, in a process of its own: the engine and peers write the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from langchain_specdec.models import embedded
from langchain_specdec.runner.cpu.decoder_trial import native_library

pytestmark = [
    pytest.mark.process,
    pytest.mark.embedded,
    pytest.mark.slow,
    pytest.mark.skipif(not embedded.is_available(), reason="needs the embedded model"),
]


def test_the_engine_and_its_peers_write_the_same_text() -> None:
    command = [sys.executable, "-c", "from langchain_specdec.cli import main; main()", "bench"]
    options = ["--category", "extraction", "--max-prompt-tokens", "150", "--max-new-tokens", "24", "--json"]
    # How much pays depends on what else this machine does.
    options += ["--step-cost", "flat"]
    result = subprocess.run(  # noqa: S603
        [*command, *options, "--contestants", "plain,auto,hf,hf-prompt-lookup:3"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    found = {c["name"]: (c["mismatches"], c["by_category"]["all"]) for c in report["contestants"]}
    for name, (mismatches, _) in found.items():
        assert (mismatches["num_prompts"], mismatches["positions"]) == (1, {}), name
    assert found["plain"][1]["tokens_per_step"] == 1.0
    assert found["auto"][1]["tokens_per_step"] > 1.0
    assert report["settings"]["is_chat"]
    if native_library() is None:
        # 134.5 million weights of four bytes; the head is the embedding.
        assert report["model"]["step_bytes"] == pytest.approx(538e6, rel=0.01)
    else:
        # The same in the file's own bits.
        assert report["model"]["step_bytes"] == pytest.approx(96.4e6, rel=0.01)
        assert report["model"]["formats"] == "Q4_1, Q8_0"
    assert report["roofline"]["share"] > 0
