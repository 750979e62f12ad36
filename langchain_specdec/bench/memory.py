"""Peak memory of each contestant, measured in a process of its own, where nobody else holds anything.

On CPU it is the resident set, from the start of the process (PyTorch itself included); on CUDA what PyTorch's
allocator had handed out. Both peaks are given: that of loading, and that of warm-up and decoding after it. Nothing but
PyTorch and transformers is imported before the first look, so that what a contestant imports counts as its own.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_specdec.bench.plan import Plan
    from langchain_specdec.bench.workload import Question

_MIB = 2**20
# Ctrl-C reaches this process too. It ignores the signal, as its parent ends it.
_CHILD = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import torch, transformers; "
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
        own_peak: The higher of the peaks, less what was in use at the start.
        failure: Why there are no figures; "" where there are.
    """

    contestant: str
    kind: str = ""
    at_start: float = 0.0
    loading_peak: float = 0.0
    loaded: float = 0.0
    decoding_peak: float = 0.0
    own_peak: float = 0.0
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
    gauge = _Gauge()
    at_start = gauge.now()
    # Unpickling is safe here: the parent process wrote the bytes. It imports what they are of.
    plan, questions = pickle.load(sys.stdin.buffer)  # noqa: S301
    use = _use(plan, questions, gauge, at_start)
    sys.stdout.write(json.dumps(asdict(use)) + "\n")


def _use(plan: Plan, questions: Sequence[Question], gauge: _Gauge, at_start: float) -> MemoryUse:
    from transformers.utils import logging

    from langchain_specdec.bench.build import set_up
    from langchain_specdec.bench.measure import grouped
    from langchain_specdec.errors import SpecDecError
    from langchain_specdec.models.devices import resolve_device

    name = plan.specs[0].name
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gauge.watch(resolve_device(plan.device).type)
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
    at_start = 0.0 if gauge.kind == "CUDA" else at_start
    own_peak = max(loading_peak, decoding_peak) - at_start
    return MemoryUse(name, gauge.kind, at_start, loading_peak, loaded, decoding_peak, own_peak)


class _Gauge:
    """Reads how much memory is in use and was at most, in MiB: the resident set, until another device is watched."""

    def __init__(self) -> None:
        self._cuda: Any = None
        self.reset()

    @property
    def kind(self) -> str:
        """What is read."""
        return "CUDA" if self._cuda else "resident set"

    def watch(self, device_type: str) -> None:
        """Read the memory of that kind of device from now on."""
        if device_type == "cuda":
            import torch

            self._cuda = torch.cuda
            self.reset()

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
    """Of this process and, on Linux, of those that it has started and not ended: llama.cpp's server."""
    try:
        texts = [Path("/proc/self/status").read_text(encoding="ascii")]
        with contextlib.suppress(OSError):
            children = Path("/proc/thread-self/children").read_text(encoding="ascii").split()
            texts += [Path(f"/proc/{child}/status").read_text(encoding="ascii") for child in children]
    except OSError:
        if sys.platform == "win32":
            import psutil

            used = psutil.Process().memory_info()
            return float((used.peak_wset if name == "VmHWM" else used.rss) / _MIB)
        import resource

        # macOS gives the peak only, in bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
    lines = [line for text in texts for line in text.splitlines() if line.startswith(name)]
    return sum(int(line.split()[1]) for line in lines) / 1024
