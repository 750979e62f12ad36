"""Which of PyTorch's attention backends a GPU runs: pinned while the engine's forwards are under way.

Left to itself PyTorch chooses by GPU, version and shape. cuDNN, the first choice on an H100, makes a plan for every
length, some 30 ms each, and has had faults with masks and shared keys (pytorch/pytorch#177842, #193893). The choice is
the process's, so whoever else uses PyTorch gets it back as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend

# What may run: the memory-efficient backend takes our masks, flash the prompts, which need none.
_PINNED = {"cudnn": False, "flash": True, "mem_efficient": True, "math": True}
_lock = threading.Lock()
_num_pinned = 0
_before: dict[str, bool] = {}


@contextmanager
def pinned_backends(device: torch.device) -> Iterator[None]:
    """Have attention on a GPU run by the backends that the engine is made for; elsewhere this does nothing.

    Forwards in several threads may overlap: the first one pins, and the last one restores.
    """
    if device.type != "cuda":
        yield
        return
    global _num_pinned
    with _lock:
        if not _num_pinned:
            _before.update({name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in _PINNED})
            _enable(_PINNED)
        _num_pinned += 1
    try:
        yield
    finally:
        with _lock:
            _num_pinned -= 1
            if not _num_pinned:
                _enable(_before)


def _enable(backends: dict[str, bool]) -> None:
    for name, is_enabled in backends.items():
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(is_enabled)


def chosen_backend(device: torch.device, dtype: torch.dtype, *, is_prompt: bool) -> str:
    """The backend that PyTorch runs attention by on a device, for steps or for prompts of a model of 8 billion weights.

    Args:
        device: A GPU.
        dtype: The model's.
        is_prompt: Whether for prompts, which need no mask.

    Returns:
        Its name in `torch.nn.attention.SDPBackend`.
    """
    heads, kv_heads, length, head_dim = 32, 8, 512, 128
    width = length if is_prompt else 8
    # Queries that share keys stand beside each other in a step, so there are as many heads of either.
    query_shape = (1, heads, width, head_dim) if is_prompt else (1, kv_heads, heads // kv_heads * width, head_dim)
    query = torch.zeros(query_shape, dtype=dtype, device=device)
    key = torch.zeros(1, kv_heads, length, head_dim, dtype=dtype, device=device)
    mask = None if is_prompt else torch.zeros(1, 1, query.shape[2], length, dtype=dtype, device=device)
    with pinned_backends(device):
        choice = torch._fused_sdp_choice(query, key, key, mask, 0.0, is_prompt, scale=None, enable_gqa=is_prompt)
    return SDPBackend(choice).name
