"""Runs parts one after the other, each in a process of its own that is ended when its time is over.

Nothing here imports PyTorch: what holds the GPU is the part's process alone, and goes with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tools.gpu_check.child import LEFT_OUT, run_part
from tools.gpu_check.parts import Part
from tools.gpu_check.records import note

# Seconds that a part has to end by itself once it is told to.
_GRACE = 5.0
# Seconds kept back of the budget, for ending a part and for the table.
_RESERVE = 3.0
# With less time left a part would only import PyTorch.
_LEAST = 8.0
# Characters that a line has for why a part failed.
_WIDTH = 160
# What all parts import, imported once for those of a rehearsal. On a GPU each part starts from nothing instead.
_PRELOADED = ["torch", "tools.gpu_check.check", "langchain_specdec.bench.build", "langchain_specdec.cli.app"]


class Outcome(NamedTuple):
    """How a part ended: `"ok"`, or why not."""

    name: str
    status: str
    seconds: float


def run_parts(
    names: Sequence[str],
    parts: Mapping[str, Part],
    out: Path,
    *,
    budget: float,
    is_rehearsal: bool,
    grace: float = _GRACE,
    least: float = _LEAST,
) -> list[Outcome]:
    """Run parts in order; one that fails or hangs costs its own box only.

    Args:
        names: Which.
        parts: All there are.
        out: Takes `gpu.jsonl` and a log of each part.
        budget: Seconds for all of them; what is late is cut, or left out.
        is_rehearsal: See `Check`.
        grace: Seconds between telling a part to end and killing it.
        least: Seconds that have to be left for a part to start.
    """
    context: Any = multiprocessing.get_context("forkserver" if is_rehearsal else "spawn")
    if is_rehearsal:
        context.set_forkserver_preload(_PRELOADED)
    end = time.monotonic() + budget
    outcomes = []
    for name in names:
        left = end - time.monotonic() - _RESERVE
        started = time.monotonic()
        status = "failed: interrupted" if left >= least else "left out: no time left"
        try:
            if left >= least:
                seconds = min(parts[name].box, left)
                target = (name, parts[name].function, out, is_rehearsal)
                status = _run_boxed(context, target, out / f"{name}.log", seconds, grace)
        finally:
            outcomes.append(Outcome(name, status, round(time.monotonic() - started, 1)))
            note(out, part=name, status=status, seconds=outcomes[-1].seconds)
            print(_line(outcomes[-1]), flush=True)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes, one a line."""
    return "\n".join(map(_line, outcomes))


def _line(outcome: Outcome) -> str:
    return f"{outcome.name:10} {outcome.seconds:6.1f} s  {outcome.status}"


def _run_boxed(context: Any, target: tuple[Any, ...], log: Path, seconds: float, grace: float) -> str:
    process = context.Process(target=_in_own_group, args=(log, run_part, target))
    process.start()
    try:
        process.join(seconds)
        if process.is_alive():
            return f"failed: cut after {seconds:.0f} s"
        if process.exitcode == LEFT_OUT:
            return "left out: see its record"
        if process.exitcode == 1:
            return f"failed: {_last_line(log)}"
        return "ok" if process.exitcode == 0 else f"failed: exit code {process.exitcode}"
    finally:
        _end(process, grace)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1][:_WIDTH] if lines else "it says nothing"


def _in_own_group(log: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """What a part's process does: all that it starts can be ended with it, and what it prints goes into its log."""
    # Of the same session: whoever ends that, as a machine on loan does, ends this too.
    os.setpgrp()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # An exception, so that what is open is closed. A measurement takes the signal for Ctrl-C and writes its report.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    function(*arguments)


def _end(process: Any, grace: float) -> None:
    """End a process, and what it has started, which may outlive it."""
    if process.is_alive():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.join(grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        # It was too early for a group of its own.
        process.kill()
    process.join()
