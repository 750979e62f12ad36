"""Packed linear layers compute what plain ones compute."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import Self

from langchain_specdec.runner.cpu import packed_layers as packing
from langchain_specdec.runner.cpu.kernel_linear import can_use_panels
from langchain_specdec.runner.cpu.onednn_linear import can_use_onednn
from langchain_specdec.runner.cpu.packed_layers import PackedLinear, can_pack, pack_linears
from langchain_specdec.runner.cpu.weight_numbers import first_numbers
from tests.support.tiny_models import tiny_model

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif(not can_pack(nn.Linear(1, 1)), reason="nothing packs linear layers here"),
]


@pytest.fixture(params=["kernel", "oneDNN"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pack with our own kernel, and with oneDNN as where there is none."""
    if request.param == "oneDNN":
        monkeypatch.setattr(packing, "can_use_panels", lambda dtype: False)
        if not can_use_onednn(torch.float32):
            pytest.skip("this build of torch has no oneDNN")
    elif not can_use_panels(torch.float32):
        pytest.skip("there is no kernel for this processor, or no compiler for it")
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 16, 33, 300])
def test_packed_linear_computes_what_the_plain_one_computes(
    product: str, rows: int, bias: bool, dtype: torch.dtype
) -> None:
    if not can_pack(nn.Linear(1, 1).to(dtype)):
        pytest.skip(f"this processor does not pack {dtype}")
    torch.manual_seed(rows)
    linear = nn.Linear(48, 72, bias=bias).to(dtype)
    inputs = torch.randn(1, rows, 48, dtype=dtype)
    with torch.inference_mode():
        expected, packed = linear(inputs), PackedLinear(linear)(inputs)
    assert packed.shape == expected.shape
    assert packed.dtype == dtype
    torch.testing.assert_close(packed, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_packed_model_gives_the_same_logits_and_keeps_its_embedding(product: str) -> None:
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

    model = nn.Sequential(Quantised(16, 16), nn.Linear(16, 16), nn.Linear(4, 4))
    assert pack_linears(model) == 1
    assert type(model[0]) is Quantised
    assert type(model[2]) is nn.Linear, "it is too small to gain, and its model may write its weight"


class Wrapped(Tensor):
    """A weight of a class of its own, as those that torchao quantises: plain layers hold it, few operators take it."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype)
        made.numbers = numbers
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers)
        raise NotImplementedError(func)


def test_weights_of_other_classes_stay_in_their_layers() -> None:
    quantised = nn.Linear(16, 16)
    weight = quantised.weight.detach()
    quantised.weight = nn.Parameter(Wrapped(weight), requires_grad=False)
    model = nn.Sequential(quantised, nn.Linear(16, 16))
    assert pack_linears(model) == 1
    assert model[0] is quantised
    assert first_numbers(quantised.weight) == first_numbers(weight) == weight.flatten()[:16].tolist()


def test_what_cannot_be_packed_is_told() -> None:
    assert can_pack(nn.Linear(4, 4))
    assert not can_pack(nn.Linear(4, 4).half())
    assert not can_pack(nn.Linear(4, 4, device="meta"))


@pytest.mark.parametrize("biases", [(True, True, True), (False, True, False), (False, False, False)])
def test_layers_of_one_input_are_computed_together(product: str, biases: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    sizes = (12, 4, 4)
    block: Any = nn.Module()
    for name, size, bias in zip(("q_proj", "k_proj", "v_proj"), sizes, biases, strict=True):
        setattr(block, name, nn.Linear(64, size, bias=bias))
    inputs, other = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
    with torch.inference_mode():
        expected = [block.q_proj(inputs), block.k_proj(inputs), block.v_proj(inputs)]
        expected_other = block.v_proj(other)
        assert pack_linears(block) == 3
        assert len({id(m) for m in block.modules() if isinstance(m, PackedLinear)}) == 1
        for _ in range(2):
            outputs = [block.q_proj(inputs), block.k_proj(inputs), block.v_proj(inputs)]
            for output, reference in zip(outputs, expected, strict=True):
                torch.testing.assert_close(output, reference)
        # An input of its own, before and after the others: nothing stale may come out.
        torch.testing.assert_close(block.v_proj(other), expected_other)
        block.q_proj(inputs)
        torch.testing.assert_close(block.v_proj(other), expected_other)
        torch.testing.assert_close(block.v_proj(inputs), expected[2])


@pytest.mark.skipif(not can_use_panels(torch.float32), reason="there is no kernel for this machine")
@pytest.mark.parametrize("is_narrow", [False, True])
def test_an_embedding_that_is_the_head_too_is_read_from_the_packed_head(is_narrow: bool) -> None:
    model = tiny_model(tie_word_embeddings=True)
    if is_narrow:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).float()
    embedding: Any = model.get_input_embeddings()
    weight = embedding.weight.detach().clone()
    index = torch.randint(0, len(weight), (3, 5))
    with torch.inference_mode():
        expected = model(index).logits
        pack_linears(model)
        table: Any = model.get_input_embeddings()
        assert table is not embedding
        # What the table's own weight holds is not read any more.
        embedding.weight.data.zero_()
        assert torch.equal(table(index), weight[index])
        assert torch.equal(table(index[0, 0]), weight[index[0, 0]])
        torch.testing.assert_close(model(index).logits, expected, rtol=1e-4, atol=1e-4)


def test_other_embeddings_stay_as_they_are() -> None:
    model = tiny_model()
    embedding: Any = model.get_input_embeddings()
    pack_linears(model)
    assert model.get_input_embeddings() is embedding
