"""Weights out of GGUF files: the model is the one that was written."""

from typing import Any

import numpy as np
import pytest
import torch

from langchain_specdec.models.gguf import read_gguf
from langchain_specdec.models.gguf.to_transformers import to_transformers
from tests.support.gguf_files import FAMILIES, VOCAB, tiny_model, write_gguf
from tests.support.reference_decoder import reference_logits

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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dequantised_model_is_the_one_that_was_written(family, tmp_path):
    model = tiny_model(family)
    made = to_transformers(read_gguf(write_gguf(tmp_path / "x.gguf", model)))
    assert type(made) is type(model)
    assert made.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        # Gemma's norms are written with one added.
        torch.testing.assert_close(made.state_dict()[name], weight, rtol=0, atol=2e-7 * family.startswith("gemma"))
    torch.testing.assert_close(logits_of(made), logits_of(model), rtol=1e-5, atol=1e-5)
    assert made.generation_config.eos_token_id == [0]
