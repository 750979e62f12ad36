"""A runner whose steps are captured graphs: verification with its acceptance, and a draft model that feeds itself.

Both exist twice: as the wrapped runner runs them for one batch, and here as a function of tensors that stay where they
are, padded to a bucket, which is what a graph replays. One copy takes a step's inputs to the device, one brings its
result back, and between them the host only launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from langchain_specdec.progress import Progress
from langchain_specdec.runner.cuda.buckets import Bucket, Buckets
from langchain_specdec.runner.cuda.capture import Capture
from langchain_specdec.runner.cuda.graph_store import CapturedGraph, GraphStore
from langchain_specdec.runner.cuda.likely_batches import likely_batches
from langchain_specdec.runner.cuda.recorded_steps import draft_step, verdict_of, verify_step
from langchain_specdec.runner.model_runner import ModelRunner, PickDraft
from langchain_specdec.runner.row_adapters import RowAdapters
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs, load, num_bytes
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.runner.tap_points import LateStates
from langchain_specdec.runner.trials import CompileMode, largest_error, step_clock
from langchain_specdec.runner.verify import Verification, sound_chains
from langchain_specdec.sampling.noise import gumbel_noise

# Tokens of a row in the first forward of a draft: the last one of the text, and at times the one before it.
_MAX_FED = 2


class CapturedRunner:
    """Runs steps as captured graphs where there is a graph, as the wrapped runner elsewhere, and has graphs made.

    Args:
        uncaptured: The wrapped runner.
        capture: What records steps.
        mode: See `GraphStore`; `"max-autotune"` also makes graphs of the very shapes that come, without padding.
        progress: See `GraphStore`.
    """

    def __init__(
        self, uncaptured: ModelRunner, capture: Capture, mode: CompileMode, progress: Progress | None = None
    ) -> None:
        self.uncaptured = uncaptured
        self.cache = uncaptured.cache
        self.device = uncaptured.device
        self.vocab_size = uncaptured.vocab_size
        self.max_length = uncaptured.max_length
        self.max_positions = uncaptured.max_positions
        self.bytes_per_token = uncaptured.bytes_per_token
        self.max_width = uncaptured.max_width
        self.takes_trees = uncaptured.takes_trees
        self.images = uncaptured.images
        self.store = GraphStore(capture, mode, progress)
        is_exact = mode == "max-autotune"
        self._buckets = Buckets(self.cache.num_slots, self.max_width, self.cache.max_length, is_exact=is_exact)
        # Graphs read their inputs at fixed addresses, so these tensors are kept as long as there are graphs.
        self._places: dict[tuple[int, int, bool], tuple[Tensor, RowInputs]] = {}
        self._settled: set[Bucket] = set()
        self._is_complete = False
        self._states: Tensor | None = None

    adapters: RowAdapters | None = None
    """A graph computes the same for all rows, so there are none to choose among."""

    @property
    def model(self) -> Any:
        """The model; None once released."""
        return self.uncaptured.model

    @property
    def num_forwards(self) -> int:
        """Forwards so far, captured and others; those that only made a graph do not count."""
        return self.uncaptured.num_forwards

    @property
    def graphs(self) -> frozenset[str]:
        """Changes when step costs have to be measured anew: once one row has all its graphs, and when graphs fail.

        Only steps of one row are measured. Graphs come one by one, and measuring after each would cost too much.
        """
        return frozenset({"one row"}) if self._is_complete and not self.store.is_stopped else frozenset()

    is_width_free = True
    pads_rows = True

    @property
    def awaits_graphs(self) -> bool:
        """Whether one row has not got all its graphs yet, but will."""
        return not (self._is_complete or self.store.is_stopped or self.store.is_frozen)

    clock = staticmethod(step_clock)
    make_noise = staticmethod(gumbel_noise)
    has_own_threads = False
    work_bytes = 0

    def tap(self, points: Sequence[int]) -> None:
        """See `ModelRunner.tap`."""
        self.uncaptured.tap(points)

    @property
    def tapped(self) -> LateStates:
        """See `ModelRunner.tapped`."""
        if self._states is None:
            return self.uncaptured.tapped
        # A graph that is replayed writes over what it gave.
        states = self._states.clone()
        return lambda: states

    def note_weights(self) -> bool:
        """See `ModelRunner.note_weights`. Graphs go when what they launch, or where they read weights, has changed."""
        before = self.uncaptured.weights
        has_changed = self.uncaptured.note_weights()
        now = self.uncaptured.weights
        if (now.places, now.switches) != (before.places, before.switches):
            self.store.forget()
            self._settled.clear()
            self._is_complete = False
        return has_changed

    @property
    def why_unfit(self) -> str | None:
        """See `ModelRunner.why_unfit`."""
        return self.uncaptured.why_unfit

    def begin_turn(self, *, may_capture: bool = True) -> None:
        """Say that a turn of the engine begins. At most one graph is captured in it, and none unless it may be."""
        self.store.begin_turn(may_make=may_capture)

    def prefill(self, batch: RowBatch) -> None:
        """See `ModelRunner.prefill`; nothing of it is captured."""
        self._states = None
        self.uncaptured.prefill(batch)

    @torch.inference_mode()
    def verify(self, batch: RowBatch, *, is_wanted: bool = False) -> Verification:
        """See `ModelRunner.verify`.

        Args:
            batch: The rows.
            is_wanted: Make the graph as soon as that is allowed.
        """
        bucket = self._bucket("verify", batch, batch.width)
        graph = self.store.find(bucket) if bucket is not None else None
        if bucket is not None and graph is not None:
            try:
                return self._replay_verify(bucket, graph, batch)
            except Exception as error:
                # What it wrote lies beyond the rows' lengths; running it again as it is is safe.
                self.store.fail(error)
        verification = self.uncaptured.verify(batch)
        # Making a graph runs other forwards.
        self._states = self.uncaptured.tapped() if self.uncaptured.is_tapped else None
        if bucket is not None and self.store.is_due(bucket, is_wanted=is_wanted):
            self._make_verify(bucket, batch, verification)
        return verification

    @torch.inference_mode()
    def chain(self, batch: RowBatch, steps: int, vocab_size: int, pick: PickDraft | None = None) -> list[list[int]]:
        """See `ModelRunner.chain`."""
        # All forwards of the loop read as far as its last one.
        widths = [batch.width] if steps == 1 else [batch.width, 1]
        padded = [self._bucket("draft", batch, width, steps - 1 + batch.width - width) for width in widths]
        buckets = [bucket for bucket in padded if bucket is not None] if batch.width <= _MAX_FED else []
        graphs = [graph for graph in map(self.store.find, buckets) if graph is not None]
        if buckets and len(graphs) == len(buckets):
            try:
                return self._replay_chain(buckets[0], graphs, batch, steps, pick)
            except Exception as error:
                self.store.fail(error)
        # Before the loop: padding of shorter rows would overwrite what the loop leaves.
        if buckets and self.store.is_due(buckets[0]):
            self._make_draft(buckets[0], batch, vocab_size)
        chains = self.uncaptured.chain(batch, steps, vocab_size, pick)
        if len(buckets) > 1 and all(chains) and self.store.is_due(buckets[1]):
            self._make_draft(buckets[1], _after(batch, chains), vocab_size)
        return chains

    @torch.inference_mode()
    def make_next_graph(self, batch: RowBatch) -> None:
        """See `ModelRunner.make_next_graph`."""
        try:
            self._make_next_graph(batch)
        except Exception as error:
            self.store.fail(error)

    @torch.inference_mode()
    def prepare(self, rows: int, lengths: range, *, is_sampled: bool, num_candidates: int) -> None:
        """Make the graphs that decoding certain texts uses, and none later, so that runs can be compared.

        Args:
            rows: Most texts at a time.
            lengths: How many tokens they may have.
            is_sampled: Whether noise will pick tokens.
            num_candidates: See `RowBatch`.
        """
        starts = range(lengths[0] - 1, min(lengths[-1], self.max_length))
        widths = self._buckets.all_widths
        batches = likely_batches(
            self._buckets, rows, starts, widths, is_sampled=is_sampled, num_candidates=num_candidates
        )
        self._prepare(
            "verify", batches, lambda bucket, batch: self._make_verify(bucket, batch, self.uncaptured.verify(batch))
        )
        self._is_complete = True

    @torch.inference_mode()
    def prepare_drafts(self, rows: int, lengths: range, vocab_size: int, *, is_sampled: bool) -> None:
        """Make the graphs that drafting for certain texts uses, and none later.

        Args:
            rows: As in `prepare`.
            lengths: As in `prepare`.
            vocab_size: As in `chain`.
            is_sampled: As in `prepare`.
        """
        # A draft begins up to two tokens before a text's end, and goes on as far as it is long.
        starts = range(max(lengths[0] - _MAX_FED, 0), min(lengths[-1] + self.max_width, self.max_length))
        widths = range(1, min(_MAX_FED, self.max_width) + 1)
        batches = likely_batches(self._buckets, rows, starts, widths, is_sampled=is_sampled)
        self._prepare("draft", batches, lambda bucket, batch: self._make_draft(bucket, batch, vocab_size))

    def release(self) -> None:
        """Let go of the graphs, the model and the slots; only for a runner that runs nothing any more."""
        self.store.stop()
        self._places.clear()
        self.uncaptured.release()

    def _prepare(
        self, kind: Literal["verify", "draft"], batches: Iterable[RowBatch], make: Callable[[Bucket, RowBatch], None]
    ) -> None:
        store = self.store
        shapes: dict[Bucket, RowBatch] = {}
        for batch in batches:
            bucket = self._bucket(kind, batch, batch.width)
            if bucket is not None:
                shapes.setdefault(bucket, batch)
        wanted = list(shapes.items())[: store.max_graphs]
        for done, (bucket, batch) in enumerate(wanted):
            store.tell(done, len(wanted))
            store.begin_turn()
            # There may turn out to be memory for fewer.
            if len(store.graphs) < store.max_graphs and store.is_due(bucket, is_wanted=True):
                make(bucket, batch)
        store.tell(len(wanted), len(wanted))
        store.is_frozen = True

    def _bucket(self, kind: Literal["verify", "draft"], batch: RowBatch, width: int, later: int = 0) -> Bucket | None:
        """The bucket of a batch, as if its rows had so many tokens and started so many positions later."""
        start = max(batch.starts) + later
        fit = self._buckets.fit
        return fit(kind, batch.slots, start, width, is_sampled=batch.is_sampled, num_candidates=batch.num_candidates)

    def _make_next_graph(self, batch: RowBatch) -> None:
        store = self.store
        narrowest = self._bucket("verify", batch, 1)
        if store.is_frozen or narrowest is None or narrowest not in store or narrowest in self._settled:
            return
        widths = self._buckets.all_widths
        wanted = {w: bucket for w in widths if (bucket := self._bucket("verify", batch, w)) is not None}
        missing = [width for width, bucket in wanted.items() if not store.is_settled(bucket)]
        if missing:
            tokens = [list(batch.tokens[0]) * missing[0]]
            self.verify(replace(batch, tokens=tokens), is_wanted=True)
            missing = [width for width in missing if not store.is_settled(wanted[width])]
            store.tell(len(wanted) - len(missing), len(wanted))
        if not missing:
            self._settled.add(narrowest)
            self._is_complete = True

    def _packed(self, batch: RowBatch, bucket: Bucket, width: int, *, has_tree: bool) -> Callable[[], None]:
        """Loads a batch, padded to a bucket, into the place that its graph reads."""
        taken = set(batch.slots)
        idle = [slot for slot in range(self._buckets.num_slots) if slot not in taken]
        # A padding row writes where no text of its slot ever stands: beyond `max_length`.
        packed = batch.pack(bucket.rows, width, has_tree=has_tree, idle=idle, idle_place=self.max_length)
        return partial(load, packed, self._places[bucket.rows, width, has_tree][0])

    def _place(self, rows: int, width: int, *, has_tree: bool) -> RowInputs:
        """Where graphs of so many rows and tokens read their inputs."""
        key = (rows, width, has_tree)
        if key not in self._places:
            buffer = torch.zeros(num_bytes(rows, width, has_tree=has_tree), dtype=torch.uint8, device=self.device)
            self._places[key] = buffer, RowInputs.from_buffer(buffer, rows, width, has_tree=has_tree)
        return self._places[key][1]

    def _replay_verify(self, bucket: Bucket, graph: CapturedGraph, batch: RowBatch) -> Verification:
        logits, verdict, *states = graph.outputs
        inputs = self._place(bucket.rows, bucket.width, has_tree=True)
        self._packed(batch, bucket, bucket.width, has_tree=True)()
        graph.replay()
        self.uncaptured.num_forwards += 1
        rows, width = len(batch.slots), batch.width
        own = verdict[:, :rows, :width] if batch.noise is not None else None
        self._states = states[0][:rows, :width] if states else None
        return Verification(StepLogits(logits[:rows, :width], self), own, inputs.cut(rows, width))

    def _replay_chain(
        self, bucket: Bucket, graphs: Sequence[CapturedGraph], batch: RowBatch, steps: int, pick: PickDraft | None
    ) -> list[list[int]]:
        rows = len(batch.slots)
        inputs = self._place(bucket.rows, _MAX_FED, has_tree=False)
        self._packed(batch, bucket, _MAX_FED, has_tree=False)()
        chains = inputs.tokens[:rows, :0]
        for step in range(steps):
            self.uncaptured.num_forwards += 1
            graph = graphs[min(step, len(graphs) - 1)]
            graph.replay()
            logits, picked = graph.outputs
            if pick is None:
                picked = picked[:rows]
            else:
                # The graph fed itself by noise alone; what is picked for these rows takes its place.
                picked = pick(logits[:rows, None], inputs.starts[:rows, None], chains)
                inputs.tokens[:rows, :1].copy_(picked)
            chains = torch.cat([chains, picked], 1)
        return sound_chains(chains, logits[:rows, None], picked)

    def _make_verify(self, bucket: Bucket, batch: RowBatch, expected: Verification) -> None:
        inputs = self._place(bucket.rows, bucket.width, has_tree=True)
        rows, width = len(batch.slots), batch.width
        own = torch.arange(width, device=self.device) < expected.inputs.num_nodes[:, None]
        expected_logits, num_forwards = expected.logits.tensor, self.num_forwards

        def error(outputs: tuple[Tensor, ...]) -> float:
            logits, verdict = outputs[0][:rows, :width], outputs[1][:, :rows, :width]
            right = verdict_of(logits, inputs.cut(rows, width), bucket)
            # Of equally good candidates either may come first, so only picks and what stands are compared.
            return _error(logits, expected_logits, (right[:2] == verdict[:2]) | ~own, own)

        self.store.make(
            bucket,
            self._packed(batch, bucket, bucket.width, has_tree=True),
            lambda: verify_step(self.uncaptured, inputs, bucket),
            error,
            lambda: self.uncaptured.verify(batch),
        )
        # Forwards that made the graph are nobody's, and they leave the expected logits as they are.
        self.uncaptured.num_forwards = num_forwards

    def _make_draft(self, bucket: Bucket, batch: RowBatch, vocab_size: int) -> None:
        inputs = self._place(bucket.rows, _MAX_FED, has_tree=False)
        rows = len(batch.slots)
        expected = self.uncaptured.last_logits(batch)[..., :vocab_size]

        def error(outputs: tuple[Tensor, ...]) -> float:
            logits, picked = outputs
            # The graph has moved its inputs on: they say where the picked tokens stand.
            right = inputs.pick(logits[:, None], inputs.starts[:, None], is_sampled=bucket.is_sampled)
            is_right = (right == picked)[:rows] & (inputs.tokens[:rows, :1] == picked[:rows])
            return _error(logits[:rows, None], expected, is_right)

        self.store.make(
            bucket,
            self._packed(batch, bucket, _MAX_FED, has_tree=False),
            lambda: draft_step(self.uncaptured, inputs, bucket, vocab_size),
            error,
            lambda: self.uncaptured.last_logits(batch),
        )


def _error(computed: Tensor, expected: Tensor, is_right: Tensor, own: Tensor | None = None) -> float:
    """See `largest_error`; infinite where tokens were picked wrongly."""
    return largest_error(computed, expected, own) if bool(is_right.all()) else float("inf")


def _after(batch: RowBatch, chains: Sequence[Sequence[int]]) -> RowBatch:
    """The rows of the second forward of a loop."""
    starts = [start + len(tokens) for start, tokens in zip(batch.starts, batch.tokens, strict=True)]
    return RowBatch(batch.slots, starts, [chain[:1] for chain in chains], None, batch.noise)
