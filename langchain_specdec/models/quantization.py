"""What `quantization="int8"` and `"int4"` make of a model on a CPU, and which numbers it computes with from then on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.runner.cpu.decoder_weights import Format, Matrix
from langchain_specdec.runner.cpu.quantized_blocks import BLOCK, LEAST, MOST, can_quantize, quantized_matrix

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantization:
    """Formats of GGML that a word stands for. What is no matrix keeps its numbers.

    Attributes:
        layers: Of the layers' matrices.
        tables: Of the embedding and the head, which are worth more bits than others: each number counts in every token.
    """

    layers: Format
    tables: Format

    def __str__(self) -> str:
        if self.layers is self.tables:
            return self.layers.name
        return f"{self.layers.name}, embedding and head {self.tables.name}"


QUANTIZATIONS = {
    "int8": Quantization(Format.Q8_0, Format.Q8_0),
    "int4": Quantization(Format.IQ4_NL, Format.Q8_0),
}
"""What each word of the option becomes on a CPU."""


class Quantizer:
    """Quantises the matrices of a model, and counts their numbers.

    Args:
        name: The model's, for messages.
        quantization: `"int8"` or `"int4"`.
    """

    def __init__(self, name: str, quantization: str) -> None:
        self._name = name
        self._quantization = quantization
        self._num_done = 0
        self._num_left = 0

    def __call__(self, matrix: Matrix, is_table: bool) -> Matrix | None:
        """A matrix in blocks; None where its rows are no whole blocks, or blocks would not hold its numbers.

        Args:
            matrix: In plain numbers.
            is_table: Whether it is the embedding or the head.
        """
        made = self.together([matrix], is_table=is_table)
        return made[0] if made else None

    def together(self, matrices: Sequence[Matrix], *, is_table: bool = False) -> list[Matrix] | None:
        """Matrices in blocks; None where one of them cannot be. See `__call__`."""
        formats = QUANTIZATIONS[self._quantization]
        wanted = formats.tables if is_table else formats.layers
        if not all(map(can_quantize, matrices)):
            return None
        made = [each for matrix in matrices if (each := quantized_matrix(matrix, wanted)) is not None]
        if len(made) < len(matrices):
            return None
        self._num_done += sum(matrix.outputs * matrix.inputs for matrix in matrices)
        return made

    def leave(self, num_weights: int) -> None:
        """Count weights that keep their numbers."""
        self._num_left += num_weights

    def report(self) -> None:
        """Tell what share of the weights was left, if any was.

        Raises:
            UnsupportedModelError: All of them.
        """
        reason = (
            f"that takes linear layers and experts with a multiple of {BLOCK} inputs, whose greatest weight is from "
            f"{LEAST:.1g} to {MOST:.1g}"
        )
        if not self._num_done:
            msg = (
                f"Nothing of {self._name} can be quantised to {self._quantization}: {reason}. "
                "Leave its quantization out."
            )
            raise UnsupportedModelError(msg)
        if self._num_left:
            share = 100 * self._num_left / (self._num_left + self._num_done)
            _logger.warning(
                "%.2g%% of the weights of %s keep their numbers and are not quantised to %s: %s.",
                share, self._name, self._quantization, reason,
            )  # fmt: skip
