"""The target's own distribution, computed from recorded states and rows of its output head, which stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.gguf.model import GGUFModel
from langchain_specdec.models.heads.target_sizes import matrix_rows
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.training.plain_weights import linear_rows

# How far computed logits may lie from the model's own, of how far these lie from each other.
_TOLERANCE = 0.1


class OutputHead:
    """The target's logits of some tokens, from the states that its output head reads.

    Args:
        rows: Of the head's weight, float32 `[tokens, hidden]`.
        bias: Its bias, `[tokens]`.
        scale: What logits are multiplied by.
        softcap: See `DecoderWeights.logit_softcap`.
    """

    def __init__(
        self, rows: Tensor, bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None
    ) -> None:
        self.rows, self._bias, self._scale, self._softcap = rows, bias, scale, softcap

    @classmethod
    def of(cls, target: LoadedModel, ids: Tensor | None) -> OutputHead:
        """The target's, of the tokens `ids`, int64 `[tokens]`; None: of all, which a GGUF model is not asked for."""
        model = target.model
        if isinstance(model, GGUFModel):
            assert ids is not None  # noqa: S101
            weights = model.weights
            bias = None if weights.head_bias is None else torch.from_numpy(weights.head_bias[ids.numpy()])
            return cls(matrix_rows(weights.head, ids), bias, weights.logit_scale, weights.logit_softcap)
        config = model.config.get_text_config()
        # As Cohere has it, and Granite.
        scale, divisor = (getattr(config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
        rows, bias = linear_rows(model.get_output_embeddings(), ids, model.dtype)
        return cls(rows, bias, scale / divisor, getattr(config, "final_logit_softcapping", None))

    def to(self, device: torch.device) -> OutputHead:
        """The same on a device."""
        bias = None if self._bias is None else self._bias.to(device)
        return OutputHead(self.rows.to(device), bias, self._scale, self._softcap)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits, `[..., hidden]` to `[..., tokens]`."""
        logits = nn.functional.linear(states, self.rows, self._bias) * self._scale
        return logits if self._softcap is None else self._softcap * (logits / self._softcap).tanh()

    def check(self, states: Tensor, logits: Tensor, name: str) -> None:
        """Raise unless the logits of states are the model's own, but for one number added to all.

        Args:
            states: Of a position, `[hidden]`.
            logits: The model's, of the same tokens.
            name: The model's.

        Raises:
            UnsupportedModelError: Its output head computes something else.
        """
        differences = self(states.float()) - logits.float()
        if not differences.std() <= _TOLERANCE * logits.float().std():
            msg = (
                f"The output head of {name} computes more than a product with its weights, so that its distributions "
                "cannot be had from recorded states, and no draft can be trained for it here."
            )
            raise UnsupportedModelError(msg)
