"""A draft as it is trained on the target's answers: what every kind of draft has in common there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class StepCounts(NamedTuple):
    """What drafts did at a place, over all positions that they begin at.

    Attributes:
        loss: Mean divergence of the draft's distribution from the target's, in nats.
        agreed: Drafts whose best token is the text's here, and so it was at all places before.
        counted: Drafts where it was so at all places before, which makes `agreed / counted` the place's acceptance.
            Tokens that the draft cannot propose count.
    """

    loss: Tensor
    agreed: Tensor
    counted: Tensor


class Student(nn.Module, ABC):
    """A draft with its loss. What it registers is trained, and saved with each checkpoint."""

    @property
    @abstractmethod
    def draft(self) -> nn.Module:
        """What is trained, and kept once it is."""

    @abstractmethod
    def steps(self, states: Tensor, tokens: Tensor, is_answered: Tensor) -> list[StepCounts]:
        """What drafts do with a batch, place by place; see `TextBatch`."""


def shifted(values: Tensor, places: int) -> Tensor:
    """`[rows, width]`, each value `places` further left, and 0 at the end."""
    return F.pad(values[:, places:], (0, min(places, values.shape[1])))
