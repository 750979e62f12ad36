"""The kernel for attention of a few queries: right, the same bits whatever is beside a query, and never in the way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from langchain_specdec.runner.attention import additive_mask, slot_attention
from langchain_specdec.runner.cpu import kernel_attention as module
from langchain_specdec.runner.cpu.kernel_attention import can_decode_attention, decode_attention

pytestmark = pytest.mark.transformers


def tensors(
    rows: int = 2,
    kv_heads: int = 2,
    group: int = 3,
    width: int = 4,
    length: int = 300,
    key_dim: int = 64,
    dim: int = 64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values as a model and a cache have them, all but contiguous, and a random mask."""
    torch.manual_seed(rows * width + length)
    query = torch.randn(rows, width, kv_heads * group, key_dim).transpose(1, 2)
    key = torch.randn(rows + 1, kv_heads, length + 5, key_dim)[1:, :, :length]
    value = torch.randn(rows + 1, kv_heads, length + 5, dim)[1:, :, :length]
    is_seen = torch.rand(rows, 1, width, length) < 0.7
    is_seen[..., -1] = True
    return query, key, value, additive_mask(is_seen, torch.float32)


needs_kernel = pytest.mark.skipif(not can_decode_attention(*tensors()), reason="there is no kernel for this machine")


def in_float64(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = key.double().repeat_interleave(group, 1), value.double().repeat_interleave(group, 1)
    scores = query.double() @ key.transpose(2, 3) * scaling + mask.double()
    return (scores.softmax(-1) @ value).transpose(1, 2)


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 8),
    width=st.integers(1, 30),
    length=st.sampled_from([1, 2, 11, 12, 13, 127, 128, 129, 400]),
    key_dim=st.sampled_from([8, 64, 80, 128]),
    dim=st.sampled_from([16, 48, 64]),
)
def test_outputs_are_those_of_float64(
    rows: int, kv_heads: int, group: int, width: int, length: int, key_dim: int, dim: int
) -> None:
    given = tensors(rows, kv_heads, group, width, length, key_dim, dim)
    torch.testing.assert_close(decode_attention(*given, 0.3).double(), in_float64(*given, 0.3), rtol=1e-4, atol=1e-5)


@needs_kernel
def test_a_query_does_not_depend_on_what_is_beside_it_nor_on_threads() -> None:
    query, key, value, mask = tensors(rows=3, width=9, length=500)
    whole = decode_attention(query, key, value, mask, 0.125)
    for row in range(3):
        for i in range(9):
            alone = decode_attention(
                query[row : row + 1, :, i : i + 1],
                key[row : row + 1],
                value[row : row + 1],
                mask[row : row + 1, :, i : i + 1],
                0.125,
            )
            assert torch.equal(alone[0, 0], whole[row, i]), (row, i)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(decode_attention(query, key, value, mask, 0.125), whole)
    finally:
        torch.set_num_threads(threads)


@needs_kernel
def test_keys_that_nobody_sees_change_nothing() -> None:
    query, key, value, mask = tensors(length=700)
    hidden = torch.finfo(torch.float32).min
    mask[0, ..., 300:] = hidden
    mask[1, ..., :260] = hidden
    mask[:, :, 1, 200:500] = hidden
    mask[..., 299:301] = 0
    whole = decode_attention(query, key, value, mask, 0.125)
    torch.testing.assert_close(whole.double(), in_float64(query, key, value, mask, 0.125), rtol=1e-4, atol=1e-5)
    short = decode_attention(query[:1], key[:1, :, :301], value[:1, :, :301], mask[:1, ..., :301], 0.125)
    assert torch.equal(short, whole[:1])
    changed = key.clone()
    changed[0, :, 302:] = 1e30
    assert torch.equal(decode_attention(query, changed, value, mask, 0.125), whole)


@needs_kernel
@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e4])
def test_scores_of_any_size_are_weighed(scale: float) -> None:
    query, key, value, mask = tensors(length=200)
    computed = decode_attention(query * scale, key, value, mask, 0.125)
    # float32 scores of a few hundred thousand are right to some hundredths.
    torch.testing.assert_close(
        computed.double(), in_float64(query * scale, key, value, mask, 0.125), rtol=1e-4, atol=1e-5 * max(1, scale)
    )


@needs_kernel
def test_what_is_not_a_number_stays_so() -> None:
    query, key, value, mask = tensors(rows=1, width=2)
    query[0, 0, 1, 0] = float("nan")
    output = decode_attention(query, key, value, mask, 0.125)
    assert output[0, 1, 0].isnan().all()
    assert not output[0, 0].isnan().any()
    assert not output[0, 1, 1:].isnan().any()


@needs_kernel
def test_one_mask_may_serve_all_rows() -> None:
    query, key, value, mask = tensors()
    torch.testing.assert_close(
        decode_attention(query, key, value, mask[:1], 0.125),
        decode_attention(query, key, value, mask[:1].repeat(2, 1, 1, 1), 0.125),
        rtol=0,
        atol=0,
    )


@needs_kernel
def test_the_engine_attends_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    attend = module._Kernel.attend

    def counting(self: module._Kernel, query: Tensor, *args: object) -> Tensor:
        widths.append(query.shape[2])
        return attend(self, query, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Kernel, "attend", counting)
    for width in (1, 8, 100):
        given = tensors(width=width)
        output, _ = slot_attention(torch.nn.Module(), *given, scaling=0.125)
        torch.testing.assert_close(output.double(), in_float64(*given, 0.125), rtol=1e-4, atol=1e-5)
    assert widths == [1, 8], "wide forwards are PyTorch's"


def test_other_tensors_are_left_to_pytorch() -> None:
    query, key, value, mask = tensors()
    assert not can_decode_attention(query, key, value, mask > -1)
    assert not can_decode_attention(query.double(), key.double(), value.double(), mask.double())
    assert not can_decode_attention(query, key, value[..., :7], mask)
    assert not can_decode_attention(query, key, value, mask.expand(-1, 6, -1, -1))


@needs_kernel
def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._Kernel.attend
    monkeypatch.setattr(module._Kernel, "attend", lambda *args: right(*args) + 0.01)
    module._kernel.cache_clear()
    try:
        given = tensors()
        assert not can_decode_attention(*given)
        output, _ = slot_attention(torch.nn.Module(), *given, scaling=0.125)
        expected = F.scaled_dot_product_attention(*given, scale=0.125, enable_gqa=True).transpose(1, 2)
        torch.testing.assert_close(output, expected)
    finally:
        module._kernel.cache_clear()
