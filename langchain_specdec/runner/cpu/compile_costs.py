"""What earlier runs on this machine found compiling to cost, and to save."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from langchain_specdec.paths import read_own, write_own

_logger = logging.getLogger(__name__)
# Seconds that one graph takes, where no earlier run has told, and the share of a step that it saves: both as measured
# with a 135M model on two cores. The first graph of a machine takes longest, kept ones a few seconds.
DEFAULT_SECONDS = 30.0
DEFAULT_SAVING = 0.15

GraphKey = tuple[bool, bool]
"""Whether a forward has one row, and whether its rows have one token: torch compiles a size of 1 as such."""


class CompileCosts:
    """What compiling took and saved, kept in a file beside what torch compiled, if that has a folder.

    Args:
        model: The model whose layers are compiled.
    """

    def __init__(self, model: Any) -> None:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        self._path: Path | None = None
        try:
            self._path = Path(cache_dir()) / "specdec-costs.json"
        except OSError as error:
            # The model runs without; torch says what it lacks when it compiles.
            _logger.debug("what compiling costs is not kept: %s", error)
        config = model.config.get_text_config()
        sizes = (config.model_type, config.hidden_size, config.num_hidden_layers, str(model.dtype), torch.__version__)
        self._model = "-".join(map(str, sizes))

    def get(self, key: GraphKey) -> tuple[float, float]:
        """Seconds that the graph takes, and the share of a step that it saves."""
        try:
            seconds, saving = map(float, self._read()[f"{self._model}-{key}"])
        except (KeyError, TypeError, ValueError):
            return DEFAULT_SECONDS, DEFAULT_SAVING
        return seconds, saving

    def put(self, key: GraphKey, seconds: float, saving: float) -> None:
        """Keep what one compilation took and saved."""
        if self._path is None:
            return
        entries = self._read()
        entries[f"{self._model}-{key}"] = (seconds, saving)
        try:
            write_own(self._path, json.dumps(entries).encode())
        except OSError as error:
            _logger.debug("cannot write %s: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads((read_own(self._path) if self._path else None) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return entries if isinstance(entries, dict) else {}
