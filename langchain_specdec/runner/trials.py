"""Trials of faster ways to run a forward: whether one is right, whether it is faster, and when to give up on it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CompileMode = Literal["auto", "off", "reduce-overhead", "max-autotune"]

_logger = logging.getLogger(__name__)
_making = threading.local()


def step_clock() -> float:
    """Seconds, but for those in which this thread made graphs: they are no part of what steps cost."""
    return time.perf_counter() - getattr(_making, "seconds", 0.0)


@contextmanager
def making() -> Iterator[None]:
    """Hold this thread's `step_clock`, as what runs within makes a graph."""
    started = step_clock()
    try:
        yield
    finally:
        _making.seconds = time.perf_counter() - started


@dataclass(frozen=True)
class MadeGraph:
    """What came of making a graph that computes the right thing.

    Attributes:
        seconds: What making it took.
        saving: Share of a step's time that it saves; it is used where that is above 0.
    """

    seconds: float
    saving: float


class Shortcut:
    """A faster way to run forwards. It is used where it is right and faster, and is off for good once it fails.

    Args:
        name: What runs, for messages; a plural.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.is_stopped = False
        """Whether nothing runs this way any more."""
        self.failure = ""
        """Why nothing runs this way any more; empty while it may."""

    def stop(self) -> None:
        """Make nothing more for it, and run nothing this way any more."""
        self.is_stopped = True

    def fail(self, error: Exception) -> None:
        """`stop`, and say why; whatever fails after `stop` does not matter."""
        if self.is_stopped:
            return
        self.stop()
        self.failure = f"{type(error).__name__}: {error}"
        _logger.warning("%s failed and are off from now on (%s: %s).", self._name, type(error).__name__, error)

    def measure_saving(
        self, graph: object, error: float, dtype: torch.dtype, times: Callable[[], tuple[float, float]]
    ) -> float | None:
        """Share of a step's time that a graph saves; not above 0 where it is slower. None: it computes something else.

        Args:
            graph: What is tried, for messages.
            error: See `largest_error`.
            dtype: Type of the logits.
            times: Measures seconds with the graph, and without; called only if the graph is right.
        """
        if not error < (1e-3 if dtype == torch.float32 else 0.05):
            _logger.warning("%s: %s differs by %.2g from what it stands for; it is not used.", self._name, graph, error)
            return None
        fast, plain = times()
        saving = 1.0 - fast / plain
        _logger.info("%s: %s takes %.0f%% less time.", self._name, graph, 100 * saving)
        return saving


def largest_error(computed: Tensor, expected: Tensor, own: Tensor | None = None) -> float:
    """Largest difference of logits `[rows, width, vocab]`, as a share of the largest number that is expected.

    Args:
        computed: What a faster way computes.
        expected: What it stands for.
        own: bool `[rows, width]`: which tokens are no padding; None: all.
    """
    difference = (computed - expected).abs()
    if own is not None:
        difference = torch.where(own[..., None], difference, 0.0)
    return float(difference.max()) / max(float(expected.abs().max()), 1e-9)
