"""Mamba 2 of transformers in PyTorch: has single tokens computed as several are.

Its form for several tokens computes in float32 and keeps time steps within limits. That for a single one, from a state,
rounds to the model's type on the way, and knows no limits. So in bfloat16, logits depended on how many tokens a step
had: by a tenth of their spread in Granite 4.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

_SINGLE = "mamba2_selective_state_update"


def single_token_form(layer: Any) -> Callable[..., Any] | None:
    """The forward of a layer's class, single tokens of which are computed as several are; None: it has no such form.

    Args:
        layer: On a CPU, where no other package brings kernels for these forms.
    """
    # With a hook, its weights may be elsewhere until the forward that we would go around fetches them.
    is_plain = not hasattr(getattr(layer, "conv1d", None), "_hf_hook")
    limits = getattr(layer, "time_step_limit", None)
    return _form_of(inspect.unwrap(type(layer).forward), tuple(limits)) if is_plain and limits is not None else None


@functools.cache
def _form_of(forward: Any, limits: tuple[float, float]) -> Callable[..., Any] | None:
    names = forward.__globals__
    if _SINGLE not in names:
        return None
    names = {**names, _SINGLE: functools.partial(_update, names[_SINGLE], limits)}
    form = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    form.__kwdefaults__ = forward.__kwdefaults__
    return form


def _update(
    update: Callable[..., Tensor],
    limits: tuple[float, float],
    state: Tensor,
    hidden: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803 - names of the paper, here and below
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor,  # noqa: N803
    *,
    z: Tensor | None,
    dt_bias: Tensor,
    **_: Any,
) -> Tensor:
    """What one token makes of a state, which is written to, and its output: transformers' own form, in float32."""
    steps = F.softplus(dt + dt_bias.to(dt.dtype)).clamp(*limits).float()
    output = update(state, hidden.float(), steps, A, B.float(), C.float(), D.float())
    return output if z is None else output * F.silu(z)
