"""Layers that compute with other matrices: each weight is read once, and leaves memory before the next."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from langchain_specdec.models.matrix_replacement import replace_matrices
from langchain_specdec.runner.cpu.decoder_weights import Format, Matrix
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, narrowed
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_weight_leaves_memory_before_the_next_is_read(is_tied: bool) -> None:
    model = tiny_model(dtype=torch.bfloat16, tie_word_embeddings=is_tied).float()
    held = [weakref.ref(parameter) for parameter in model.parameters() if parameter.ndim == 2]
    left: list[int] = []

    def make(weight: Tensor, is_table: bool) -> Matrix | None:
        left.append(sum(ref() is not None for ref in held))
        return narrowed(weight)

    forgotten: list[Tensor] = []
    replace_matrices(model, make, lambda weight: forgotten.append(weight.new_empty(0)))
    assert left == list(range(len(held), 0, -1)), "each is asked about once, with those before it gone"
    assert not any(ref() is not None for ref in held)
    assert len(forgotten) == len(held) + is_tied
    assert isinstance(model.model.embed_tokens, MatrixEmbedding)
    assert isinstance(model.lm_head, MatrixLinear)
    assert (model.lm_head.rows.data_ptr() == model.model.embed_tokens.rows.data_ptr()) == is_tied


def test_tables_are_told_and_what_is_given_as_none_stays() -> None:
    sizes: Any = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    asked: list[tuple[tuple[int, ...], bool]] = []

    def make(weight: Tensor, is_table: bool) -> Matrix | None:
        asked.append((tuple(weight.shape), is_table))
        return None if is_table else narrowed(weight.contiguous())

    replace_matrices(model, make, lambda weight: None)
    # GPT-2 keeps [inputs, outputs], and has a table of positions, which is not one of tokens.
    assert sorted(asked) == sorted([((64, 32), True), ((96, 32), False), ((32, 32), False), ((128, 32), False),
                                    ((32, 128), False)])  # fmt: skip
    assert type(model.transformer.wte) is nn.Embedding
    assert model.lm_head.weight is model.transformer.wte.weight
    layer = model.transformer.h[0].mlp.c_fc
    assert isinstance(layer, MatrixLinear)
    assert layer.format is Format.F32
