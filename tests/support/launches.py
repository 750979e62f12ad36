"""Launches of a model's steps, counted on fake CUDA: those of a decoder layer, and those outside of layers."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any, Literal

import torch
from transformers import AutoConfig

from langchain_specdec.bench.random_weights import SHAPES
from langchain_specdec.runner.attention import ATTENTION_NAME
from langchain_specdec.runner.cuda.buckets import Bucket
from langchain_specdec.runner.cuda.recorded_steps import draft_step, verify_step
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowInputs, num_bytes
from tests.support.fake_cuda import FakeCuda, make_model

_LENGTH, _NUM_SLOTS, _MAX_WIDTH = 1024, 8, 33
# What a draft step reads: `CapturedRunner` feeds its first forward at most so many tokens.
_DRAFT_WIDTH = 2


def count_launches(
    cuda: FakeCuda, shape: str, kind: Literal["verify", "draft"], width: int, *, is_sampled: bool, num_candidates: int
) -> tuple[Counter[str], Counter[str]]:
    """Launches of one step of one row, by operator: of each layer, and of all else together."""
    one, two = (
        _launches(cuda, _model(shape, layers), Bucket(kind, 1, width, _LENGTH, is_sampled, False, num_candidates))
        for layers in (1, 2)
    )
    layer = two - one
    return layer, one - layer


def _launches(cuda: FakeCuda, model: Any, bucket: Bucket) -> Counter[str]:
    runner = ModelRunner(model, _NUM_SLOTS, _LENGTH, _MAX_WIDTH)
    width, has_tree = (_DRAFT_WIDTH, False) if bucket.kind == "draft" else (bucket.width, True)
    buffer = torch.zeros(num_bytes(1, width, has_tree=has_tree), dtype=torch.uint8, device="cuda")
    inputs = RowInputs.from_buffer(buffer, 1, width, has_tree=has_tree)
    for _ in ("allocates the slots", "is counted"):
        with cuda.watch() as record, torch.inference_mode():
            if bucket.kind == "verify":
                verify_step(runner, inputs, bucket)
            else:
                draft_step(runner, inputs, bucket, runner.vocab_size)
    assert not record.waits, record.waits
    assert not record.copies, record.copies
    return record.launches


@functools.cache
def _model(shape: str, layers: int) -> Any:
    config = AutoConfig.for_model(**{**SHAPES[shape], "num_hidden_layers": layers})
    return make_model(config, ATTENTION_NAME)
