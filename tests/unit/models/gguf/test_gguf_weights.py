"""Weights out of GGUF files: the model is the one that was written."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from langchain_specdec.models.gguf import read_gguf
from tests.support.gguf_files import FAMILIES, HEAD_DIM, POSITIONS, VOCAB, tiny_model, write_gguf
from tests.support.reference_decoder import numbers, reference_logits

pytestmark = pytest.mark.transformers
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, VOCAB, 20)]


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([TOKENS])).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_computes_what_transformers_does(family, tmp_path):
    model = tiny_model(family)
    read = read_gguf(write_gguf(tmp_path / "x.gguf", model))
    assert read.config.model_type == family
    torch.testing.assert_close(reference_logits(read.weights, TOKENS), logits_of(model), rtol=2e-4, atol=2e-4)
