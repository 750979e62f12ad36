"""Peak memory of each contestant, measured in a process of its own, where nobody else holds anything.

On CPU it is the resident set, from the start of the process (PyTorch itself included); on CUDA what PyTorch's
allocator had handed out. Both peaks are given: that of loading, and that of warm-up and decoding after it.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from transformers.utils import logging

from langchain_specdec.bench.build import Plan, set_up
from langchain_specdec.bench.measure import grouped
from langchain_specdec.bench.workload import Question
from langchain_specdec.errors import SpecDecError

_MIB = 2**20
# Ctrl-C reaches this process too. It ignores the signal, as its parent ends it.
_CHILD = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from langchain_specdec.bench.memory import main; main()"
)


@dataclass(frozen=True)
class MemoryUse:
    """What a contestant takes, in MiB.

    Attributes:
        contestant: Who.
        kind: "resident set" or "CUDA".
        at_start: Before anything was loaded: Python, PyTorch and transformers.
        loading_peak: Most while the model was loaded and arranged.
        loaded: After that.
        decoding_peak: Most while decoding, warm-up and caches included.
        failure: Why there are no figures; "" where there are.
    """

    contestant: str
    kind: str = ""
    at_start: float = 0.0
    loading_peak: float = 0.0
    loaded: float = 0.0
    decoding_peak: float = 0.0
    failure: str = ""


def measure_memory(plan: Plan, questions: Sequence[Question]) -> MemoryUse:
    """Run a contestant over the workload in a process of its own.

    Args:
        plan: What is to be measured, with one contestant.
        questions: The workload.
    """
    child = subprocess.run(  # noqa: S603 - this very interpreter and a constant
        [sys.executable, "-c", _CHILD],
        input=pickle.dumps((plan, list(questions))),
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        return MemoryUse(**json.loads(child.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return MemoryUse(plan.specs[0].name, failure=f"its process ended with code {child.returncode}")


def main() -> None:
    """What the process does: it takes plan and workload from standard input, and prints a `MemoryUse`."""
    # Unpickling is safe here: the parent process wrote the bytes.
    plan, questions = pickle.load(sys.stdin.buffer)  # noqa: S301
    use = _use(plan, questions)
    sys.stdout.write(json.dumps(asdict(use)) + "\n")


def _use(plan: Plan, questions: Sequence[Question]) -> MemoryUse:
    name = plan.specs[0].name
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gauge = _Gauge(plan.device)
    at_start = gauge.now()
    gauge.reset()
    try:
        with contextlib.redirect_stdout(sys.stderr), set_up(plan, questions) as setup:
            loading_peak, loaded = gauge.peak(), gauge.now()
            gauge.reset()
            (contestant,) = setup.contestants
            groups = grouped(setup.prompts, plan.batch)
            contestant.warm_up(groups)
            for group in groups:
                contestant.run(group)
            decoding_peak = gauge.peak()
    except (SpecDecError, RuntimeError) as error:
        return MemoryUse(name, failure=" ".join(str(error).split()))
    return MemoryUse(name, gauge.kind, at_start, loading_peak, loaded, decoding_peak)


class _Gauge:
    """Reads how much memory is in use and was at most, in MiB.

    Args:
        device: Where the contestant runs; None is the best there is.
    """

    def __init__(self, device: str | None) -> None:
        import torch

        from langchain_specdec.models.devices import resolve_device

        self._cuda: Any = None
        if resolve_device(device).type == "cuda":
            self._cuda = torch.cuda
        self.kind = "CUDA" if self._cuda else "resident set"

    def now(self) -> float:
        """In use."""
        if self._cuda:
            return float(self._cuda.memory_allocated() / _MIB)
        return _status("VmRSS")

    def peak(self) -> float:
        """Most since the last `reset`."""
        if self._cuda:
            return float(self._cuda.max_memory_allocated() / _MIB)
        return _status("VmHWM")

    def reset(self) -> None:
        """Begin anew. Where the system cannot, peaks are of the whole process."""
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        if sys.platform == "win32":
            used = psutil.Process().memory_info()
            return float((used.peak_wset if name == "VmHWM" else used.rss) / _MIB)
        import resource

        # macOS gives the peak only, in bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
