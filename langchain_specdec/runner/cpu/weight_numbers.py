"""What is looked at of a weight: whether fewer bytes hold its numbers, and those by which models are told apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Rows that are looked at together.
_ROWS_AT_ONCE = 4096
_NUM_SAMPLED = 16


def is_exact(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a type holds every number of a float32 weight."""
    return all(torch.equal(part.to(dtype).float(), part) for part in weight.split(_ROWS_AT_ONCE))


def first_numbers(weight: Tensor) -> list[float]:
    """The first numbers of a weight, for telling it from others; of one that is made of several, those of each."""
    if hasattr(weight, "__tensor_flatten__"):  # As quantised ones are, which cannot be flattened themselves
        return [number for name in weight.__tensor_flatten__()[0] for number in first_numbers(getattr(weight, name))]
    numbers: list[float] = weight.detach().flatten()[:_NUM_SAMPLED].float().tolist()
    return numbers


def without_numbers(embedding: nn.Embedding, dtype: torch.dtype) -> Tensor:
    """A weight of an embedding's shape that takes no memory, for one whose numbers stand elsewhere: all are NaN."""
    nothing = torch.full((1, 1), torch.nan, dtype=dtype)
    return nothing.expand(embedding.num_embeddings, embedding.embedding_dim)
