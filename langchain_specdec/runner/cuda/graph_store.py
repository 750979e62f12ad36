"""Captured graphs by the shape of what they run: which there are, when one is made, and whether it may be used.

Launching the hundreds of small kernels of a step takes a CPU longer than they take a GPU. A CUDA graph launches them
all at once, for one fixed shape. So shapes are rounded up to buckets, and what exceeds the request's own is padding.

A shape runs uncaptured until its graph is made, at most one in a turn of the engine, so that no start waits for all of
them. A graph is compared with what it replaces, and used if it is right and faster. There is a limit to their number:
the one that has not been used for longest goes. A shape that waits for the device, or that there is no memory for, is
left alone; whatever else goes wrong ends all graphs of the runner.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_specdec.progress import Progress
from langchain_specdec.runner.cuda.buckets import Bucket
from langchain_specdec.runner.cuda.capture import Capture
from langchain_specdec.runner.cuda.waiting import WaitingError
from langchain_specdec.runner.trials import CompileMode, MadeGraph, Shortcut, making

_logger = logging.getLogger(__name__)


MAX_GRAPHS = 64
"""Most graphs of a runner. A graph of a model of some billion weights takes some ten megabytes."""

# Steps of a shape before it is worth a graph: one costs about as much as twenty steps without.
_NUM_SEEN = {"auto": 3}


@dataclass(frozen=True)
class CapturedGraph(MadeGraph):
    """A graph in use.

    Attributes:
        outputs: What each replay writes to; good until the next replay of any graph.
        replay: Runs it.
    """

    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]


class GraphStore(Shortcut):
    """The graphs of one runner.

    Args:
        capture: What records them.
        mode: `"auto"` makes the graph of a shape once it was seen a few times, the others at once.
        progress: Told `(description, done, total)` when graphs are made.
        max_graphs: Most graphs.
    """

    def __init__(
        self, capture: Capture, mode: CompileMode, progress: Progress | None = None, max_graphs: int = MAX_GRAPHS
    ) -> None:
        super().__init__("Captured graphs")
        self._capture = capture
        self._num_needed = _NUM_SEEN.get(mode, 1)
        self._progress = progress
        self.max_graphs = max_graphs
        self._graphs: OrderedDict[Bucket, CapturedGraph] = OrderedDict()
        self._seen: dict[Bucket, int] = {}
        self._may_make = False
        self._is_warned = False
        self.rejected: dict[Bucket, str] = {}
        """Why the graphs of some shapes are not used."""
        self.num_made = 0
        self.is_frozen = False
        """Whether no more are made, so that runs can be compared."""

    @property
    def graphs(self) -> dict[Bucket, CapturedGraph]:
        """The graphs in use, the longest unused first."""
        return dict(self._graphs)

    def begin_turn(self, *, may_make: bool = True) -> None:
        """Allow one more graph to be made, or none."""
        self._may_make = may_make

    def find(self, bucket: Bucket) -> CapturedGraph | None:
        """The graph of a shape, if it may be used; it counts as used."""
        if bucket not in self._graphs:
            return None
        self._graphs.move_to_end(bucket)
        return self._graphs[bucket]

    def __contains__(self, bucket: Bucket) -> bool:
        """Whether a shape has its graph."""
        return bucket in self._graphs

    def is_settled(self, bucket: Bucket) -> bool:
        """Whether there is nothing left to do for a shape: it has its graph, or is better off without."""
        return bucket in self._graphs or bucket in self.rejected or self.is_stopped

    def is_due(self, bucket: Bucket, *, is_wanted: bool = False) -> bool:
        """Whether the graph of a shape is to be made now; asking counts as seeing the shape.

        Args:
            bucket: The shape.
            is_wanted: Make it as soon as that is allowed, however often it was seen.
        """
        if self.is_frozen or self.is_settled(bucket):
            return False
        self._seen[bucket] = self._seen.get(bucket, 0) + 1
        return self._may_make and (is_wanted or self._seen[bucket] >= self._num_needed)

    def make(
        self,
        bucket: Bucket,
        load: Callable[[], None],
        function: Callable[[], tuple[Tensor, ...]],
        error: Callable[[tuple[Tensor, ...]], float],
        plain: Callable[[], object],
    ) -> None:
        """Make the graph of a shape, check and time it. Whatever goes wrong, what is in the slots afterwards is right.

        Args:
            bucket: The shape.
            load: As in `Capture`.
            function: As in `Capture`.
            error: How far outputs are from those of the uncaptured run: a share of their size.
            plain: Does the same uncaptured, and leaves the slots as it should.
        """
        self._may_make = False
        with making(), contextlib.ExitStack() as at_end:
            at_end.callback(plain)
            try:
                self._try(bucket, load, function, error, plain)
            except WaitingError as reason:
                self._leave_alone(bucket, str(reason))
            except torch.OutOfMemoryError:
                self.max_graphs = max(len(self._graphs), 1)
                self._leave_alone(bucket, "there is no memory for it")
                at_end.callback(self._capture.give_back_memory)
            except Exception as failure:
                self.fail(failure)

    def _try(
        self,
        bucket: Bucket,
        load: Callable[[], None],
        function: Callable[[], tuple[Tensor, ...]],
        error: Callable[[tuple[Tensor, ...]], float],
        plain: Callable[[], object],
    ) -> None:
        started = time.perf_counter()
        outputs, replay = self._capture.record(load, function)

        def run() -> None:
            load()
            replay()

        def times() -> tuple[float, float]:
            return self._capture.seconds(run), self._capture.seconds(plain)

        run()
        saving = self.measure_saving(bucket, error(outputs), outputs[0].dtype, times)
        if saving is not None and saving > 0:
            self._keep(bucket, CapturedGraph(time.perf_counter() - started, saving, outputs, replay))
        else:
            self.rejected[bucket] = "it computes something else" if saving is None else "it takes longer"

    def _leave_alone(self, bucket: Bucket, reason: str) -> None:
        """Run a shape uncaptured from now on. Only the first one is warned of: others will have the same reasons."""
        level = logging.INFO if self._is_warned else logging.WARNING
        _logger.log(level, "%s: %s runs without, as %s.", self._name, bucket, reason)
        self._is_warned = True
        self.rejected[bucket] = reason

    def tell(self, done: int, total: int) -> None:
        """Report how many of the graphs that are wanted now are made."""
        if self._progress is None:
            return
        try:
            self._progress("Capturing CUDA graphs", done, total)
        except Exception:
            # Nobody's text depends on who looks on.
            _logger.exception("The progress callback failed; it is not called any more")
            self._progress = None

    def forget(self) -> None:
        """Begin anew, with graphs and with what was learnt of shapes."""
        self._graphs.clear()
        self._seen.clear()
        self.rejected.clear()

    def stop(self) -> None:
        """Make and use no more graphs, and let go of those that there are."""
        super().stop()
        self._graphs.clear()

    def _keep(self, bucket: Bucket, graph: CapturedGraph) -> None:
        self._graphs[bucket] = graph
        self.num_made += 1
        if len(self._graphs) > self.max_graphs:
            gone, _ = self._graphs.popitem(last=False)
            # It has to be seen anew as often as at first.
            self._seen.pop(gone, None)
