"""Sets of tokens as bits, 32 tokens to a word, the first in the lowest bit: what grammars hand to sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TokenMask = NDArray[np.int32]
"""Bits of all tokens, int32 `[ceil(vocab / 32)]`."""

_WORD = 32


def has_token(mask: TokenMask, token: int) -> bool:
    """Whether a token is in the set."""
    return bool(mask[token // _WORD] >> (token % _WORD) & 1)


def only_token(token: int, vocab_size: int) -> TokenMask:
    """The set of one token."""
    return tokens_mask([token], vocab_size)


def tokens_mask(tokens: Sequence[int], vocab_size: int) -> TokenMask:
    """The set of these tokens."""
    bits = np.zeros((vocab_size + _WORD - 1) // _WORD * _WORD, dtype=np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def token_bits(mask: TokenMask) -> NDArray[np.uint8]:
    """0 or 1 for each token, uint8 `[32 * words]`."""
    return np.unpackbits(mask.view(np.uint8), bitorder="little")


def allowed_tensor(
    masks: Sequence[Sequence[TokenMask | None] | None], width: int, vocab_size: int, device: torch.device
) -> Tensor | None:
    """Which tokens may be chosen where; None where no row is constrained.

    Args:
        masks: For each row its nodes' masks; None for rows and nodes that nothing constrains.
        width: Nodes of a row; those beyond its masks are padding.
        vocab_size: Number of logits.
        device: Where the logits are.

    Returns:
        bool `[rows, width, vocab]`.
    """
    if all(mask is None for row_masks in masks for mask in row_masks or ()):
        return None
    allowed = np.ones((len(masks), width, vocab_size), dtype=np.bool_)
    for row, row_masks in enumerate(masks):
        for node, mask in enumerate(row_masks or ()):
            if mask is not None:
                bits = token_bits(mask)[:vocab_size]
                allowed[row, node, : len(bits)] = bits
                allowed[row, node, len(bits) :] = False
    return torch.from_numpy(allowed).to(device)
