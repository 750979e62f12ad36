"""Captured steps write what plain decoding writes, launch without waiting, are bounded, and may fail."""

from __future__ import annotations

import functools
import itertools
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from langchain_specdec.bench.header import describe_graphs
from langchain_specdec.bench.table import captured_line
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.models.compatibility import common_vocabulary
from langchain_specdec.models.make_runner import make_runner, why_uncaptured
from langchain_specdec.runner.cuda.buckets import Bucket, Buckets
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.cuda.graph_store import GraphStore
from langchain_specdec.runner.cuda.recorded_steps import draft_step, verify_step
from langchain_specdec.runner.cuda.waiting import RefuseWaiting
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import WIDTHS, RowBatch, RowInputs, num_bytes
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.sampling.choice import TokenHistory
from langchain_specdec.sampling.noise import Noise
from langchain_specdec.sampling.params import SamplingParams
from tests.support.model_families import (
    FAMILIES,
    MAX_WIDTH,
    WAITING_FAMILIES,
    WINDOW,
    WITH_EXPERTS,
    load,
    params,
    reference_text,
)
from tests.support.other_tokenizers import renumbered, shuffled_tokenizer
from tests.support.recorded_graphs import RecordedCapture
from tests.support.tiny_models import (
    FakeRequest,
    OracleDrafter,
    References,
    TreeOracleDrafter,
    loaded,
    perturbed,
    plain_reference,
    random_prompt,
    read,
    tiny_model,
    token_ids,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("only_operators")]

PROMPTS = [[5, 6, 7, 8, 9, 5, 6, 7], [7, 8, 9, 5, 6, 7] * 3, [1, 2, 3], [9] * 20, [4], [5, 6, 7, 8, 1, 2]]
GREEDY = SamplingParams(max_new_tokens=25, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=25, temperature=0.8, seed=3, ignore_eos=True)
CUT = SamplingParams(max_new_tokens=25, temperature=0.9, top_p=0.8, top_k=30, seed=5, ignore_eos=True)
PENALISED = SamplingParams(max_new_tokens=25, temperature=0.7, repetition_penalty=1.3, seed=6, ignore_eos=True)
KINDS = [GREEDY, SAMPLED, CUT, PENALISED]
NAMES = ["greedy", "sampled", "cut", "penalised"]


def captured_runner(
    model: Any,
    capture: Any = None,
    *,
    num_slots: int = 4,
    max_length: int = 256,
    max_width: int = 11,
    mode: Any = "reduce-overhead",
    progress: Any = None,
) -> CapturedRunner:
    runner = plain_runner(model, num_slots=num_slots, max_length=max_length, max_width=max_width)
    return CapturedRunner(runner, capture or RecordedCapture(), mode, progress)


def plain_runner(model: Any, num_slots: int = 4, max_length: int = 256, max_width: int = 11) -> ModelRunner:
    runner = make_runner(loaded(model), num_slots=num_slots, max_length=max_length, max_width=max_width)
    assert isinstance(runner, ModelRunner)
    return runner


def captured(runner: Runner) -> CapturedRunner:
    assert isinstance(runner, CapturedRunner)
    return runner


@pytest.fixture
def make() -> Iterator[Callable[..., Engine]]:
    """Makes engines over runners, and closes them."""
    engines: list[Engine] = []

    def build(runner: Runner, drafter: Drafter | None = None, **kwargs: Any) -> Engine:
        kwargs.setdefault("step_cost", StepCost.flat())
        engines.append(Engine(runner, drafter or Drafter(), loaded(runner.model).tokenizer, (256,), **kwargs))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def references() -> References:
    return References(tiny_model())


def decode(engine: Engine, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[list[int]]:
    streams = [engine.submit(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
    return [token_ids(read(stream)[0]) for stream in streams]


# --- Same text -------------------------------------------------------------------------------------------------------


def test_graphs_go_when_weights_have_moved(make: Any, references: References) -> None:
    other = perturbed(tiny_model(), 0.5)
    model = tiny_model()
    engine = make(captured_runner(model), PromptLookupDrafter(5))
    assert decode(engine, PROMPTS, [GREEDY] * len(PROMPTS)) == [references(prompt, GREEDY) for prompt in PROMPTS]
    num_made = captured(engine.runner).store.num_made
    assert num_made > 0
    with torch.no_grad():
        model.lm_head.weight.mul_(1.0)
    decode(engine, PROMPTS[:1], [GREEDY])
    assert captured(engine.runner).store.graphs, "they read what was written in place"
    model.load_state_dict(other.state_dict(), assign=True)
    after = References(other)
    assert decode(engine, PROMPTS, [GREEDY] * len(PROMPTS)) == [after(prompt, GREEDY) for prompt in PROMPTS]
    assert captured(engine.runner).store.num_made > num_made


@pytest.mark.parametrize("mode", ["auto", "reduce-overhead", "max-autotune"])
def test_texts_are_those_of_plain_decoding(mode: str, make: Any, references: References) -> None:
    # More requests than slots, of all kinds, which join and leave, in three rounds that find their prefixes again.
    capture = RecordedCapture()
    engine = make(captured_runner(tiny_model(), capture, mode=mode), PromptLookupDrafter(5))
    for turn in range(3):
        kinds = [KINDS[(i + turn) % len(KINDS)] for i in range(len(PROMPTS))]
        expected = [references(prompt, params) for prompt, params in zip(PROMPTS, kinds, strict=True)]
        assert decode(engine, PROMPTS, kinds) == expected
    assert captured(engine.runner).store.failure == ""
    assert captured(engine.runner).store.rejected == {}
    assert capture.num_replayed > 100


@pytest.mark.parametrize(("params", "num_slots"), [*zip(KINDS, (1, 3, 1, 3), strict=True)], ids=NAMES)
def test_trees_close_their_gaps(params: SamplingParams, num_slots: int, make: Any, references: References) -> None:
    known = {tuple(prompt): references(prompt, params) for prompt in PROMPTS}
    runner = captured_runner(tiny_model(), max_width=17, num_slots=num_slots)
    engine = make(runner, TreeOracleDrafter(known, 0.8), max_tree_nodes=16)
    for _ in range(2):
        assert decode(engine, PROMPTS, [params] * len(PROMPTS)) == list(known.values())
    assert captured(runner).store.rejected == {}
    assert any(bucket.width == 16 for bucket in captured(runner).store.graphs)


@pytest.mark.parametrize(("params", "num_slots"), [*zip(KINDS, (4, 1, 4, 4), strict=True)], ids=NAMES)
def test_a_draft_model_feeds_itself(params: SamplingParams, num_slots: int, make: Any, references: References) -> None:
    draft = captured_runner(perturbed(tiny_model(), 0.05), num_slots=num_slots)
    runner = captured_runner(tiny_model(), num_slots=num_slots)
    engine = make(runner, DraftModelDrafter(draft, 258, 512), max_draft_tokens=3)
    prompts = PROMPTS[: 2 * num_slots]
    expected = [references(prompt, params) for prompt in prompts]
    for _ in range(2):
        assert decode(engine, prompts, [params] * len(prompts)) == expected
    assert captured(draft).store.failure == ""
    assert captured(draft).store.rejected == {}
    assert {bucket.kind for bucket in captured(draft).store.graphs} == {"draft"}


@pytest.mark.parametrize("params", [GREEDY, CUT], ids=["greedy", "cut"])
def test_a_draft_model_with_another_tokenizer_feeds_itself(
    params: SamplingParams, make: Any, references: References
) -> None:
    target, theirs = loaded(tiny_model()), shuffled_tokenizer(1, [("t", "h")])
    other = renumbered(perturbed(target.model, 0.05), target.tokenizer, theirs)
    draft, runner = captured_runner(other), captured_runner(target.model)
    common = common_vocabulary(target, loaded(other, tokenizer=theirs))
    engine = make(runner, DraftModelDrafter(draft, 258, 512, common), max_draft_tokens=3)
    expected = [references(prompt, params) for prompt in PROMPTS]
    for _ in range(2):
        assert decode(engine, PROMPTS, [params] * len(PROMPTS)) == expected
    assert captured(draft).store.failure == ""
    assert {bucket.kind for bucket in captured(draft).store.graphs} == {"draft"}


@pytest.mark.parametrize("params", KINDS, ids=NAMES)
def test_drafts_are_those_of_the_uncaptured_loop(params: SamplingParams) -> None:
    model = tiny_model(3)
    plain = DraftModelDrafter(plain_runner(model), 258, 512)
    capture = RecordedCapture()
    ours = DraftModelDrafter(captured_runner(model, capture), 250, 512)
    plain._vocab_size = 250
    requests = [FakeRequest(i, list(prompt), i, params, seed=i) for i, prompt in enumerate(PROMPTS[:3])]
    history = TokenHistory(4, 258, torch.device("cpu"))
    for request in requests:
        history.start(request.slot, request.token_ids)
        request.history = history
    for turn in range(12):
        steps, chosen = 1 + turn % 5, requests[: 1 + turn % 3]
        replayed = capture.num_replayed
        drafts = [d._decode(chosen, steps) for d in (ours, plain)]
        assert drafts[0] == drafts[1]
        for request, chain in zip(chosen, drafts[0], strict=True):
            # All of them accepted and one more, or some.
            accepted = [*chain, turn] if turn % 2 else chain[: steps // 2 + 1]
            request.token_ids.extend(accepted)
            history.append(request.slot, accepted)
        ours._runner.begin_turn()
        if turn > 9:
            assert capture.num_replayed == replayed + steps
    assert ours.num_forwards > 0


@pytest.mark.parametrize("name", ["mistral", "qwen2-some-sliding", "gemma2", "gemma3", "gpt2", "phi3", "gpt_neox"])
def test_families_with_windows_and_learned_positions(name: str, make: Any) -> None:
    target = load(name, "cpu")
    prompts = [tuple(random_prompt(random.Random(i), 2 * WINDOW)) for i in range(3)]
    # Up to the last position that the model knows: padding lies beyond it.
    counts = [64 - len(prompt) for prompt in prompts]
    runner = captured_runner(target.model, num_slots=3, max_length=64, max_width=MAX_WIDTH)
    expected = [reference_text(name, "cpu", prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
    known = dict(zip(prompts, expected, strict=True))
    engine = make(runner, TreeOracleDrafter(known, 0.7), max_tree_nodes=MAX_WIDTH - 1)
    params = [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in counts]
    assert decode(engine, prompts, params) == expected
    assert decode(engine, prompts[:1], params[:1]) == expected[:1]
    store = captured(runner).store
    assert (store.failure, store.rejected) == ("", {})
    assert {bucket.rows for bucket in store.graphs} >= {1, 3}


def test_padding_rows_leave_other_slots_alone(references: References) -> None:
    runner = captured_runner(tiny_model(), num_slots=8)
    runner.prefill(RowBatch([6], [0], [PROMPTS[1]]))
    layers: Any = runner.cache._slot_layers
    before = [layer.keys[6, :, : len(PROMPTS[1])].clone() for layer in layers]
    for _ in range(3):
        runner.begin_turn()
        runner.verify(RowBatch([0, 3, 4], [0, 0, 0], [[1, 2, 3]] * 3, None, Noise((0,) * 3, (0.0,) * 3)))
    assert [bucket.rows for bucket in captured(runner).store.graphs] == [4]
    after = [layer.keys[6, :, : len(PROMPTS[1])] for layer in layers]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert all(torch.isfinite(layer.values).all() for layer in layers)


def test_logits_of_a_graph_are_read_before_its_next_replay_only() -> None:
    capture = RecordedCapture()
    runner = captured_runner(tiny_model(), capture)
    batch = RowBatch([0], [0], [[1, 2, 3]], None, Noise((0,), (0.0,)))
    expected = plain_runner(tiny_model()).verify(batch).logits.tensor
    runner.begin_turn()
    earlier: list[StepLogits] = []
    for _ in range(3):
        # The first forward runs uncaptured, and its logits outlive the making of the graph.
        logits = runner.verify(batch).logits
        torch.testing.assert_close(logits.tensor, expected)
        for old in earlier:
            with pytest.raises(RuntimeError, match="of an earlier forward"):
                _ = old.tensor
        earlier.append(logits)
    assert capture.num_replayed > 2


# --- What is captured waits for nothing -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", params(name for name in FAMILIES if name not in WAITING_FAMILIES))
def test_captured_steps_wait_for_nothing(name: str) -> None:
    target = load(name, "cpu")
    # Of experts PyTorch multiplies just these numbers without a look at how many tokens each has.
    target.model.to("meta", torch.bfloat16 if name in WITH_EXPERTS else torch.float32)
    runner = ModelRunner(target.model, 4, 64, 6)
    widths = {"verify": (1, 5), "draft": (1, 2)}
    cases: list[tuple[Any, int, int, bool]] = [
        (kind, *case) for kind in widths for case in itertools.product((1, 2, 4), widths[kind], (False, True))
    ]
    if name != "llama":
        # Each of these values. All of them together are the same code in every family.
        cases = [("verify", 1, 5, True), ("verify", 4, 1, False), ("draft", 1, 1, False), ("draft", 4, 2, True)]
    for kind, rows, width, is_sampled in cases:
        bucket = Bucket(kind, rows, width, 64, is_sampled, rows == 4)
        layout_width, has_tree = (2, False) if kind == "draft" else (width, True)
        buffer = torch.zeros(num_bytes(rows, layout_width, has_tree=has_tree), dtype=torch.uint8, device="meta")
        inputs = RowInputs.from_buffer(buffer, rows, layout_width, has_tree=has_tree)
        with torch.inference_mode():
            run: Any = verify_step if kind == "verify" else functools.partial(draft_step, vocab_size=250)
            if (kind, rows, width, is_sampled) == cases[0]:
                run(runner, inputs, bucket)  # allocates the slots
            with RefuseWaiting(torch.device("meta")):
                outputs = run(runner, inputs, bucket)
        shape = (rows, width, 258) if kind == "verify" else (rows, 250)
        assert tuple(outputs[0].shape) == shape


class Copies(TorchFunctionMode):
    """Counts what goes to the device and what comes back, by what Python asks for."""

    TO_DEVICE = (torch.from_numpy, torch.tensor, torch.as_tensor)
    TO_HOST = tuple(
        getattr(torch.Tensor, name)
        for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
    )

    def __init__(self) -> None:
        super().__init__()
        self.to_device = self.to_host = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.to_device += func in self.TO_DEVICE or self._has_list(func, args)
        self.to_host += func in self.TO_HOST
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _has_list(func: Any, args: tuple[Any, ...]) -> bool:
        if func not in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return False
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(part, list) for part in index)


@pytest.mark.parametrize(
    ("drafting", "is_captured", "params"),
    # Each drafting with and without graphs; who picks the tokens, in turn.
    [
        (*case, params)
        for case, params in zip(
            itertools.product(["none", "lookup", "tree", "lookup tree", "draft model"], [True, False]),
            itertools.cycle([GREEDY, SAMPLED, CUT]),
        )
    ],
)
def test_a_step_takes_one_copy_each_way(
    drafting: str, is_captured: bool, params: SamplingParams, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {tuple(prompt): references(prompt, params) for prompt in PROMPTS[:3]}
    runners = captured_runner(tiny_model(), max_width=17), captured_runner(perturbed(tiny_model(), 0.05))
    runner, draft = runners if is_captured else (runner.uncaptured for runner in runners)
    drafters: dict[str, Drafter] = {
        "none": Drafter(),
        "lookup": OracleDrafter(known, 0.8),
        "tree": TreeOracleDrafter(known, 0.8),
        "lookup tree": LookupTreeDrafter(5),
        "draft model": DraftModelDrafter(draft, 258, 512),
    }
    drafter = drafters[drafting]
    options: dict[str, Any] = {"max_tree_nodes": 16} if "tree" in drafting else {}
    options |= {"step_cost": StepCost.flat(), "max_draft_tokens": 3}
    engine = Engine(runner, drafter, loaded(runner.model).tokenizer, (256,), **options)
    monkeypatch.setattr(engine, "_start_thread", lambda: None)
    counted = 0
    before: list[int] = []
    for turn in range(3):
        streams = [engine.submit(prompt, params) for prompt in PROMPTS[:3]]
        while engine.num_running or engine.num_waiting:
            made = [r.store.num_made for r in runners]
            with Copies() as copies:
                engine._run_once()
            # What rows that join need is no part of a step, nor is making graphs.
            rows = [request.request_id for request in engine._scheduler.next_decode()]
            is_steady = rows == before and made == [r.store.num_made for r in runners]
            before = rows
            if turn == 2 and is_steady and len(rows) == 3:
                counted += 1
                # A loop of the draft model has inputs and a result of its own.
                limit = 2 if drafting == "draft model" else 1
                assert copies.to_host <= limit
                assert copies.to_device <= limit
        for prompt, stream in zip(PROMPTS[:3], streams, strict=True):
            assert token_ids(read(stream)[0]) == known[tuple(prompt)]
    assert counted > 2


# --- How many there are, and when they are made -----------------------------------------------------------------------


def bucket_of(width: int) -> Bucket:
    return Bucket("verify", 1, width, 256, is_sampled=False, is_whole=False)


def put(store: GraphStore, bucket: Bucket) -> bool:
    """Make a graph of nothing much, if it is due."""
    if not store.is_due(bucket):
        return False
    held = torch.zeros(1)
    store.make(bucket, lambda: None, lambda: (held + 1.0,), lambda outputs: 0.0, lambda: None)
    return True


def test_the_longest_unused_graph_goes() -> None:
    store = GraphStore(RecordedCapture(), "reduce-overhead", max_graphs=3)
    for width in (1, 2, 3):
        store.begin_turn()
        assert put(store, bucket_of(width))
    assert store.find(bucket_of(1)) is not None
    store.begin_turn()
    assert put(store, bucket_of(4))
    assert list(store.graphs) == [bucket_of(3), bucket_of(1), bucket_of(4)]
    assert store.find(bucket_of(2)) is None
    store.begin_turn()
    assert put(store, bucket_of(2))
    assert len(store.graphs) == 3


def test_a_turn_makes_one_graph_at_most() -> None:
    store = GraphStore(RecordedCapture(), "reduce-overhead")
    assert not put(store, bucket_of(1)), "outside of a turn none"
    store.begin_turn()
    assert put(store, bucket_of(1))
    assert not put(store, bucket_of(2))
    store.begin_turn()
    assert not put(store, bucket_of(1)), "it is there"
    assert put(store, bucket_of(2))


def test_auto_waits_until_a_shape_was_seen_a_few_times() -> None:
    store = GraphStore(RecordedCapture(), "auto")
    made = []
    for _ in range(4):
        store.begin_turn()
        made.append(put(store, bucket_of(1)))
    assert made == [False, False, True, False]


def test_shapes_are_rounded_up_to_few() -> None:
    buckets = Buckets(num_slots=12, max_width=33, max_length=3000, is_exact=False)
    assert buckets.all_rows == [1, 2, 4, 8, 12]
    assert buckets.all_widths == [1, 2, 3, 5, 8, 16, 32, 33]
    assert buckets.all_lengths == [256, 512, 1024, 2048, 3000]
    assert buckets.fit("verify", [0, 5, 7], 250, 6, is_sampled=True) == Bucket("verify", 4, 8, 512, True, False)
    assert buckets.fit("verify", range(12), 2990, 4, is_sampled=False) == Bucket("verify", 12, 5, 3000, False, True)
    assert buckets.fit("verify", [1], 2999, 2, is_sampled=False) is None
    exact = Buckets(num_slots=12, max_width=33, max_length=3000, is_exact=True)
    assert exact.fit("verify", [0, 5, 7], 250, 6, is_sampled=True) == Bucket("verify", 3, 6, 256, True, False)
    assert Buckets(1, 2, 100, False).fit("draft", [0], 3, 1, is_sampled=False) == Bucket(
        "draft", 1, 1, 100, False, True
    )


def test_no_more_graphs_than_the_limit(make: Any, references: References) -> None:
    capture = RecordedCapture()
    engine = make(captured_runner(tiny_model(), capture), PromptLookupDrafter(5))
    captured(engine.runner).store.max_graphs = 2
    for _ in range(2):
        assert decode(engine, PROMPTS, [GREEDY] * len(PROMPTS)) == [references(p, GREEDY) for p in PROMPTS]
        assert len(captured(engine.runner).store.graphs) == 2
    assert capture.num_recorded > 4


def test_costs_are_assumed_until_one_row_has_all_its_graphs(
    make: Any, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langchain_specdec.engine import draft_planner, step_cost

    told: list[tuple[int, int]] = []
    runner = captured_runner(tiny_model(), progress=lambda what, done, total: told.append((done, total)))
    measured: list[frozenset[Any]] = []
    measure = step_cost.measure_step_cost

    def spy(*args: Any) -> StepCost | None:
        measured.append(runner.graphs)
        return measure(*args)

    monkeypatch.setattr(draft_planner, "measure_step_cost", spy)
    engine = make(runner, LookupTreeDrafter(5, is_shared=False), step_cost=None)
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    for prompt in PROMPTS[:3]:
        assert decode(engine, [prompt], [params]) == [references(prompt, params)]
    assert measured == [frozenset({"one row"})]
    # One at a time, and those of one row are told.
    widths = [*(w for w in WIDTHS if w < 11), 11]
    assert told[-1] == (len(widths), len(widths))
    assert told == sorted(told)
    store = captured(runner).store
    assert {b.width for b in store.graphs if b.rows == 1} == set(widths)
    store.fail(RuntimeError("no"))
    assert runner.graphs == frozenset()


@pytest.mark.parametrize("is_sampled", [False, True])
def test_preparing_makes_what_runs_use_and_nothing_later(is_sampled: bool, make: Any, references: References) -> None:
    told: list[tuple[int, int]] = []
    capture = RecordedCapture()
    runner = captured_runner(
        tiny_model(), capture, num_slots=3, max_width=3, progress=lambda what, *counts: told.append(counts)
    )
    lengths = range(min(map(len, PROMPTS)), max(map(len, PROMPTS)) + 26)
    runner.prepare(3, lengths, is_sampled=is_sampled, num_candidates=0)
    store = captured(runner).store
    made = capture.num_recorded
    assert store.rejected == {}
    # 1, 2 and 3 rows of all slots in order or others, of 1, 2 and 3 tokens; no text is as long as the next bucket.
    rows = [(1, False), (3, True), (3, False), (2, False)]
    assert list(store.graphs) == [
        Bucket("verify", count, width, 256, is_sampled, is_whole) for count, is_whole in rows for width in (1, 2, 3)
    ]
    assert told[-1][0] == told[-1][1]
    assert runner.graphs == {"one row"}
    params = SAMPLED if is_sampled else GREEDY
    engine = make(runner, PromptLookupDrafter(5), max_draft_tokens=2)
    replayed, forwards = capture.num_replayed, runner.num_forwards
    assert decode(engine, PROMPTS, [params] * len(PROMPTS)) == [references(p, params) for p in PROMPTS]
    assert capture.num_recorded == made
    assert capture.num_replayed - replayed == runner.num_forwards - forwards, "every step ran captured"


# --- What may go wrong ------------------------------------------------------------------------------------------------


class BrokenCapture(RecordedCapture):
    """Fails in one way or another after the first graph."""

    def __init__(self, how: str) -> None:
        super().__init__((2.0, 1.0) if how == "slow" else (1.0, 2.0))
        self._how = how

    def record(self, load: Any, function: Any) -> Any:
        outputs, replay = super().record(load, function)
        if self.num_recorded > 1 and self._how == "capture":
            raise RuntimeError("no memory left")

        def broken() -> None:
            replay()
            if self._how == "wrong":
                outputs[0].mul_(1.1)
            elif self._how == "nan":
                outputs[0].view(-1)[0] = float("nan")
            elif self._how == "tokens":
                outputs[1].add_(1)
            elif self._how == "replay" and self.num_replayed > 20:
                raise RuntimeError("the graph is gone")

        return outputs, broken


@pytest.mark.parametrize(
    ("how", "params"),
    [
        ("slow", GREEDY),
        ("wrong", SAMPLED),
        ("nan", GREEDY),
        ("tokens", SAMPLED),
        ("capture", GREEDY),
        ("replay", SAMPLED),
    ],
)
def test_graphs_that_fail_cost_nobody_their_text(
    how: str, params: SamplingParams, make: Any, references: References, caplog: pytest.LogCaptureFixture
) -> None:
    draft = captured_runner(perturbed(tiny_model(), 0.05), BrokenCapture(how))
    runner = captured_runner(tiny_model(), BrokenCapture(how))
    engine = make(runner, DraftModelDrafter(draft, 258, 512), max_draft_tokens=3)
    with caplog.at_level(logging.WARNING, logger="langchain_specdec"):
        prompts = PROMPTS[:4]
        for _ in range(2):
            expected = [references(prompt, params) for prompt in prompts]
            assert decode(engine, prompts, [params] * len(prompts)) == expected
    stores = [captured(runner).store, captured(draft).store]
    for store in stores:
        assert store.graphs == {}
        assert bool(store.failure) == (how in ("capture", "replay"))
        reasons = {"slow": {"it takes longer"}, "capture": set(), "replay": set()}
        assert set(store.rejected.values()) == reasons.get(how, {"it computes something else"})
    off = [r for r in caplog.records if "off from now on" in r.getMessage()]
    assert len(off) == (2 if how in ("capture", "replay") else 0), "one warning of each model"


def test_what_waits_is_left_alone(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    # This family looks at the largest position on the host, in the middle of its forward.
    name = "llama-dynamic-rope"
    runner = captured_runner(load(name, "cpu").model, num_slots=2, max_length=64, max_width=MAX_WIDTH)
    engine = make(runner)
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    with caplog.at_level(logging.WARNING, logger="langchain_specdec"):
        for rows in (1, 2):
            expected = [reference_text(name, "cpu", (1, 2, 3), 20)] * rows
            assert decode(engine, [[1, 2, 3]] * rows, [params] * rows) == expected
    reasons = set(runner.store.rejected.values())
    assert {bucket.rows for bucket in runner.store.rejected} == {1, 2}, "the other may have been better"
    assert len(reasons) == 1
    assert re.match(
        r"it waits for the device: aten\._local_scalar_dense\.default at modeling_rope_utils\.py:\d+$", reasons.pop()
    )
    assert (runner.store.failure, runner.store.graphs) == ("", {})
    assert len(caplog.records) == 1, "no warning of each"


class FullCapture(RecordedCapture):
    """Has memory for so many graphs."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def record(self, load: Any, function: Any) -> Any:
        recorded = super().record(load, function)
        if self.num_recorded > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 PiB.")
        return recorded


@pytest.mark.parametrize("room", [0, 2])
def test_memory_that_is_missing_costs_the_graphs_that_need_it(
    room: int, make: Any, references: References, caplog: pytest.LogCaptureFixture
) -> None:
    capture = FullCapture(room)
    runner = captured_runner(tiny_model(), capture)
    engine = make(runner, PromptLookupDrafter(5))
    with caplog.at_level(logging.WARNING, logger="langchain_specdec"):
        for _ in range(2):
            assert decode(engine, PROMPTS, [GREEDY] * len(PROMPTS)) == [references(p, GREEDY) for p in PROMPTS]
    store = runner.store
    assert (store.failure, len(store.graphs), store.max_graphs) == ("", room, max(room, 1))
    assert set(store.rejected.values()) == {"there is no memory for it"}
    assert capture.num_given_back == len(store.rejected) == capture.num_recorded - room
    assert bool(capture.num_replayed) == bool(room), "those that there are are used"
    assert len(caplog.records) == 1


def test_a_progress_callback_that_fails_is_not_called_again(make: Any, references: References) -> None:
    calls: list[object] = []

    def progress(*args: object) -> None:
        calls.append(args)
        raise RuntimeError("no")

    engine = make(
        captured_runner(tiny_model(), progress=progress), LookupTreeDrafter(5, is_shared=False), step_cost=None
    )
    assert decode(engine, PROMPTS[:1], [GREEDY]) == [references(PROMPTS[0], GREEDY)]
    assert len(calls) == 1


def test_a_released_runner_holds_no_graphs() -> None:
    runner = captured_runner(tiny_model())
    runner.begin_turn()
    runner.verify(RowBatch([0], [0], [[1]], None, Noise((0,), (0.0,))))
    assert len(runner.store.graphs) == 1
    runner.release()
    assert runner.store.graphs == {}
    assert runner.model is None


def test_graphs_are_for_cuda() -> None:
    assert why_uncaptured(loaded(tiny_model())) == "it runs on a CPU device, and steps are captured on CUDA only"
    target = loaded(tiny_model())
    assert isinstance(make_runner(target, num_slots=1, max_length=64, max_width=3, compile="auto"), ModelRunner)


def test_a_report_tells_what_was_captured() -> None:
    store = GraphStore(RecordedCapture(), "reduce-overhead")
    for width in (1, 2):
        store.begin_turn()
        put(store, bucket_of(width))
    store.rejected[bucket_of(3)] = "it takes longer"
    described = describe_graphs([store], "")
    assert described is not None
    assert [graph["is_used"] for graph in described["graphs"]] == [True, True, False]
    assert described["graphs"][1]["shape"] == "verify 1 x 2 tokens, 256 positions"
    line = captured_line(described)
    assert line.startswith("captured, 2 of 3 CUDA graphs in use, made in ")
    assert line.endswith(" s (50% to 50% less time a step)")
    store.fail(RuntimeError("no"))
    assert captured_line(describe_graphs([store], "") or {}) == "not captured (RuntimeError: no)"
    waiting = GraphStore(RecordedCapture(), "reduce-overhead")
    waiting.rejected[bucket_of(1)] = "it waits for the device"
    assert captured_line(describe_graphs([waiting], "") or {}) == "not captured (it waits for the device)"


# --- On a GPU ---------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@needs_gpu
@pytest.mark.parametrize("params", KINDS, ids=NAMES)
def test_cuda_graphs_write_the_same_text(params: SamplingParams, make: Any) -> None:
    model = tiny_model(device="cuda")
    draft = make_runner(
        loaded(perturbed(model, 0.05)), num_slots=4, max_length=256, max_width=11, compile="reduce-overhead"
    )
    runner = make_runner(loaded(model), num_slots=4, max_length=256, max_width=11, compile="reduce-overhead")
    engine = make(runner, DraftModelDrafter(draft, 258, 512))
    for _ in range(2):
        expected = [plain_reference(model, prompt, params) for prompt in PROMPTS]
        assert decode(engine, PROMPTS, [params] * len(PROMPTS)) == expected
    for steps in (captured(runner), captured(draft)):
        assert steps.store.failure == ""
        assert steps.store.graphs, "launching a tiny model takes longer than running it"
        assert "it computes something else" not in steps.store.rejected.values()


@needs_gpu
def test_cuda_graphs_are_made_once_for_each_bucket() -> None:
    model = tiny_model(device="cuda")
    runner = make_runner(loaded(model), num_slots=4, max_length=256, max_width=11, compile="reduce-overhead")
    store = captured(runner).store
    for start in range(20):
        runner.begin_turn()
        runner.verify(RowBatch([1], [start], [[1, 2, 3, 4]], None, Noise((0,), (0.0,))))
    assert store.failure == ""
    assert list(store.graphs) == [Bucket("verify", 1, 5, 256, False, False)]
    assert store.num_made == 1
