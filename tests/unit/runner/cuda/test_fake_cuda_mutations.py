"""Faults that are easily made and that no CPU notices: each is planted in the package's own source, and is found."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import pytest

from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.engine.emission import Emitter
from langchain_specdec.engine.verification import Verifier
from langchain_specdec.runner import attention, kv_cache, model_inputs, step_inputs, verify
from langchain_specdec.runner.cuda import recorded_steps
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.sampling import noise
from langchain_specdec.sampling.choice import SamplingTable, TokenHistory
from tests.support.fake_cuda import MIXED_DEVICES, FakeCuda
from tests.unit.runner.cuda import test_fake_cuda_engine, test_launches


def turns(kind: str, drafting: str = "auto", *, is_captured: bool = False) -> Callable[[FakeCuda], object]:
    return lambda cuda: test_fake_cuda_engine.check(cuda, kind, drafting, is_captured=is_captured)


def launches(shape: str) -> Callable[[FakeCuda], object]:
    return lambda cuda: test_launches.check(cuda, shape, "verify", 8, is_sampled=False)


@dataclass(frozen=True)
class Fault:
    """A change to a function that the check has to find.

    Attributes:
        function: What is changed.
        right: A piece of its source.
        wrong: What stands there instead.
        check: What has to fail.
        message: What the failure has to say, as a pattern.
    """

    function: Any
    right: str
    wrong: str
    check: Callable[[FakeCuda], object]
    message: str


FAULTS = {
    # Tensors that are made without saying where.
    "positions": Fault(
        model_inputs.visible_keys, "torch.arange(length, device=positions.device)", "torch.arange(length)",
        turns("greedy"), rf"runner/model_inputs\.py:\d+: {MIXED_DEVICES}",
    ),
    "ancestors": Fault(
        step_inputs._chains, "dtype=torch.bool, device=device", "dtype=torch.bool",
        turns("greedy"), rf"runner/verify\.py:\d+: {MIXED_DEVICES}",
    ),
    "widths": Fault(
        verify.accept, ", device=nodes.device", "",
        turns("greedy"), rf"runner/verify\.py:\d+: {MIXED_DEVICES}",
    ),
    "mask": Fault(
        model_inputs.gpu_mask, "dtype=dtype, device=mask.device", "dtype=dtype",
        turns("greedy"), rf"runner/model_inputs\.py:\d+: {MIXED_DEVICES}",
    ),
    "keys and values": Fault(
        kv_cache._zeros, "dtype=like.dtype, device=like.device", "dtype=like.dtype",
        turns("greedy"), r"runner/kv_cache\.py:\d+: RuntimeError: Mismatching",
    ),
    "counts for penalties": Fault(
        TokenHistory.__init__, "dtype=torch.float32, device=device", "dtype=torch.float32",
        turns("penalised"), rf"sampling/choice\.py:\d+: {MIXED_DEVICES}",
    ),
    "bias": Fault(
        SamplingTable.__init__, "dtype=torch.float32, device=device", "dtype=torch.float32",
        turns("penalised"), r"sampling/choice\.py:\d+: RuntimeError: Mismatching",
    ),
    # Waits that nobody sees.
    "a number of what stands": Fault(
        verify.accept, "return stands &", "int(stands.sum()); return stands &",
        turns("greedy"), r"runner/verify\.py:\d+: aten\._local_scalar_dense",
    ),
    "a list of each token": Fault(
        Emitter._read, "text = ", "verdict.logits.tensor[row, node].argmax().tolist(); text = ",
        turns("greedy"), r"engine/emission\.py:\d+: tolist",
    ),
    "a condition on a mask": Fault(
        attention.slot_attention, "if is_causal is None:", "attention_mask.any() or None\n    if is_causal is None:",
        turns("greedy"), r"runner/attention\.py:\d+: aten\._local_scalar_dense",
    ),
    "each drafted token": Fault(
        ModelRunner.chain, "chains = torch.cat(", "picked.tolist(); chains = torch.cat(",
        turns("greedy", "draft model"), r"runner/model_runner\.py:\d+: tolist",
    ),
    "what stands, by nonzero": Fault(
        Verifier.verify, "verdict[1].argsort(dim=-1, descending=True, stable=True)", "verdict[1].nonzero()",
        turns("greedy"), r"engine/verification\.py:\d+: DynamicOutputShapeException: aten\.nonzero",
    ),
    "a copy that is waited for": Fault(
        Verifier.verify, "picks, stands, *ranked = ", "verdict.cpu(); picks, stands, *ranked = ",
        turns("greedy"), r"engine/verification\.py:\d+: aten\._to_copy",
    ),
    "a wait in a graph": Fault(
        recorded_steps.verify_step, "logits = _forward(runner, inputs, bucket)",
        "logits = _forward(runner, inputs, bucket); float(logits.max())",
        turns("greedy", "none", is_captured=True),
        r"runner/cuda/recorded_steps\.py:\d+: RuntimeError: operation not permitted when stream is capturing",
    ),
    # Copies to the device.
    "a list as index": Fault(
        LookupTreeDrafter.observe, "nodes, recycled = ", "verdict.logits.tensor[[0], [0]]; nodes, recycled = ",
        turns("greedy"), r"drafters/lookup_tree\.py:\d+: aten\._to_copy",
    ),
    "a tensor of a number": Fault(
        ModelRunner.verify, "self.num_forwards += 1", "self.num_forwards += torch.tensor([1], device=self.device).ndim",
        turns("greedy"), r"runner/model_runner\.py:\d+: aten\._to_copy",
    ),
    "a copy of memory that is not pinned": Fault(
        step_inputs._on_host, "tensor.pin_memory() if", "tensor if",
        turns("greedy"), r"runner/step_inputs\.py:\d+: aten\._to_copy",
    ),
    # Types that some devices lack, and launches.
    "float64": Fault(
        noise.gumbel_noise, ".to(torch.float32)", ".to(torch.float64)",
        turns("sampled"), r"sampling/noise\.py:\d+: aten\._to_copy",
    ),
    "a copy of queries": Fault(
        attention._folded_attention, "query.reshape(", "query.clone().reshape(",
        launches("llama-8b"), r"launches of a layer: .*aten\.clone",
    ),
    "a second look at the logits": Fault(
        verify.accept_picks, "stands = accept(", "logits.argmax(-1); stands = accept(",
        launches("qwen1.5-1.8b"), r"launches of all but layers: .*2 aten\.argmax",
    ),
}  # fmt: skip


def plant(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change a function as if its source were changed. Its lines keep their numbers, up to the change at least."""
    function = inspect.unwrap(fault.function)
    source = inspect.getsource(function)
    assert fault.right in source, f"{function.__qualname__} has changed: plant this fault elsewhere"
    tree = ast.parse(textwrap.dedent(source.replace(fault.right, fault.wrong, 1)))
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    module = compile(tree, function.__code__.co_filename, "exec", dont_inherit=True)
    changed = next(code for code in module.co_consts if isinstance(code, CodeType))
    # Of the function itself, so that whoever has imported it runs the fault.
    monkeypatch.setattr(function, "__code__", changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_where_it_is(name: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    plant(fault, monkeypatch)
    with pytest.raises(AssertionError, match=fault.message):
        fault.check(cuda)
