"""What a model's forward is called with."""

from __future__ import annotations

from typing import Any

__all__ = ["position_limit"]


def position_limit(config: Any) -> int | None:
    """Positions that a model was made for; None where its configuration does not say.

    Longrope models read texts of more than their original length with other frequencies. Those would not fit the
    keys in the cache, and one long text would change the short ones beside it, so the original length is the limit.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Models with several kinds of layers may have parameters for each kind.
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type", parameters.get("type")) == "longrope":
            original = getattr(config, "original_max_position_embeddings", None)
            limits.append(parameters.get("original_max_position_embeddings") or original)
    return min((int(limit) for limit in limits if limit and limit > 0), default=None)


def _layer_windows(config: Any) -> dict[str, int | None]:
    """The window of each kind of layer that the model has; None is full attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        # Qwen2 names a window even where it is off.
        return {"full_attention": window if getattr(config, "use_sliding_window", True) else None}
    return {kind: (window if kind == "sliding_attention" else None) for kind in sorted(set(kinds))}
