"""Processes that keep the machine busy while something is measured beside them.

Each reads its standard input, whose other end this process holds: it ends with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from langchain_specdec.bench.child_process import child_process, tell
from langchain_specdec.bench.contestant import ContestantSpec, RunResult
from langchain_specdec.bench.statistics import rate_of, total_rate
from langchain_specdec.errors import SpecDecError

if TYPE_CHECKING:
    from langchain_specdec.bench.plan import Plan
    from langchain_specdec.bench.workload import Question

_STOP_SECONDS = 10.0
# Ctrl-C reaches these processes too. They ignore the signal, as their parent ends them.
_BUSY = (
    "import os, signal, sys, threading\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()\n"
    "while True: pass\n"
)
_ENGINE = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from langchain_specdec.bench.neighbours import run_engine; run_engine()"
)


@contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Have so many processes compute nothing, one core each, while the block runs.

    Args:
        count: How many; 0 starts none.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            # Without site-packages, which it does not need.
            stack.enter_context(child_process("-I", "-S", "-c", _BUSY))
        yield


class EngineNeighbours:
    """Engines of this package in processes of their own, which decode the same prompts over and over, as `plain` does.

    Args:
        plan: What is measured beside them.
        questions: The workload.
        count: How many; 0 starts none.
    """

    def __init__(self, plan: Plan, questions: Sequence[Question], count: int) -> None:
        plan = replace(plan, specs=[ContestantSpec("plain", "plain")], draft_model=None)
        self._asked = pickle.dumps((plan, list(questions)))
        self._count = count
        self._tokens_per_second: list[float | None] = []

    @property
    def tokens_per_second(self) -> list[float | None]:
        """What each decoded while the block ran, counted as for contestants; None where no answer was done."""
        return self._tokens_per_second

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have them run while the block does. It begins once all are loaded and warm.

        Raises:
            SpecDecError: One failed.
        """
        with contextlib.ExitStack() as stack:
            children = [
                stack.enter_context(child_process("-c", _ENGINE, stdout=subprocess.PIPE)) for _ in range(self._count)
            ]
            for child in children:
                tell(child, len(self._asked).to_bytes(8, "big") + self._asked)
            for child in children:
                assert child.stdout is not None  # noqa: S101 - it is a pipe
                if not child.stdout.readline():
                    msg = f"A neighbouring engine ended with code {child.wait()} before it ran; see above for why."
                    raise SpecDecError(msg)
            for child in children:
                tell(child, b"\n")
            try:
                yield
            finally:
                self._tokens_per_second = [_rate(child) for child in children]


def run_engine() -> None:
    """What such a process does: it takes its plan from standard input, and decodes until that ends."""
    size = int.from_bytes(sys.stdin.buffer.read(8), "big")
    # Unpickling is safe here: the parent process wrote the bytes.
    plan, questions = pickle.loads(sys.stdin.buffer.read(size))  # noqa: S301
    output, sys.stdout = sys.stdout, sys.stderr

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # the parent may be gone
            print(line, file=output, flush=True)

    from langchain_specdec.bench.build import set_up
    from langchain_specdec.bench.measure import grouped

    with set_up(plan, questions) as setup:
        (contestant,) = setup.contestants
        groups = grouped(setup.prompts, plan.batch)
        contestant.warm_up(groups)
        say("warm")
        sys.stdin.buffer.read(1)
        ended = threading.Event()

        def wait() -> None:
            sys.stdin.buffer.read()
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        results: list[RunResult] = []
        while not ended.is_set():
            for group in groups:
                result = contestant.run(group)
                if ended.is_set():
                    break  # it was decoded in part after the end
                results.append(result)
    say(json.dumps(total_rate(results, rate_of(plan.batch))))


def _rate(child: subprocess.Popen[bytes]) -> float | None:
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        # Its standard input ends with this.
        said, _ = child.communicate(timeout=_STOP_SECONDS)
        rate = json.loads(said.splitlines()[-1]) if said.strip() else None
        return float(rate) if rate is not None else None
    return None
