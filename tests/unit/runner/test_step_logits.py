"""Logits can be read until the next forward of their runner, and not later."""

from __future__ import annotations

import pytest
import torch

from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.noise import Noise
from tests.support.tiny_models import loaded, tiny_model


def test_logits_are_read_before_the_next_forward_only() -> None:
    runner, other = (make_runner(loaded(tiny_model()), num_slots=2, max_length=64, max_width=3) for _ in range(2))
    batch = RowBatch([0, 1], [0, 0], [[1, 2], [3]], noise=Noise((0, 0), (0.0, 0.0)))
    logits = runner.verify(batch).logits
    other.verify(batch)
    assert logits.shape == logits.tensor.shape == (2, 2, 258)
    assert logits.device == logits.tensor.device
    assert torch.equal(logits[1, 0], logits.tensor[1, 0])
    runner.verify(batch)
    with pytest.raises(RuntimeError, match="of an earlier forward"):
        _ = logits.tensor
    with pytest.raises(RuntimeError, match="of an earlier forward"):
        _ = logits[0]
    assert logits.shape == (2, 2, 258)
