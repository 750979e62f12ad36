"""What holds on systems and Pythons that these tests do not run on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.source_code import ROOT


@pytest.mark.process
def test_all_but_servers_works_without_what_windows_lacks():
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.elsewhere"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    modules, text, *commands = done.stdout.splitlines() or [""] * 2
    assert modules.endswith(" modules"), done.stderr
    assert text == "same text"
    assert commands == [
        "tgi-launch start some/model -> 1",
        "tgi-launch check -> 1",
        "tgi-launch cleanup -> 1",
        "specdec 0.1.0",
        "specdec --version -> 0",
    ]
    refusals = done.stderr.splitlines()
    assert len(refusals) == 3
    assert all("not on Windows: run it in WSL" in line for line in refusals)
