"""Forwards in evaluation mode, of a model that its owner may be training between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run the block with modules in evaluation mode, and put those back that were in training mode.

    Args:
        modules: All modules of a model, in a list that is kept: looking for them takes longer than looking at them.
    """
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
