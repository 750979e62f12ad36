"""A draft as it is trained on the target's answers: what every kind of draft has in common there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Student(nn.Module, ABC):
    """A draft with its loss. What it registers is trained, and saved with each checkpoint."""

    @property
    @abstractmethod
    def draft(self) -> nn.Module:
        """What is trained, and kept once it is."""

    def matrices(self) -> Sequence[nn.Parameter]:
        """Parameters that are best trained by Muon; see `optimizer`."""
        return ()


def shifted(values: Tensor, places: int) -> Tensor:
    """`[rows, width]`, each value `places` further left, and 0 at the end."""
    return F.pad(values[:, places:], (0, min(places, values.shape[1])))
