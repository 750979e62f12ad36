"""Steps as captured graphs: verification with its acceptance, and the loop in which a draft model feeds itself.

Both exist twice: as the runner runs them for one batch, and here as a function of tensors that stay where they are,
padded to a bucket, which is what a graph replays. One copy takes a step's inputs to the device, one brings its result
back, and between them the host only launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from langchain_specdec.runner.cuda.buckets import Bucket, Buckets
from langchain_specdec.runner.cuda.capture import Capture
from langchain_specdec.runner.cuda.graph_store import CapturedGraph, GraphStore
from langchain_specdec.runner.kv_cache import StaticShape
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs, load, num_bytes
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.runner.trials import CompileMode, largest_error
from langchain_specdec.runner.verify import Verification, pick_and_accept
from langchain_specdec.sampling.noise import Noise

if TYPE_CHECKING:
    from langchain_specdec.progress import Progress
    from langchain_specdec.runner.model_runner import ModelRunner, PickDraft

__all__ = ["CapturedSteps", "draft_step", "make_captured", "verify_step"]

# Tokens of a row in the first forward of a draft: the last one of the text, and at times the one before it.
_MAX_FED = 2


def make_captured(
    capture: Capture,
    mode: CompileMode,
    num_slots: int,
    max_length: int,
    max_width: int,
    progress: Progress | None = None,
) -> CapturedSteps:
    """What captures the steps of a runner.

    Args:
        capture: What records them.
        mode: See `GraphStore`; `"max-autotune"` also makes graphs of the very shapes that come, without padding.
        num_slots: The runner's.
        max_length: The runner's.
        max_width: The runner's.
        progress: See `GraphStore`.
    """
    buckets = Buckets(num_slots, max_width, max_length + max_width, is_exact=mode == "max-autotune")
    return CapturedSteps(GraphStore(capture, mode, progress), buckets)


class CapturedSteps:
    """Runs a runner's steps captured where there is a graph, and has graphs made.

    Args:
        store: The graphs.
        buckets: How shapes are rounded up to those of graphs.
    """

    def __init__(self, store: GraphStore, buckets: Buckets) -> None:
        self.store = store
        self._buckets = buckets
        # A graph reads where these lie, so they stay there for as long as there are graphs.
        self._places: dict[tuple[int, int, bool], tuple[Tensor, RowInputs]] = {}
        self._settled: set[Bucket] = set()
        self._is_complete = False

    @property
    def ready(self) -> frozenset[str]:
        """Changes where what steps cost is to be measured anew: when one row has all its graphs, and on failure.

        Only steps of one row are measured, and graphs come one by one: each by itself is no reason.
        """
        return frozenset({"one row"}) if self._is_complete and not self.store.is_stopped else frozenset()

    def verify(self, runner: ModelRunner, batch: RowBatch, *, is_wanted: bool = False) -> Verification:
        """See `ModelRunner.verify`.

        Args:
            runner: The runner.
            batch: The rows.
            is_wanted: Make the graph as soon as that is allowed.
        """
        is_sampled = batch.noise is not None and batch.noise.is_sampled
        bucket = self._buckets.of("verify", batch.slots, max(batch.starts), batch.width, is_sampled=is_sampled)
        graph = self.store.find(bucket) if bucket is not None else None
        if bucket is not None and graph is not None:
            try:
                return self._replay_verify(runner, bucket, graph, batch)
            except Exception as error:
                # What it wrote lies beyond the rows' lengths; running it again as it is is safe.
                self.store.fail(error)
        found = runner.verify_plainly(batch)
        if bucket is not None and self.store.is_due(bucket, is_wanted=is_wanted):
            self._make_verify(runner, bucket, batch, found)
        return found

    def chain(
        self, runner: ModelRunner, batch: RowBatch, steps: int, vocab_size: int, pick: PickDraft | None
    ) -> list[list[int]]:
        """See `ModelRunner.chain`."""
        is_sampled = batch.noise is not None and batch.noise.is_sampled
        # All forwards of the loop read as far as its last one.
        end = max(batch.starts) + steps - 1
        wanted = [
            self._buckets.of("draft", batch.slots, end + batch.width - width, width, is_sampled=is_sampled)
            for width in ((batch.width,) if steps == 1 else (batch.width, 1))
        ]
        buckets = [b for b in wanted if b is not None] if batch.width <= _MAX_FED else []
        graphs = [graph for graph in map(self.store.find, buckets) if graph is not None]
        if buckets and len(graphs) == len(buckets):
            try:
                return self._replay_chain(runner, buckets[0], graphs, batch, steps, pick)
            except Exception as error:
                self.store.fail(error)
        # Before the loop: padding of shorter rows would overwrite what the loop leaves.
        if buckets and self.store.is_due(buckets[0]):
            self._make_draft(runner, buckets[0], batch, vocab_size)
        chains = runner.chain_plainly(batch, steps, vocab_size, pick).tolist()
        if len(buckets) > 1 and self.store.is_due(buckets[1]):
            self._make_draft(runner, buckets[1], _after(batch, chains), vocab_size)
        return chains

    def make_next(self, runner: ModelRunner, batch: RowBatch) -> None:
        """Make the next graph that drafts of other sizes need at the end of this text, if it may be made now.

        Args:
            runner: The runner.
            batch: One row of one token, the last one of a text.
        """
        try:
            self._make_next(runner, batch)
        except Exception as error:
            self.store.fail(error)

    def prepare(self, runner: ModelRunner, *, is_sampled: bool) -> None:
        """Make the likeliest graphs now, before anything runs, and none later, so that runs can be compared.

        Args:
            runner: The runner; its slots hold nothing yet.
            is_sampled: Whether tokens will be chosen with noise.
        """
        store, buckets = self.store, self._buckets
        # One row first, then as many as there can be, since that is where requests spend their time.
        counts = {*buckets.all_rows, max(buckets.num_slots - 1, 1)}
        all_rows = sorted(counts, key=lambda rows: (rows > 1, -rows))
        shapes = list(product(all_rows, buckets.all_lengths, buckets.all_widths))[: store.max_graphs]
        for done, (rows, length, width) in enumerate(shapes):
            if store.is_stopped or store.is_frozen:
                return
            store.tell(done, len(shapes))
            start = min(length - width, buckets.max_length - buckets.max_width - 1)
            if start < 0:
                continue
            noise = Noise(range(rows), [float(is_sampled)] * rows)
            store.begin_turn()
            batch = RowBatch(range(rows), [start] * rows, [[0] * width] * rows, None, noise)
            self.verify(runner, batch, is_wanted=True)
        store.tell(len(shapes), len(shapes))
        self._is_complete = True
        store.is_frozen = True

    def release(self) -> None:
        """Let go of all graphs and their inputs."""
        self.store.stop()
        self._places.clear()

    def _make_next(self, runner: ModelRunner, batch: RowBatch) -> None:
        store, is_sampled = self.store, batch.noise is not None and batch.noise.is_sampled
        of = partial(self._buckets.of, "verify", batch.slots, batch.starts[0], is_sampled=is_sampled)
        narrowest = of(1)
        if store.is_frozen or narrowest is None or narrowest not in store or narrowest in self._settled:
            return
        wanted = {width: bucket for width in self._buckets.all_widths if (bucket := of(width)) is not None}
        missing = [width for width, bucket in wanted.items() if not store.is_settled(bucket)]
        if missing:
            tokens = [list(batch.tokens[0]) * missing[0]]
            self.verify(runner, RowBatch(batch.slots, batch.starts, tokens, None, batch.noise), is_wanted=True)
            missing = [width for width in missing if not store.is_settled(wanted[width])]
            store.tell(len(wanted) - len(missing), len(wanted))
        if not missing:
            self._settled.add(narrowest)
            self._is_complete = True

    def _packed(self, batch: RowBatch, bucket: Bucket, width: int, *, has_tree: bool) -> Callable[[], None]:
        """Loads a batch, padded to a bucket, into the place that its graph reads."""
        taken = set(batch.slots)
        idle = [slot for slot in range(self._buckets.num_slots) if slot not in taken]
        # A padding row writes where no text of its slot ever stands.
        beyond = self._buckets.max_length - self._buckets.max_width
        packed = batch.pack(bucket.rows, width, has_tree=has_tree, idle=idle, idle_place=beyond)
        return partial(load, packed, self._places[bucket.rows, width, has_tree][0])

    def _place(self, rows: int, width: int, device: torch.device, *, has_tree: bool) -> RowInputs:
        """Where graphs of so many rows and tokens read their inputs."""
        key = (rows, width, has_tree)
        if key not in self._places:
            buffer = torch.zeros(num_bytes(rows, width, has_tree=has_tree), dtype=torch.uint8, device=device)
            self._places[key] = buffer, RowInputs.of(buffer, rows, width, has_tree=has_tree)
        return self._places[key][1]

    def _replay_verify(
        self, runner: ModelRunner, bucket: Bucket, graph: CapturedGraph, batch: RowBatch
    ) -> Verification:
        logits, verdict = graph.outputs
        inputs = self._place(bucket.rows, bucket.width, logits.device, has_tree=True)
        self._packed(batch, bucket, bucket.width, has_tree=True)()
        graph.replay()
        rows, width = len(batch.slots), batch.width
        own = verdict[:, :rows, :width] if batch.noise is not None else None
        return Verification(StepLogits(logits[:rows, :width], runner), own, inputs.cut(rows, width))

    def _replay_chain(
        self,
        runner: ModelRunner,
        bucket: Bucket,
        graphs: Sequence[CapturedGraph],
        batch: RowBatch,
        steps: int,
        pick: PickDraft | None,
    ) -> list[list[int]]:
        rows = len(batch.slots)
        inputs = self._place(bucket.rows, _MAX_FED, graphs[0].outputs[0].device, has_tree=False)
        self._packed(batch, bucket, _MAX_FED, has_tree=False)()
        chains = inputs.tokens[:rows, :0]
        for step in range(steps):
            runner.num_forwards += 1
            graph = graphs[min(step, len(graphs) - 1)]
            graph.replay()
            logits, chosen = graph.outputs
            if pick is None:
                chosen = chosen[:rows]
            else:
                # The graph fed itself by noise alone; what these rows choose takes its place.
                chosen = pick(logits[:rows, None], inputs.starts[:rows, None], chains)
                inputs.tokens[:rows, :1].copy_(chosen)
            chains = torch.cat([chains, chosen], 1)
        return chains.tolist()

    def _make_verify(self, runner: ModelRunner, bucket: Bucket, batch: RowBatch, expected: Verification) -> None:
        inputs = self._place(bucket.rows, bucket.width, runner.device, has_tree=True)
        rows, width, right_logits = len(batch.slots), batch.width, expected.logits.tensor
        own = torch.arange(width, device=runner.device) < expected.inputs.num_nodes[:, None]

        def error(outputs: tuple[Tensor, ...]) -> float:
            logits, verdict = outputs
            right = pick_and_accept(logits[:rows, :width], inputs.cut(rows, width), is_sampled=bucket.is_sampled)
            is_right = (right == verdict[:, :rows, :width]) | ~own
            return _error(logits[:rows, :width], right_logits, is_right, own)

        self.store.make(
            bucket,
            self._packed(batch, bucket, bucket.width, has_tree=True),
            lambda: verify_step(runner, inputs, bucket),
            error,
            lambda: runner.verify_plainly(batch),
        )

    def _make_draft(self, runner: ModelRunner, bucket: Bucket, batch: RowBatch, vocab_size: int) -> None:
        inputs = self._place(bucket.rows, _MAX_FED, runner.device, has_tree=False)
        rows = len(batch.slots)
        expected = runner.last_logits(batch)[..., :vocab_size]

        def error(outputs: tuple[Tensor, ...]) -> float:
            logits, chosen = outputs
            # The graph has moved its inputs on: they say where the chosen tokens stand.
            right = inputs.pick(logits[:, None], inputs.starts[:, None], is_sampled=bucket.is_sampled)
            is_right = (right == chosen)[:rows] & (inputs.tokens[:rows, :1] == chosen[:rows])
            return _error(logits[:rows, None], expected, is_right, torch.ones_like(is_right))

        self.store.make(
            bucket,
            self._packed(batch, bucket, _MAX_FED, has_tree=False),
            lambda: draft_step(runner, inputs, bucket, vocab_size),
            error,
            lambda: runner.last_logits(batch),
        )


def verify_step(runner: ModelRunner, inputs: RowInputs, bucket: Bucket) -> tuple[Tensor, Tensor]:
    """A forward and its acceptance, of tensors alone; this is what is captured.

    Returns:
        The logits, and the verdict.
    """
    logits = _forward(runner, inputs, bucket)
    return logits, pick_and_accept(logits, inputs, is_sampled=bucket.is_sampled)


def draft_step(runner: ModelRunner, inputs: RowInputs, bucket: Bucket, vocab_size: int) -> tuple[Tensor, Tensor]:
    """A draft forward that leaves in its inputs what the next one reads; this is what is captured.

    One graph so serves a loop of any length, at one launch a token. A graph of the whole loop would save some
    microseconds a token, and be one more to make and to hold for each length.

    Returns:
        The logits after each row's last token, `[rows, vocab]`, and the tokens chosen by them, `[rows, 1]`.
    """
    logits = _forward(runner, inputs.cut(bucket.rows, bucket.width), bucket)
    rows = torch.arange(bucket.rows, device=logits.device)
    last = logits[rows, inputs.num_nodes - 1, :vocab_size]
    ends = inputs.starts + inputs.num_nodes
    chosen = inputs.pick(last[:, None], ends[:, None], is_sampled=bucket.is_sampled)
    inputs.tokens[:, :1].copy_(chosen)
    inputs.starts.copy_(ends)
    inputs.places.add_(inputs.num_nodes)
    inputs.num_nodes.fill_(1)
    return last, chosen


def _forward(runner: ModelRunner, inputs: RowInputs, bucket: Bucket) -> Tensor:
    places = inputs.places[:, None] + torch.arange(bucket.width, device=inputs.places.device)
    return runner.forward_static(inputs, StaticShape(bucket.length, inputs.slots, places, bucket.is_whole))


def _error(computed: Tensor, expected: Tensor, is_right: Tensor, own: Tensor) -> float:
    """See `largest_error`; infinite where tokens were picked wrongly."""
    return largest_error(computed, expected, own) if bool(is_right.all()) else float("inf")


def _after(batch: RowBatch, chains: Sequence[Sequence[int]]) -> RowBatch:
    """The rows of the second forward of a loop."""
    starts = [start + len(tokens) for start, tokens in zip(batch.starts, batch.tokens, strict=True)]
    return RowBatch(batch.slots, starts, [chain[:1] for chain in chains], None, batch.noise)
