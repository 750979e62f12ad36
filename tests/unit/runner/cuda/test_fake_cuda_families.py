"""Every family, with every attention, stays on the GPU: no mixed devices, no wait, no copy that is not a step's own."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from langchain_specdec.models.pretrained import _best_attention
from langchain_specdec.runner.cuda.buckets import Bucket
from langchain_specdec.runner.cuda.recorded_steps import verify_step
from langchain_specdec.runner.cuda.waiting import RefuseWaiting
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch, RowInputs, num_bytes
from langchain_specdec.sampling.noise import Noise
from tests.support.fake_cuda import FakeCuda, Record, make_model
from tests.support.model_families import (
    FAMILIES,
    IS_TRANSFORMERS_5,
    WAITING_FAMILIES,
    WITH_EXPERTS,
    make_config,
    params,
)

# The frequencies that a model has at hand for longer texts, in its first forward.
COPIED_ONCE = {"phi3-long-rope": 1}
# transformers' own attentions are the same code in most families.
WITH_ALL_ATTENTIONS = ["llama", "mistral", "gemma3", "gpt2", "gpt_neox"]
# The check of a number is more than fake tensors can do.
CHECKED = [name for name in FAMILIES if name != "gemma3n-sparse"]
SAMPLED = Noise([1, 2**64 - 1], [0.0, 0.7])


@functools.cache
def model_of(name: str) -> Any:
    return make_model(make_config(name), "eager")


def run(runner: ModelRunner) -> int:
    """All kinds of forward, for one row and for two, for chains and for trees; how many there were."""
    runner.prefill(RowBatch([0, 2], [0, 0], [[1, 2, 3], [4, 5]]))
    runner.prefill(RowBatch([1], [0], [[1, 2, 3]]))
    runner.verify(RowBatch([0, 2], [3, 2], [[1, 2, 3, 4], [5, 6]], [[-1, 0, 0, 1], [-1, 0]], SAMPLED, 8))
    runner.cache.keep(0, 3, [0, 2], torch.zeros(2, dtype=torch.int64, device=runner.device))
    runner.verify(RowBatch([1], [3], [[1, 2]], None, Noise([1], [0.0])))
    runner.chain(RowBatch([0, 2], [3, 2], [[1, 2], [5]], None, SAMPLED), 2, 250)
    runner.last_logits(RowBatch([1], [4], [[1]]))
    return 6


def check(cuda: FakeCuda, name: str, attention: str | None) -> Record:
    model = model_of(name)
    best = _best_attention(type(model), model.config.get_text_config()) or "sdpa"
    model.set_attn_implementation(attention or best)
    runner = ModelRunner(model, 4, 58, 6)
    with cuda.watch() as record:
        num_forwards = run(runner)
    # The chain comes back; and each forward takes its rows along.
    is_waiting = len(record.waits) > 1 or len(record.copies) > num_forwards + COPIED_ONCE.get(name, 0)
    assert is_waiting == (name in WAITING_FAMILIES), "\n".join([*record.waits, *record.copies])
    assert not record.doubles, "\n".join(record.doubles)
    return record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attention"), [*params(CHECKED, [None]), *params(WITH_ALL_ATTENTIONS, ["sdpa", "eager"])]
)
def test_every_family_stays_on_the_device(name: str, attention: str | None, cuda: FakeCuda) -> None:
    record = check(cuda, name, attention)
    assert record.launches["aten.mm"] + record.launches["aten.addmm"] > 0
    if name in WITH_EXPERTS and IS_TRANSFORMERS_5:
        assert record.launches["aten._grouped_mm"] > 0, "one product for all experts, whatever their rows"


# What waits in other families is found above, and on another device by `test_captured_steps_wait_for_nothing`.
@pytest.mark.slow
@pytest.mark.parametrize("name", params(sorted({*WITH_ALL_ATTENTIONS, *WITH_EXPERTS} - WAITING_FAMILIES)))
def test_a_capture_would_not_be_refused(name: str, cuda: FakeCuda) -> None:
    model = model_of(name)
    model.set_attn_implementation(_best_attention(type(model), model.config.get_text_config()) or "sdpa")
    runner = ModelRunner(model, 2, 58, 6)
    bucket = Bucket("verify", 1, 5, 64, is_sampled=True, is_whole=False, num_candidates=8)
    with torch.inference_mode():
        buffer = torch.zeros(num_bytes(1, 5, has_tree=True), dtype=torch.uint8, device=runner.device)
        inputs = RowInputs.from_buffer(buffer, 1, 5, has_tree=True)
        # The slots are allocated by a forward, and frequencies for longer texts are copied.
        verify_step(runner, inputs, bucket)
        with RefuseWaiting(runner.device):
            logits, verdict = verify_step(runner, inputs, bucket)
    assert (tuple(logits.shape), tuple(verdict.shape)) == ((1, 5, runner.vocab_size), (10, 1, 5))
