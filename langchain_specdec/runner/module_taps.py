"""Taps states from the forwards of a Hugging Face model: what drafts read of it, at no extra pass."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from langchain_specdec.runner.model_config import decoder_layers
from langchain_specdec.runner.tap_points import LateStates, check_points


class ModuleTaps:
    """Keeps the states that pass certain points of a model; see `tap_points`.

    Hooks are there while a forward runs and not longer, and pass over forwards of other threads: the model may be the
    user's, or another engine's, too.

    Args:
        model: A Hugging Face causal language model.
        points: Where to tap.

    Raises:
        ValueError: It has no such points, or its layers cannot be found.
    """

    def __init__(self, model: Any, points: Sequence[int]) -> None:
        layers = decoder_layers(model)
        if not layers:
            msg = f"the layers of {type(model).__name__} are not known, so that no states can be tapped before them"
            raise ValueError(msg)
        check_points(points, len(layers))
        text = getattr(model.base_model, "language_model", model.base_model)
        self._places: list[tuple[nn.Module, bool]] = [
            (text, True) if point == len(layers) else (layers[point], False) for point in points
        ]
        self._latest: list[Tensor | None] = [None] * len(points)
        self._thread = 0

    @property
    def states(self) -> LateStates:
        """What gives the states of the latest forward, where the last of them was computed; after others too."""
        states = [state for state in self._latest if state is not None]
        return lambda: torch.stack([state.to(states[-1].device) for state in states], 2)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep the states of the forward that runs within."""
        self._thread = threading.get_ident()
        hooks = [
            module.register_forward_hook(partial(self._keep_output, index))
            if is_output
            else module.register_forward_pre_hook(partial(self._keep_input, index), with_kwargs=True)
            for index, (module, is_output) in enumerate(self._places)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep_input(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._thread == threading.get_ident():
            self._latest[index] = args[0] if args else kwargs["hidden_states"]

    def _keep_output(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._thread == threading.get_ident():
            self._latest[index] = output[0]
