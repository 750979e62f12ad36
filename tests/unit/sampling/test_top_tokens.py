"""The best of a vocabulary's scores: the same as PyTorch finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_specdec.sampling.top_tokens import best_token, top_tokens


@settings(max_examples=80, deadline=None)
@given(
    shape=st.sampled_from([(), (3,), (2, 5), (0,), (2, 0)]),
    vocab=st.sampled_from([1, 63, 64, 128, 640, 650]),
    num_values=st.sampled_from([2, 5, 10_000]),
    seed=st.integers(0, 1000),
)
def test_the_best_are_those_of_pytorch(shape: tuple[int, ...], vocab: int, num_values: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(num_values, (*shape, vocab), generator=generator).float()
    assert torch.equal(best_token(scores), scores.argmax(-1)), "of equal ones the first"
    for count in (1, 2, 8, 700):
        found = top_tokens(scores, count)
        expected = scores.topk(min(count, vocab)).values
        assert torch.equal(scores.gather(-1, found), expected)
        assert all(len(set(row)) == len(row) for row in found.reshape(-1, found.shape[-1]).tolist())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_unusual_scores_are_treated_as_by_pytorch(value: float) -> None:
    scores = torch.randn(4, 256)
    scores[1, 77] = scores[1, 200] = scores[2, 0] = value
    scores[3] = value
    assert torch.equal(best_token(scores), scores.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_may_be_part_of_a_larger_tensor(dtype: torch.dtype) -> None:
    scores = torch.randn(3, 2, 300).to(dtype)[..., :256]
    assert torch.equal(best_token(scores), scores.argmax(-1))
    assert torch.equal(scores.gather(-1, top_tokens(scores, 5)), scores.topk(5).values)
