"""How commands end, in processes of their own: by Ctrl-C, and when nobody reads on. Alike on any transformers."""

import json
import signal
import subprocess
import sys
import time

import pytest

from langchain_specdec.cli.reporting import INTERRUPTED
from tests.support.terminal import without_progress

pytestmark = pytest.mark.process

PROMPT = "the cat sat on the mat, the cat sat on the"


def start_specdec(*arguments):
    """A process of its own, as the console script starts it."""
    command = [sys.executable, "-c", "from langchain_specdec.cli import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603


def test_a_reader_that_leaves_is_no_error(folder):
    arguments = ["generate", PROMPT, "--model", folder, "--max-new-tokens", "60"]
    process = start_specdec(*arguments)
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=120)
    assert without_progress(stderr) == ""


def test_ctrl_c_ends_a_running_command(folder):
    arguments = ["generate", PROMPT, "--model", folder, "--max-new-tokens", "400", "--ignore-eos"]
    process = start_specdec(*arguments)
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr
    # It may have been done before the signal came.
    assert process.returncode in (0, INTERRUPTED)


def test_ctrl_c_prints_what_was_measured():
    options = ["--category", "math", "--max-prompt-tokens", "60", "--max-new-tokens", "12", "--limit", "1"]
    process = start_specdec(
        "bench", "--model", "random:tiny", *options, "--contestants", "plain,hf", "--repeat", "1000", "--json"
    )
    assert process.stderr is not None
    assert next(filter(without_progress, process.stderr)) == "Measuring 2000 runs of 2 contestants\n"
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    read = json.loads(stdout)
    assert read["is_interrupted"]
    assert len(read["runs"]) < 2000
    assert stderr.endswith("Interrupted: only what was measured until then.\n")
