"""Draft trees: one forward gives each node what its own chain would give, and the engine takes any path of one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from langchain_specdec.engine.engine import Engine
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.sampling.params import SamplingParams
from tests.support.tiny_models import (
    References,
    TreeOracleDrafter,
    as_loaded,
    loaded,
    random_prompt,
    read,
    tiny_model,
    token_ids,
)

pytestmark = pytest.mark.transformers

CPU = torch.device("cpu")


def chain_to(node: int, parents: Sequence[int]) -> list[int]:
    """The nodes that lead from node 0 to `node`, both included."""
    path = [node]
    while path[0] > 0:
        path.insert(0, parents[path[0]])
    return path


@st.composite
def parent_lists(draw: st.DrawFn, most: int = 9) -> list[int]:
    return [-1, *(draw(st.integers(0, node)) for node in range(draw(st.integers(0, most - 1))))]


def layout_of(parents: Sequence[Sequence[int]]) -> RowInputs:
    """How rows of nodes hang together."""
    rows = len(parents)
    return RowInputs.from_batch(RowBatch(range(rows), [0] * rows, [[0] * len(row) for row in parents], parents), CPU)


# --- Layout -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(rows=st.lists(parent_lists(), min_size=1, max_size=4))
def test_layout_of_any_trees(rows: list[list[int]]) -> None:
    layout = layout_of(rows)
    width = max(len(row) for row in rows)
    assert layout.is_chain == all(row == list(range(-1, len(row) - 1)) for row in rows)
    assert layout.parents.shape == layout.depths.shape == (len(rows), width)
    assert layout.ancestors.shape == (len(rows), width, width)
    for row, parents in enumerate(rows):
        for node in range(len(parents)):
            path = chain_to(node, parents)
            assert layout.ancestors[row, node].nonzero().flatten().tolist() == sorted(path)
            assert layout.depths[row, node] == len(path) - 1
            assert layout.parents[row, node] == max(parents[node], 0)
    # Whatever is padding sees something: a softmax over nothing is NaN.
    assert layout.ancestors.any(-1).all()


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_layout_of_chains_is_that_of_trees_that_are_chains(lengths: list[int]) -> None:
    chains = [list(range(-1, length - 1)) for length in lengths]
    layout = layout_of(chains)
    assert layout.is_chain
    # A branch in another row takes the general way.
    general = layout_of([*chains, [-1, 0, 0]])
    assert not general.is_chain
    for row, length in enumerate(lengths):
        assert torch.equal(layout.ancestors[row, :length, :length], general.ancestors[row, :length, :length])
        assert torch.equal(layout.depths[row, :length], general.depths[row, :length])
        assert torch.equal(layout.parents[row, :length], general.parents[row, :length])


# --- One forward over trees -------------------------------------------------------------------------------------------


def windowed_model(device: str) -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=12,
    )
    return as_loaded(MistralForCausalLM(config), device)


@pytest.fixture(scope="module", params=["full attention", "sliding window"])
def model(request: pytest.FixtureRequest, device: str) -> Any:
    return (tiny_model(0, device) if request.param == "full attention" else windowed_model(device)).double()


def uncached(model: Any, tokens: Sequence[int]) -> Any:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=False).logits[0, -1]


def make(model: Any) -> Runner:
    return make_runner(loaded(model), num_slots=4, max_length=64, max_width=11)


@settings(max_examples=25)
@given(
    rows=st.lists(parent_lists(), min_size=1, max_size=4),
    slots=st.permutations(range(4)),
    seed=st.integers(0, 2**32),
)
def test_each_node_gets_the_logits_of_its_own_chain(
    model: Any, rows: list[list[int]], slots: list[int], seed: int
) -> None:
    # Rows of different length, in any slots, with trees and chains of different size.
    rng, runner = random.Random(seed), make(model)
    used = slots[: len(rows)]
    prompts = [[rng.randrange(256) for _ in range(rng.randrange(1, 30))] for _ in rows]
    for slot, prompt in zip(used, prompts, strict=True):
        if prompt[:-1]:
            runner.prefill(RowBatch([slot], [0], [prompt[:-1]]))
    # The last token of the prompt is node 0.
    nodes = [[p[-1], *(rng.randrange(256) for _ in parents[1:])] for p, parents in zip(prompts, rows, strict=True)]
    logits = runner.verify(RowBatch(used, [len(p) - 1 for p in prompts], nodes, rows)).logits.tensor
    assert torch.isfinite(logits).all()  # Padding too: NaN there would stay in the cache.
    assert isinstance(runner, ModelRunner)
    for layer in runner.cache._slot_layers:
        assert layer.keys is not None is not layer.values
        assert torch.isfinite(layer.keys).all()
        assert torch.isfinite(layer.values).all()
    for row, (prompt, parents) in enumerate(zip(prompts, rows, strict=True)):
        for node in range(len(parents)):
            chain = [nodes[row][n] for n in chain_to(node, parents)]
            assert torch.allclose(logits[row, node], uncached(model, [*prompt[:-1], *chain]), atol=1e-9)


@settings(max_examples=25)
@given(parents=parent_lists(), data=st.data(), seed=st.integers(0, 2**32))
def test_text_goes_on_from_any_path_of_a_tree(model: Any, parents: list[int], data: st.DataObject, seed: int) -> None:
    # What was rejected lies between the nodes of the path; the slot must hold the text without gaps.
    rng, runner = random.Random(seed), make(model)
    slot = rng.randrange(4)
    prompt = [rng.randrange(256) for _ in range(rng.randrange(2, 30))]
    runner.prefill(RowBatch([slot], [0], [prompt[:-1]]))
    nodes = [prompt[-1], *(rng.randrange(256) for _ in parents[1:])]
    start = len(prompt) - 1
    runner.verify(RowBatch([slot], [start], [nodes], [parents]))
    path = chain_to(data.draw(st.integers(0, len(parents) - 1)), parents)
    runner.cache.keep(slot, start, path)
    text = [*prompt[:-1], *(nodes[n] for n in path)]
    following = [rng.randrange(256), rng.randrange(256)]
    logits = runner.verify(RowBatch([slot], [len(text)], [following])).logits[0, -1]
    assert torch.allclose(logits, uncached(model, [*text, *following]), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("agreement", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_tree_drafts_leave_the_text_alone(
    model: Any, engines: Callable[..., Engine], agreement: float, temperature: float
) -> None:
    references, rng = References(model), random.Random(1)
    params = SamplingParams(max_new_tokens=24, temperature=temperature, seed=6, repetition_penalty=1.1, ignore_eos=True)
    prompts = [tuple(random_prompt(rng)) for _ in range(5)]
    known = {prompt: references(prompt, params) for prompt in prompts}
    engine = engines(model, TreeOracleDrafter(known, agreement), num_slots=4, draft_length=10)
    streams = [engine.submit(prompt, params) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        tokens, finish = read(stream)
        assert token_ids(tokens) == references(prompt, params)
        if agreement == 1.0:
            # Five pairs of a wrong and a right token, and one of the target's own: 6 tokens a step, less towards the
            # limit, which counts all that is drafted: 6 + 6 + 6 + 3 + 2 + 1.
            assert finish.speculation.num_steps == 6
            assert finish.speculation.accepted_tokens == 18
