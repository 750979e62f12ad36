"""Where states are tapped from a model's forwards, for drafts that read them: EAGLE-3's heads, MTP layers.

A point is the number of a layer, and means the state that enters it: Hugging Face's `hidden_states[point]`. The number
of layers stands for what the final norm gives, which the output head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

LateStates = Callable[[], Tensor]
"""Gives tapped states once they are asked for, `[rows, width, points, hidden]`. In most steps nobody asks."""


def check_points(points: Sequence[int], num_layers: int, most: int | None = None) -> None:
    """Raise a `ValueError` where states cannot be tapped at some points.

    Args:
        points: The points.
        num_layers: Layers of the model.
        most: How many points there can be; None sets no limit.
    """
    if wrong := [point for point in points if not 0 <= point <= num_layers]:
        named = ", ".join(map(str, wrong))
        msg = f"states are tapped before layers 0 to {num_layers - 1} and after the last ({num_layers}), not at {named}"
        raise ValueError(msg)
    if most is not None and len(points) > most:
        msg = f"states can be tapped at {most} points, not at {len(points)}"
        raise ValueError(msg)
