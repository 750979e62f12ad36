"""A pruned model as it is trained: at each token of the target's answers it learns the target's whole distribution.

The divergence is forward KL, which knowledge distillation takes (Hinton et al. 2015, https://arxiv.org/abs/1503.02531);
since the answers are the target's own, what is learned from is what will be drafted. (DistillSpec, Zhou et al. 2024,
https://arxiv.org/abs/2310.08461)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from langchain_specdec.training.output_head import OutputHead
from langchain_specdec.training.student import Student

# Logits that are in memory at a time.
_LOGITS_AT_ONCE = 1 << 23


class DistilledModel(Student):
    """A pruned model, and its divergence from the target.

    Embeddings and the output head stay as they are, so that both models read out states by the same one.

    Args:
        model: A causal language model of transformers in float32, on the device that it is trained on.
        decoder: The part of it that gives the states that its output head reads.
        output: The output head, of all tokens.
    """

    def __init__(self, model: Any, decoder: nn.Module, output: OutputHead) -> None:
        super().__init__()
        # Not a part of what is trained and saved.
        self._frozen = (decoder, output)
        model.requires_grad_(requires_grad=False)
        tables = {model.get_input_embeddings(), model.get_output_embeddings()}
        parts = {name: part for name, part in decoder.named_children() if tables.isdisjoint(part.modules())}
        self.trained = nn.ModuleDict(
            {name: part for name, part in parts.items() if any(True for _ in part.parameters())}
        )
        self.trained.requires_grad_()

    @property
    def draft(self) -> nn.Module:
        """The layers and the norm behind them."""
        return self.trained

    def forward(self, states: Tensor, tokens: Tensor, is_answered: Tensor) -> dict[str, Tensor]:
        """The loss of a batch, as `Trainer` wants it; see `TextBatch`."""
        own = self.outputs(tokens)[is_answered]
        return {"loss": _divergence(own, states[:, :, -1][is_answered], self._frozen[1])}

    def outputs(self, tokens: Tensor) -> Tensor:
        """What the output head reads, `[texts, width, hidden]`. Padding is behind all that is read."""
        outputs: Tensor = self._frozen[0](input_ids=tokens, use_cache=False).last_hidden_state
        return outputs


def _rows_at_once(output: OutputHead) -> int:
    return max(_LOGITS_AT_ONCE // len(output.rows), 1)


def _divergence(states: Tensor, wanted: Tensor, output: OutputHead) -> Tensor:
    # Logits and their logarithms want more digits than bfloat16 has.
    with torch.autocast(states.device.type, enabled=False):
        divergence: Tensor = _Divergence.apply(states.float(), wanted, output)  # type: ignore[no-untyped-call]
    return divergence


class _Divergence(torch.autograd.Function):
    """Mean divergence, in nats, of distributions from others, both given by the states that an output head reads.

    The gradient is computed with it, part by part, so that logits of a few states only are in memory at a time.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, wanted: Tensor, output: OutputHead) -> Tensor:
        """Of `states` from `wanted`, both `[count, hidden]`."""
        total, gradients = states.new_zeros(()), []
        rows = _rows_at_once(output)
        for own, target in zip(states.split(rows), wanted.split(rows), strict=True):
            log_target = output(target).log_softmax(-1)
            with torch.enable_grad():
                read = own.detach().requires_grad_()
                log_own = output(read).log_softmax(-1)
                divergence = nn.functional.kl_div(log_own, log_target, log_target=True, reduction="sum")
            if ctx.needs_input_grad[0]:
                gradients += torch.autograd.grad(divergence, read)
            total = total + divergence.detach()
        count = max(len(states), 1)
        ctx.save_for_backward(torch.cat(gradients) / count if gradients else states.new_zeros(states.shape))
        return total / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Of the states alone."""
        (own,) = ctx.saved_tensors
        return own * gradient, None, None
