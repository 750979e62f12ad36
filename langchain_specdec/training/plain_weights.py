"""The numbers of a layer's weights, also where it keeps them in a layout of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, widened

# Columns, or rows of a table, that are read at a time of a layer that shows its weights by its outputs alone.
_AT_ONCE = 256


@torch.no_grad()
def linear_rows(layer: nn.Module, ids: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Rows of a linear layer's weight, float32 `[rows, inputs]`, and its bias there, `[rows]`, both on the CPU.

    Args:
        layer: Maps `[..., inputs]` to `[..., outputs]`.
        ids: Which rows, int64; None: all. Those of a plain layer in float32 are its own memory then.
        dtype: What it is called with where it has to be.
    """
    if type(layer) is nn.Linear and type(layer.weight.data) is Tensor:
        chosen = slice(None) if ids is None else ids.to(layer.weight.device)
        rows = layer.weight.detach()[chosen].float().cpu()
        return rows, None if layer.bias is None else layer.bias.detach()[chosen].float().cpu()
    if isinstance(layer, MatrixLinear):
        chosen = slice(None) if ids is None else ids
        return widened(layer.rows[chosen], layer.format), None if layer.bias is None else layer.bias[chosen].float()
    size = int(layer.in_features)  # type: ignore[arg-type]
    device = next((each.device for each in [*layer.parameters(), *layer.buffers()]), torch.device("cpu"))
    chosen = slice(None) if ids is None else ids.to(device)
    nothing = layer(torch.zeros(1, size, dtype=dtype, device=device))[0, chosen].float()
    columns = [
        layer(part)[:, chosen].float() - nothing for part in torch.eye(size, dtype=dtype, device=device).split(_AT_ONCE)
    ]
    return torch.cat(columns).T.contiguous().cpu(), nothing.cpu()


@torch.no_grad()
def table(embedding: nn.Embedding) -> Tensor:
    """The numbers of an embedding, float32 `[num_embeddings, embedding_dim]`, on the CPU."""
    if isinstance(embedding, MatrixEmbedding):
        return widened(embedding.rows, embedding.format)
    if embedding.weight.stride() != (0, 0):
        return embedding.weight.detach().float().cpu()
    # Its weight stands for a table that the head holds.
    return torch.cat([embedding(part).float() for part in torch.arange(embedding.num_embeddings).split(_AT_ONCE)])
