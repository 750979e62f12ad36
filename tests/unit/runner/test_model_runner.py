"""A runner's forwards need nothing of whoever calls them: no mode, no default type, no order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.kv_cache import ForwardShape
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs
from langchain_specdec.sampling.noise import Noise
from langchain_specdec.sampling.params import SamplingParams
from tests.support.recorded_graphs import RecordedCapture
from tests.support.tiny_models import References, make_draft_drafter, perturbed, read, tiny_model, token_ids

NOISE = Noise([1], [0.7])
FORWARDS: dict[str, Callable[[Any], object]] = {
    "prefill": lambda runner: runner.prefill(RowBatch([0], [0], [[1, 2, 3]])),
    "verify": lambda runner: runner.verify(RowBatch([0], [3], [[4, 5]], [[-1, 0]], NOISE)),
    "chain": lambda runner: runner.chain(RowBatch([0], [3], [[4]], None, NOISE), 2, 250),
    "last logits": lambda runner: getattr(runner, "uncaptured", runner).last_logits(RowBatch([0], [3], [[4]])),
    "keep": lambda runner: runner.cache.keep(0, 3, [0, 2]),
    "static": lambda runner: static(getattr(runner, "uncaptured", runner)),
}


def static(runner: ModelRunner) -> torch.Tensor:
    inputs = RowInputs.from_batch(RowBatch([0], [3], [[4, 5]]), runner.device)
    return runner.forward_static(inputs, ForwardShape(16, inputs.slots[:, None], inputs.positions_in_slot, None))


@pytest.fixture(params=["plain", "captured"])
def runner(request: pytest.FixtureRequest, only_operators: None) -> Any:
    plain = ModelRunner(tiny_model(), 2, 64, 9)
    return plain if request.param == "plain" else CapturedRunner(plain, RecordedCapture(), "reduce-overhead")


@pytest.mark.parametrize("order", list(itertools.permutations(["prefill", "verify", "chain"])), ids="-".join)
def test_forwards_run_in_any_order_and_in_any_mode(runner: Any, order: tuple[str, ...]) -> None:
    # Tensors of inference mode must not be written outside of it.
    for mode in (torch.enable_grad, torch.inference_mode, torch.no_grad, torch.enable_grad):
        for name in (*order, "last logits", "keep", "static"):
            runner.begin_turn()
            with mode():
                FORWARDS[name](runner)


@pytest.fixture
def half_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    yield
    torch.set_default_dtype(before)


PARAMS = [
    SamplingParams(max_new_tokens=20, ignore_eos=True),
    SamplingParams(max_new_tokens=20, temperature=0.8, seed=2**64 - 1, ignore_eos=True),
    SamplingParams(max_new_tokens=20, temperature=0.9, top_p=0.8, top_k=30, min_p=0.01, seed=5, ignore_eos=True),
    SamplingParams(
        max_new_tokens=20, temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.1, logit_bias={3: 1.7}, seed=6
    ),
]


@pytest.mark.parametrize("params", PARAMS, ids=["greedy", "sampled", "cut", "penalised"])
@pytest.mark.parametrize("drafting", ["tree", "draft model"])
def test_texts_do_not_depend_on_the_default_type(
    drafting: str, params: SamplingParams, engines: Any, request: pytest.FixtureRequest
) -> None:
    model = tiny_model()
    prompts = [[5, 6, 7, 8, 9, 5, 6, 7], [1, 2, 3]]
    references = References(model)
    expected = [references(prompt, params) for prompt in prompts]
    draft = perturbed(model, 0.05)
    request.getfixturevalue("half_by_default")
    drafter = make_draft_drafter(draft) if drafting == "draft model" else LookupTreeDrafter(5)
    assert isinstance(drafter, DraftModelDrafter | LookupTreeDrafter)
    engine = engines(model, drafter, max_tree_nodes=8)
    streams = [engine.submit(prompt, params) for prompt in prompts]
    assert [token_ids(read(stream)[0]) for stream in streams] == expected


def test_no_number_that_goes_to_the_device_is_a_float64() -> None:
    # Apple's GPUs have none, and a sampled request would end there.
    batch = RowBatch([0, 1], [3, 4], [[1, 2], [3]], [[-1, 0], [-1]], Noise([2**64 - 1, 0], [0.1, 1e-30]))
    inputs = RowInputs.from_batch(batch, torch.device("cpu"))
    tensors = [value for value in vars(inputs).values() if isinstance(value, torch.Tensor)]
    assert {tensor.dtype for tensor in tensors} == {torch.int64, torch.float32, torch.bool}
    assert inputs.temperature.tolist() == torch.tensor([0.1, 1e-30]).tolist()
    assert inputs.seeds.tolist() == [[-1, -1], [0, 0]]
    assert inputs.ancestors[0].tolist() == [[True, False], [True, True]]


def test_indices_are_copied_once_for_the_layers_of_another_device() -> None:
    inputs = RowInputs.from_batch(RowBatch([0, 2], [1, 2], [[1], [2]]), torch.device("cpu"))
    shape = ForwardShape.from_rows([0, 2], [1, 2], inputs)
    buffer = torch.zeros(3, 2, 8, 4, device="meta")
    for _ in range(3):
        assert shape.store(buffer, torch.zeros(2, 2, 1, 4, device="meta")).shape == (2, 2, 3, 4)
    assert list(shape._elsewhere) == [torch.device("meta")]
    assert shape._on(buffer.device)[0] is shape._on(buffer.device)[0]
    own = torch.zeros(3, 2, 8, 4)
    shape.store(own, torch.ones(2, 2, 1, 4))
    assert own[0, 0, 1, 0] == own[2, 0, 2, 0] == 1
    assert shape._on(own.device)[0] is shape.slots
