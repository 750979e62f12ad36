"""States tapped from forwards that run anyway are those that transformers hands out, on every kind of runner."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_specdec.models.decoder_families import decoder_weights
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.noise import Noise
from tests.support.recorded_graphs import RecordedCapture
from tests.support.tiny_models import loaded, tiny_model

pytestmark = pytest.mark.transformers
PROMPT = [3, 60, 11, 7, 7, 29, 5]
TREE, PARENTS = [9, 4, 12, 33, 8], [-1, 0, 0, 2, 3]
WIDE = RowBatch([1, 0], [len(PROMPT), 0], [TREE, [5, 6]], [PARENTS, [-1, 0]], Noise([0, 0], [0.0, 0.0]))


def wanted(model: Any, tokens: list[int], points: list[int]) -> Tensor:
    """States after the last token, `[points, hidden]`."""
    with torch.inference_mode():
        states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return torch.stack([states[point][0, -1] for point in points])


def path_to(node: int) -> list[int]:
    return [] if node < 0 else [*path_to(PARENTS[node]), TREE[node]]


def check(runner: Runner, model: Any, points: list[int]) -> None:
    """A prompt in two pieces, then a step whose rows differ: a tree, and a chain of a new text."""
    runner.prefill(RowBatch([1], [0], [PROMPT[:4]]))
    runner.prefill(RowBatch([1], [4], [PROMPT[4:]]))
    size = model.config.get_text_config().hidden_size
    assert runner.tapped().shape == (1, 3, len(points), size)
    for place in range(3):
        torch.testing.assert_close(
            runner.tapped()[0, place], wanted(model, PROMPT[: 5 + place], points), rtol=0, atol=2e-4
        )
    for _ in range(3):  # a graph is recorded and replayed meanwhile
        runner.begin_turn()
        runner.verify(WIDE)
        states = runner.tapped()
        assert states.shape == (2, 5, len(points), size)
        for node in range(len(TREE)):
            expected = wanted(model, [*PROMPT, *path_to(node)], points)
            torch.testing.assert_close(states[0, node], expected, rtol=0, atol=2e-4)
        torch.testing.assert_close(states[1, 1], wanted(model, [5, 6], points), rtol=0, atol=2e-4)
        # They stay as they are when another forward of the same shape has run.
        late, before = runner.tapped, states.clone()
        runner.verify(replace(WIDE, tokens=[[token + 1 for token in row] for row in WIDE.tokens]))
        for row, nodes in enumerate(WIDE.tokens):
            assert torch.equal(late()[row, : len(nodes)], before[row, : len(nodes)])


def plain_runner(model: Any) -> Any:
    return make_runner(loaded(model), num_slots=2, max_length=64, max_width=8)


def native_runner(model: Any) -> NativeRunner:
    weights, library = decoder_weights(copy.deepcopy(model)), native_library()
    if weights is None or library is None:
        pytest.skip("there is no native decoder on this machine")
    return NativeRunner(model, weights, library, 2, 100, 8, 2)


@pytest.mark.parametrize("kind", ["modules", "captured", "native"])
def test_states_are_those_of_transformers(kind: str) -> None:
    model = tiny_model()
    count = model.config.num_hidden_layers
    points = [0, count - 1, count]
    runner: Any = native_runner(model) if kind == "native" else plain_runner(model)
    if kind == "captured":
        runner = CapturedRunner(runner, RecordedCapture(), "reduce-overhead")
    runner.tap(points)
    check(runner, copy.deepcopy(model), points)
    if kind == "captured":
        assert runner.store.graphs
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    runner.release()


def test_long_rows_go_through_the_native_decoder_in_pieces() -> None:
    model = tiny_model()
    runner, points = native_runner(model), [1, model.config.num_hidden_layers]
    runner.tap(points)
    text = [3 + i % 50 for i in range(60)]
    runner.prefill(RowBatch([0, 1], [0, 0], [text, text[:50]]))
    states = runner.tapped()
    for row, place in (0, 0), (0, 59), (1, 49):
        torch.testing.assert_close(states[row, place], wanted(model, text[: place + 1], points), rtol=0, atol=2e-4)


def test_forwards_of_other_threads_are_passed_over() -> None:
    model = tiny_model()
    runner: Any = plain_runner(model)
    runner.tap([0, 1, 2])
    elsewhere = threading.Thread(target=lambda: model(torch.tensor([[1, 2]])))

    def meanwhile(*args: object) -> None:
        if threading.current_thread() is not elsewhere:
            elsewhere.start()
            elsewhere.join()

    hook = model.model.layers[1].register_forward_pre_hook(meanwhile)
    runner.prefill(RowBatch([0], [0], [PROMPT]))
    hook.remove()
    assert runner.tapped().shape == (1, len(PROMPT), 3, model.config.hidden_size)


@pytest.mark.parametrize("kind", ["modules", "native"])
@pytest.mark.parametrize("points", [[-1], [99], [0] * 9])
def test_points_that_there_are_not(kind: str, points: list[int]) -> None:
    runner = native_runner(tiny_model()) if kind == "native" else plain_runner(tiny_model())
    if kind == "modules" and points == [0] * 9:
        runner.tap(points)
        return
    with pytest.raises(ValueError, match="tapped"):
        runner.tap(points)
