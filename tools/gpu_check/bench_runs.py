"""`specdec bench`, in this process, with each run a record as soon as it is made."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

from langchain_specdec.bench import measure
from langchain_specdec.bench.contestant import Contestant, Prompt, RunResult
from langchain_specdec.cli import main
from tools.gpu_check.check import Check
from tools.gpu_check.runners import free

_TINY = "--device cpu --limit 1 --category summarization --max-prompt-tokens 64 --max-new-tokens 4"


class NotedContestant:
    """A contestant whose warm-up and runs are records at once, so that a part that is cut keeps them.

    Args:
        contestant: The contestant.
        check: The part.
        bench: Name of the measurement.
    """

    def __init__(self, contestant: Contestant, check: Check, bench: str) -> None:
        self._contestant = contestant
        self._check = check
        self._bench = bench

    @property
    def name(self) -> str:
        """See `Contestant`."""
        return self._contestant.name

    @property
    def note(self) -> str:
        """See `Contestant`."""
        return self._contestant.note

    def warm_up(self, groups: Sequence[Sequence[Prompt]]) -> None:
        """See `Contestant`."""
        started = time.perf_counter()
        self._contestant.warm_up(groups)
        self._note(warm_up_seconds=time.perf_counter() - started)

    def run(self, prompts: Sequence[Prompt]) -> RunResult:
        """See `Contestant`."""
        result = self._contestant.run(prompts)
        self._note(
            category=prompts[0].category,
            tokens=result.num_tokens,
            steps=result.num_steps,
            seconds=result.seconds,
            first_seconds=result.first_seconds,
            drafted=result.drafted_tokens,
            accepted=result.accepted_tokens,
        )
        return result

    def close(self) -> None:
        """See `Contestant`."""
        self._contestant.close()

    def _note(self, **values: Any) -> None:
        self._check.note(bench=self._bench, contestant=self.name, **values)


def run_bench(check: Check, name: str, options: str) -> None:
    """Run `specdec bench --json`, and note its report.

    Args:
        check: The part.
        name: Of the measurement, in records.
        options: Of the command line. In a rehearsal models with random weights and all sizes are tiny.
    """
    words = [check.pick(word, "random:tiny") if word.startswith("random:") else word for word in options.split()]
    # Without a GPU this is to fail, and not to measure the CPU.
    words += check.pick("--device cuda:0", _TINY).split()
    written, table = io.StringIO(), io.StringIO()

    def noted(contestants: Sequence[Contestant], *arguments: Any) -> measure.Measurement:
        return made([NotedContestant(contestant, check, name) for contestant in contestants], *arguments)

    made = measure.measure
    with (
        mock.patch.object(measure, "measure", noted),
        mock.patch.object(sys, "argv", ["specdec", "bench", "--json", *words]),
        contextlib.redirect_stdout(written),
        contextlib.redirect_stderr(table),
    ):
        code = _exit_code()
    lines = written.getvalue().splitlines()
    # There is a report too where a contestant failed, or where it was ended early.
    report = json.loads(lines[-1]) if lines and lines[-1].startswith(("{", "[")) else lines[-5:]
    check.note(bench=name, code=code, table=table.getvalue().splitlines()[-40:], report=report)
    check.expect(code == 0, f"the measurement {name} ends with {code}")
    free(check)


def _exit_code() -> int:
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0
