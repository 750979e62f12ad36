"""Heads stay on the GPU: no mixed devices, no wait, and no copy but that of the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from langchain_specdec.models.heads.make_head_runner import make_assistant_runner
from langchain_specdec.models.heads.mtp_head import MtpHead
from langchain_specdec.models.heads.target_sizes import embedding_of, output_of
from langchain_specdec.runner.head_runner import HeadRunner
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.module_head_runner import ModuleHeadRunner
from langchain_specdec.runner.step_inputs import RowBatch
from tests.support.fake_cuda import FakeCuda, make_model
from tests.support.gemma4_assistants import assistant_config, gemma4_config
from tests.support.hybrid_models import MISSING, hybrid_config
from tests.support.tiny_models import loaded

pytestmark = pytest.mark.transformers


def mtp_pair() -> tuple[ModelRunner, HeadRunner]:
    model = make_model(hybrid_config("qwen3_5_text"), "sdpa")
    before = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)
    try:
        with torch.device("cuda"):
            head = MtpHead(model, embedding_of(loaded(model)), output_of(loaded(model)))
    finally:
        torch.set_default_dtype(before)
    return ModelRunner(model, 3, 58, 6), ModuleHeadRunner(head, 3, 58, 6)


def assistant_pair() -> tuple[ModelRunner, HeadRunner]:
    model, draft = make_model(gemma4_config(), "sdpa"), make_model(assistant_config(centroids=6), "specdec")
    runner = ModelRunner(model, 3, 58, 6)
    return runner, make_assistant_runner(draft, loaded(model), runner, 6)


@pytest.mark.parametrize("kind", ["mtp", "assistant"])
def test_heads_that_come_with_a_model(kind: str, cuda: FakeCuda) -> None:
    if ("qwen3_5_text" in MISSING) if kind == "mtp" else ("gemma4_assistant" not in CONFIG_MAPPING):
        pytest.skip("this version of transformers lacks the family")
    runner, head = mtp_pair() if kind == "mtp" else assistant_pair()
    runner.tap(head.tap_points)
    states: list[Any] = []
    for slot in (0, 2):
        runner.prefill(RowBatch([slot], [0], [[1, 2, 3]]))
        states.append(head.condense(runner.tapped()[0]))
    tokens = [[2, 3, 4]] * 2
    with cuda.watch() as record:
        head.extend(RowBatch([0, 2], [0, 0], tokens), states)
        logits, following = head.run(RowBatch([0, 2], [3, 3], tokens), states)
        head.run(RowBatch([0], [3], [[5]]), [following[0, -1:]])
    assert logits.shape == (2, 3, runner.vocab_size)
    assert logits.device == torch.device("cuda", 0)
    assert not record.waits, record.waits
    assert len(record.copies) <= 3, record.copies
    assert not record.doubles, record.doubles
