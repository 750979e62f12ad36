"""Packed linear layers compute what plain ones compute."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_model
from torch import nn

from langchain_specdec.engine.packing import PackedLinear, can_pack, pack_linears

pytestmark = pytest.mark.skipif(not can_pack(nn.Linear(1, 1)), reason="this build of torch has no oneDNN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33, 300])
def test_packed_linear_computes_what_the_plain_one_computes(rows: int, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(48, 72, bias=bias).to(dtype)
    inputs = torch.randn(1, rows, 48, dtype=dtype)
    with torch.inference_mode():
        expected, packed = linear(inputs), PackedLinear(linear)(inputs)
    assert packed.shape == expected.shape
    assert packed.dtype == dtype
    torch.testing.assert_close(packed, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_packed_model_gives_the_same_logits_and_keeps_its_embedding() -> None:
    model = tiny_model()
    packed = copy.deepcopy(model)
    num_linears = sum(type(module) is nn.Linear for module in model.modules())
    assert pack_linears(packed) == num_linears
    assert pack_linears(packed) == 0, "packing again must change nothing"
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(packed(tokens).logits, model(tokens).logits, rtol=1e-3, atol=1e-3)
    assert packed.get_input_embeddings().weight.shape == model.get_input_embeddings().weight.shape


def test_special_layers_stay_as_they_are() -> None:
    class Quantised(nn.Linear):
        pass

    model = nn.Sequential(Quantised(4, 4), nn.Linear(4, 4))
    assert pack_linears(model) == 1
    assert type(model[0]) is Quantised


def test_what_cannot_be_packed_is_told() -> None:
    assert can_pack(nn.Linear(4, 4))
    assert not can_pack(nn.Linear(4, 4).half())
    assert not can_pack(nn.Linear(4, 4, device="meta"))
