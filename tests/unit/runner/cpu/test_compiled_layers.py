"""Compiled layers compute what the layers compute, and are used only where they are right and pay."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost, measure_step_cost
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.models.module_runner import make_module_runner
from langchain_specdec.runner.cpu import compile_costs
from langchain_specdec.runner.cpu import compiled_layers as compilation
from langchain_specdec.runner.cpu.compile_costs import CompileCosts
from langchain_specdec.runner.cpu.compiled_layers import CompiledLayers, can_compile
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.runner.kv_cache import ForwardShape
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import VOCAB, byte_tokenizer, loaded, plain_reference, read, tiny_model

_OBSTACLE = can_compile(tiny_model())
pytestmark = [
    pytest.mark.compiles,
    pytest.mark.transformers,
    pytest.mark.skipif(_OBSTACLE is not None, reason=str(_OBSTACLE)),
]

PROMPT = [5, 6, 7, 8, 9, 5, 6, 7]


@pytest.fixture(autouse=True)
def _own_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiling costs is kept in a file; here it is this test's own."""
    original = CompileCosts.__init__

    def init(self: CompileCosts, model: nn.Module) -> None:
        original(self, model)
        self._path = tmp_path / "costs.json" if self._path else None

    monkeypatch.setattr(CompileCosts, "__init__", init)


def shape_of(batch: RowBatch) -> ForwardShape:
    return ForwardShape.from_rows(batch.slots, batch.starts, RowInputs.from_batch(batch, torch.device("cpu")))


def layers_of(engine: Engine) -> CompiledLayers:
    assert isinstance(engine.runner, ModelRunner)
    assert engine.runner.compiled is not None
    return engine.runner.compiled


def compiled_engine(mode: str = "reduce-overhead", **overrides: Any) -> Engine:
    target = dataclasses.replace(loaded(tiny_model(**overrides)), is_owned=True)
    # As models run that are of no family with a native decoder.
    runner = make_module_runner(target, 4, lambda _: 256, 11, mode, None)  # type: ignore[arg-type]
    return Engine(runner, PromptLookupDrafter(5), target.tokenizer, (256,), step_cost=StepCost.flat())


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine whose four graphs are made and in use, whatever they save."""
    engine = compiled_engine(num_hidden_layers=4)
    layers = layers_of(engine)
    # Small graphs, which are made faster; that there are several of them is what counts.
    layers._group_size = 2
    for rows, width in ((1, 1), (1, 3), (2, 1), (2, 3)):
        engine.runner.verify(RowBatch(range(rows), [0] * rows, [[1] * width] * rows))
        layers.wait()
        # The tiny model need not gain anything; that the graph was made and found right is what counts.
        assert (rows == 1, width == 1) in layers._tried
        assert not layers.is_stopped
        layers._ready.add((rows == 1, width == 1))
    # Starts the engine's thread. No other text begins so: the tests write into the slots behind the scheduler's back.
    read(engine.submit([255], SamplingParams(max_new_tokens=1)))
    yield engine
    engine.close()


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 2, 5, 11])
@pytest.mark.parametrize("start", [0, 1, 40, 200])
def test_logits_are_those_of_the_layers_themselves(engine: Engine, rows: int, width: int, start: int) -> None:
    runner, layers = engine.runner, layers_of(engine)
    slots, starts = list(range(rows)), [max(start - 3 * row, 0) for row in range(rows)]
    text = [[(11 * row + 3 * i) % VOCAB for i in range(start + width)] for row in range(rows)]
    for slot, begin in zip(slots, starts, strict=True):
        if begin:
            runner.prefill(RowBatch([slot], [0], [text[slot][:begin]]))
    tokens = [row[begin : begin + width] for row, begin in zip(text, starts, strict=True)]
    batch = RowBatch(slots, starts, tokens)
    assert layers.is_ready(shape_of(batch))
    computed = runner.verify(batch).logits.tensor.clone()
    layers.is_stopped = True
    try:
        expected = runner.verify(batch).logits.tensor
    finally:
        layers.is_stopped = False
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "params", [SamplingParams(max_new_tokens=60), SamplingParams(max_new_tokens=60, temperature=0.8, seed=3)]
)
def test_texts_are_those_of_plain_decoding(engine: Engine, params: SamplingParams) -> None:
    model = tiny_model(num_hidden_layers=4)
    prompts = [PROMPT, PROMPT[2:] * 3, [1, 2, 3], [9] * 20, [4]]
    streams = [engine.submit(prompt, params) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        tokens, _ = read(stream)
        assert [token.id for token in tokens] == plain_reference(model, prompt, params)


def test_one_graph_serves_all_groups_of_equal_layers(engine: Engine) -> None:
    layers = layers_of(engine)
    assert len(layers._functions) == 1


def test_layers_are_looked_through_only_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.runner.verify(RowBatch([0], [0], [[1, 2, 3]]))
    monkeypatch.setattr(compilation, "_signature", pytest.fail)
    for width in (1, 3, 5):
        engine.runner.verify(RowBatch([0], [0], [[1] * width]))


def test_runners_of_one_model_share_the_graphs_whatever_the_length_of_their_slots(engine: Engine) -> None:
    layers = layers_of(engine)
    other = ModelRunner(engine.runner.model, 2, 200, 11, layers)
    made = counters["stats"]["unique_graphs"]
    other.prepare(2, range(1, 64), is_sampled=False, num_candidates=0)
    for rows, width in ((1, 1), (1, 11), (2, 1), (2, 3)):
        tokens = [[(7 * row + i) % VOCAB for i in range(width)] for row in range(rows)]
        batch = RowBatch(range(rows), [0] * rows, tokens)
        assert layers.is_ready(shape_of(batch))
        computed = other.verify(batch).logits.tensor
        expected = engine.runner.model(torch.tensor(tokens), use_cache=False).logits
        torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-4)
    assert made > 0
    assert counters["stats"]["unique_graphs"] == made
    assert layers.failure == ""


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, [(True, True), (True, False)]), (2, [*product((True, False), repeat=2)])]
)
def test_preparing_makes_what_so_many_rows_use_and_each_only_once(
    monkeypatch: pytest.MonkeyPatch, rows: int, expected: list[object]
) -> None:
    model = tiny_model()
    layers = CompiledLayers(model, "auto")
    runner = ModelRunner(model, rows, 64, 3, layers)
    made: list[object] = []
    monkeypatch.setattr(layers, "_make", lambda key, trial: made.append(key))
    runner.prepare(rows, range(1, 64), is_sampled=False, num_candidates=0)
    assert made == expected
    runner.prepare(rows, range(1, 64), is_sampled=False, num_candidates=0)
    ModelRunner(model, rows, 64, 3, layers).prepare(rows, range(1, 64), is_sampled=False, num_candidates=0)
    assert made == expected


def test_costs_are_measured_anew_when_graphs_take_over_or_fail(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = layers_of(engine)
    runner = ModelRunner(engine.runner.model, 1, 256, 11, layers)
    measured: list[object] = []

    def measure(*args: Any) -> StepCost | None:
        measured.append(runner.graphs)
        return measure_step_cost(*args)

    monkeypatch.setattr("langchain_specdec.engine.draft_planner.measure_step_cost", measure)
    measuring = Engine(runner, PromptLookupDrafter(5), byte_tokenizer(), (256,))
    params = SamplingParams(max_new_tokens=8)
    expected = plain_reference(tiny_model(num_hidden_layers=4), PROMPT, params)
    ready = set(layers._ready)

    def decode() -> list[object]:
        for _ in range(2):
            tokens, _ = read(measuring.submit(PROMPT, params))
            assert [token.id for token in tokens] == expected
        return list(measured)

    try:
        layers._ready = set()
        assert decode() == [frozenset()]
        layers._ready = ready
        assert decode() == [frozenset(), frozenset(ready)]
        layers.is_stopped = True
        assert decode() == [frozenset(), frozenset(ready), frozenset()]
    finally:
        layers._ready, layers.is_stopped = ready, False
        measuring.close()
    read(engine.submit(PROMPT, params))
    assert len(measured) == 3, "given costs are not measured"


def test_layers_that_are_built_differently_do_not_share_a_graph() -> None:
    model = tiny_model(num_hidden_layers=6)
    layers = CompiledLayers(model, "auto")
    model.model.layers[4].self_attn.scaling = 0.5
    functions = {id(layers._function(tuple(model.model.layers[i : i + 3]))) for i in (0, 3)}
    assert len(functions) == 2


def test_auto_compiles_once_it_would_have_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = CompiledLayers(tiny_model(), "auto")
    made: list[object] = []
    monkeypatch.setattr(layers, "_make", lambda key, trial: made.append(key))
    shape = shape_of(RowBatch([0], [3], [[1]]))
    needed = compile_costs.DEFAULT_SECONDS / compile_costs.DEFAULT_SAVING

    def trial(is_compiled: bool, rows: int, width: int) -> tuple[Tensor, float]:
        raise AssertionError("not reached")

    layers.observe(shape, 0.9 * needed, trial)
    assert made == []
    layers.observe(shape, 0.2 * needed, trial)
    layers.wait()
    layers.observe(shape, needed, trial)
    layers.wait()
    assert made == [(True, True)], "once for each kind of shape"


def test_costs_of_one_run_are_known_to_the_next() -> None:
    model = tiny_model()
    CompileCosts(model).put((True, False), 2.5, 0.3)
    assert CompileCosts(model).get((True, False)) == (2.5, 0.3)
    assert CompileCosts(model).get((True, True)) == (
        compile_costs.DEFAULT_SECONDS,
        compile_costs.DEFAULT_SAVING,
    )


def test_without_a_folder_costs_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("torch._inductor.runtime.cache_dir_utils.cache_dir", missing)
    costs = CompileCosts(tiny_model())
    costs.put((True, False), 2.5, 0.3)
    assert costs.get((True, False)) == (compile_costs.DEFAULT_SECONDS, compile_costs.DEFAULT_SAVING)


def test_a_graph_that_computes_something_else_is_not_used() -> None:
    layers = CompiledLayers(tiny_model(), "reduce-overhead")
    layers._make((True, True), lambda is_compiled, rows, width: (torch.full((1, 1, 4), 1.0 + is_compiled), 1.0))
    assert layers.ready == frozenset()
    assert layers.failure == ""


def test_a_failure_while_compiling_leaves_the_engine_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compiled_engine()
    layers = layers_of(engine)

    def broken(*args: object) -> Tensor:
        raise RuntimeError("no")

    monkeypatch.setattr(layers, "_run", broken)
    params = SamplingParams(max_new_tokens=20)
    try:
        for _ in range(2):
            tokens, _ = read(engine.submit(PROMPT, params))
            assert [token.id for token in tokens] == plain_reference(tiny_model(), PROMPT, params)
            layers.wait()
            # A graph that was fine and fails later costs nobody their text either.
            layers.is_stopped, layers._ready = False, {(True, True), (True, False)}
    finally:
        engine.close()


def test_whoever_asks_for_what_cannot_be_is_told() -> None:
    model = tiny_model()
    with pytest.raises(InvalidParameterError, match="loaded elsewhere"):
        make_runner(loaded(model), num_slots=1, max_length=64, max_width=3, compile="reduce-overhead")
    with pytest.raises(InvalidParameterError, match="compile must be one of"):
        LocalBackend(model, loaded(model).tokenizer, compile="yes")  # type: ignore[arg-type]
    runner = make_runner(loaded(model), num_slots=1, max_length=64, max_width=3, compile="auto")
    assert isinstance(runner, ModelRunner)
    assert runner.compiled is None


@pytest.mark.skipif(native_library() is None, reason="there is no native decoder for this machine")
def test_a_model_that_has_nothing_to_compile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    told = (
        f"{tmp_path} cannot be compiled: the native decoder runs it, which has nothing to compile. "
        "Leave compile at 'auto' or set it to 'off'."
    )
    for mode in ("reduce-overhead", "max-autotune"):
        with pytest.raises(InvalidParameterError, match=re.escape(told)):
            LocalBackend(tmp_path, compile=mode, max_length=64)
    silent: list[Any] = [{"compile": "auto"}, {"compile": "off"}, {}]
    for options in silent:
        backend = LocalBackend(tmp_path, max_length=64, draft_model=tmp_path, **options)
        assert isinstance(backend.engine.runner, NativeRunner)
        backend.close()
    assert not caplog.records


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "C++ compiler" in str(can_compile(tiny_model()))


def test_the_engine_does_not_wait_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compiled_engine()
    layers = layers_of(engine)
    is_done = threading.Event()
    monkeypatch.setattr(layers, "_make", lambda key, trial: is_done.wait(30.0))
    try:
        tokens, _ = read(engine.submit(PROMPT, SamplingParams(max_new_tokens=5)))
        assert len(tokens) == 5
        assert layers._thread is not None
        assert layers._thread.is_alive()
    finally:
        is_done.set()
        layers.wait()
        engine.close()
