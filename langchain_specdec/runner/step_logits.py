"""The logits of one forward, which can be read until the next one."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CPU = torch.device("cpu")


class _Counter(Protocol):
    """What counts its forwards."""

    @property
    def num_forwards(self) -> int: ...


class StepLogits:
    """The logits of one forward, `[rows, width, vocab]`. They are good until the runner's next forward.

    A captured graph writes to the same memory at each replay, so logits that are kept would change. Reading them late
    is an error with every runner; whoever needs them longer copies them.

    Args:
        tensor: The logits, or an array of them; positions past a row's own length hold nothing of use.
        runner: The runner whose latest forward computed them.

    Attributes:
        shape: Rows, width and size of the vocabulary.
        device: Where they are.
    """

    def __init__(self, tensor: Tensor | NDArray[np.float32], runner: _Counter) -> None:
        self.shape = tensor.shape
        self.device = tensor.device if isinstance(tensor, Tensor) else _CPU
        self._tensor = tensor
        self._runner = runner
        self._num_forwards = runner.num_forwards

    @property
    def tensor(self) -> Tensor:
        """The logits themselves.

        Raises:
            RuntimeError: The runner has run another forward since.
        """
        if self._runner.num_forwards != self._num_forwards:
            msg = "These logits are of an earlier forward: read or copy them before the runner's next one."
            raise RuntimeError(msg)
        tensor = self._tensor
        return tensor if isinstance(tensor, Tensor) else torch.from_numpy(tensor)

    def __getitem__(self, index: Any) -> Tensor:
        """`tensor[index]`."""
        return self.tensor[index]
