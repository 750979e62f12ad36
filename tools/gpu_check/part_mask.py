"""Is what attention must not see unseen, by the engine's way and by every backend that PyTorch may choose?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from langchain_specdec.runner.attention import additive_mask, slot_attention
from langchain_specdec.runner.cuda.attention_backend import chosen_backend, pinned_backends
from tools.gpu_check import attention_cases
from tools.gpu_check.attention_cases import HEADS, LENGTHS, Case, Tensors
from tools.gpu_check.check import Check

MAX_ERROR = 2e-2
"""Share of the largest number that bfloat16 may be off."""

_OTHERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
WAYS: dict[str, tuple[Any, bool]] = {
    "default": (None, False),
    "no cudnn": (_OTHERS, False),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, True),
    "math": (SDPBackend.MATH, False),
}
"""By name: the backends allowed, None for PyTorch's choice, and whether each head gets keys and values of its own."""

# Each way but ours is asked for these only: a new shape takes cuDNN some 30 ms, and math at length half a second.
_COMPARED_LENGTHS = (257, 1024)
_COMPARED_SHAPES = ((1, 8, False), (1, 33, True), (8, 2, True))


def mask(check: Check) -> None:
    """The engine's attention in all cases, PyTorch's choices in some, against float64."""
    models, lengths = check.pick((tuple(HEADS), LENGTHS), (("135m",), (65,)))
    dtype = check.pick(torch.bfloat16, torch.float32)
    for is_prompt in (False, True):
        check.note(chosen=chosen_backend(check.device, dtype, is_prompt=is_prompt), is_prompt=is_prompt)
    for case in attention_cases.cases(models, lengths):
        tensors = attention_cases.make(case, check.device, dtype)
        for way, form, given, function in _ways(check, case, tensors):
            _try(check, {**case.as_dict(), "way": way, "form": form}, tensors, given, function)


def is_compared(case: Case) -> bool:
    """Whether PyTorch's choices are asked for a case, with either form of a mask."""
    return case.length in _COMPARED_LENGTHS and (case.rows, case.width, case.is_tree) in _COMPARED_SHAPES


def _ways(check: Check, case: Case, tensors: Tensors) -> Iterator[tuple[str, str, Any, Callable[[], Tensor]]]:
    module: Any = torch.nn.Module()
    module.is_causal = True
    query, key, value = tensors.query, tensors.key, tensors.value

    def ours() -> Tensor:
        with pinned_backends(check.device):
            return slot_attention(module, query, key, value, tensors.mask)[0]

    yield "ours", "ours", tensors.mask, ours
    if case.is_prompt:
        return
    forms = {"bool": tensors.seen, "numbers": additive_mask(tensors.seen, query.dtype)}
    for form, given in forms.items():
        for way in WAYS if is_compared(case) or check.is_rehearsal else ():
            yield way, form, given, lambda way=way, given=given: _attend(way, tensors, given)  # type: ignore[misc]


def _attend(way: str, tensors: Tensors, mask: Tensor) -> Tensor:
    backends, is_repeated = WAYS[way]
    query, key, value = tensors.query, tensors.key, tensors.value
    groups = query.shape[1] // key.shape[1]
    if is_repeated and groups > 1:
        key, value = (side.repeat_interleave(groups, 1) for side in (key, value))
    with nullcontext() if backends is None else sdpa_kernel(backends):
        found = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, enable_gqa=groups > 1 and not is_repeated
        )
    return found.transpose(1, 2)


def _try(check: Check, what: dict[str, Any], tensors: Tensors, mask: Any, function: Callable[[], Tensor]) -> None:
    """Note a way's error and times. Only ours has to be right: PyTorch may refuse the others, or be wrong."""
    is_ours = what["way"] == "ours"
    try:
        check.wait()
        started = time.perf_counter()
        found = function()
        check.wait()
        first_ms = 1e3 * (time.perf_counter() - started)
        error = tensors.error(found)
        host_ms, ms = check.timed(function, 5, 1)
        is_right = error < MAX_ERROR
        times = {"first_ms": first_ms, "host_ms": host_ms, "us": 1e3 * ms}
        check.note(mask=what, backend=_backend(what["way"], tensors, mask), error=error, ok=is_right, **times)
        check.expect(is_right or not is_ours, f"attention is off by {error:.3f}: {what}")
    except Exception as failure:
        check.note(mask=what, failed=f"{type(failure).__name__}: {failure}"[:200])
        check.expect(not is_ours, f"attention fails: {what}")


def _backend(way: str, tensors: Tensors, mask: Any) -> str:
    """What PyTorch chooses for a call, by its own account."""
    if way not in ("default", "no cudnn"):
        return ""
    backends, _ = WAYS[way]
    query, key, value = tensors.query, tensors.key, tensors.value
    with nullcontext() if backends is None else sdpa_kernel(backends):
        choice = torch._fused_sdp_choice(query, key, value, mask, enable_gqa=query.shape[1] != key.shape[1])
    return SDPBackend(choice).name
