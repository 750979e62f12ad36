"""What training steps by: Muon for matrices, whose updates it makes orthogonal, and AdamW for all else.

For a draft head Muon takes about half the tokens that AdamW does. (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon; its rates are AdamW's as in Liu et al. 2025, https://arxiv.org/abs/2502.16982)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

_DECAY = 0.01
_BETAS = (0.9, 0.95)


def has_muon(device: torch.device) -> bool:
    """Whether Muon is there (PyTorch 2.9 and later), and fast: it multiplies in bfloat16."""
    return hasattr(torch.optim, "Muon") and multiplies_bfloat16(device)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32 on a device."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def make_optimizer(model: nn.Module, matrices: Sequence[nn.Parameter], rate: float) -> Optimizer:
    """The optimizer of a model.

    Args:
        model: What is trained.
        matrices: Of its parameters those that Muon takes where it is there.
        rate: The learning rate of both.
    """
    chosen = {*matrices} if has_muon(next(model.parameters()).device) else set()
    others = [each for each in model.parameters() if each.requires_grad and each not in chosen]
    adamw = AdamW(others, rate, _BETAS, weight_decay=_DECAY, fused=True)
    if not chosen:
        return adamw
    return _Joined([adamw, torch.optim.Muon(matrices, rate, weight_decay=_DECAY, adjust_lr_fn="match_rms_adamw")])


class _Joined(Optimizer):
    """Several optimizers of different parameters, as one.

    Args:
        parts: The optimizers.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = parts
        # The same dictionaries, so that a schedule reaches them all.
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of each; `closure` is not called."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Those of all."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take in what `state_dict` gave."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups[:] = [group for part in self._parts for group in part.param_groups]
