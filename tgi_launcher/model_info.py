"""What a model's config.json, in a folder or in the local cache, says of the heads it speculates with."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["ModelInfo", "find_model_info"]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without the network.

    Attributes:
        is_known: Whether its config.json was found; else the other fields are empty.
        speculator: Kind of heads it brings along, None if it has none.
        num_heads: How many tokens they can draft per step.
        base_model: Model that the heads belong to.
        model_type: As in config.json.
        warning: Why TGI may not use the heads, in one sentence.
    """

    is_known: bool = False
    speculator: Literal["Medusa", "MLP-speculator"] | None = None
    num_heads: int | None = None
    base_model: str | None = None
    model_type: str | None = None
    warning: str | None = None


def find_model_info(model_id: str, *, revision: str | None = None, cache: str | None = None) -> ModelInfo:
    """Read a model's config.json if it is on this machine; nothing is downloaded.

    Args:
        model_id: Folder, or id of the Hub.
        revision: Branch, tag or commit.
        cache: Folder of the Hub's cache; None is where the Hugging Face libraries have it.

    Returns:
        What the file says; `is_known` is False where there is none, or none that can be read.
    """
    path = _config_path(Path(model_id), model_id, revision or "main", Path(cache) if cache else _hub_cache())
    if path is None:
        return ModelInfo()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ModelInfo()
    return _read(config) if isinstance(config, dict) else ModelInfo()


def _read(config: dict[str, Any]) -> ModelInfo:
    model_type = config.get("model_type")
    architectures = config.get("architectures")
    if isinstance(heads := config.get("medusa_num_heads"), int):
        # TGI builds the heads only where there is no such key, and the output layer with them.
        warning = "its config.json has `architectures`, so TGI does not load the heads" if architectures else None
        return ModelInfo(
            is_known=True,
            speculator="Medusa",
            num_heads=heads,
            base_model=config.get("base_model_name_or_path"),
            model_type=model_type,
            warning=warning,
        )
    if model_type == "mlp_speculator":
        is_foreign = architectures and architectures != ["MLPSpeculatorPreTrainedModel"]
        warning = f"TGI does not load heads of the architecture {architectures}" if is_foreign else None
        return ModelInfo(
            is_known=True,
            speculator="MLP-speculator",
            num_heads=heads if isinstance(heads := config.get("n_predict"), int) else None,
            base_model=config.get("base_model_name_or_path"),
            model_type=model_type,
            warning=warning,
        )
    return ModelInfo(is_known=True, model_type=model_type)


def _config_path(folder: Path, model_id: str, revision: str, cache: Path) -> Path | None:
    if folder.is_dir():
        return folder / "config.json"
    # The layout of the Hub's cache: models--owner--name/{refs/<branch>, snapshots/<commit>/}.
    repository = cache / f"models--{model_id.replace('/', '--')}"
    reference = repository / "refs" / revision
    try:
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    except OSError:
        return None
    path = repository / "snapshots" / commit / "config.json"
    return path if path.is_file() else None


def _hub_cache() -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(name):
            return Path(value).expanduser()
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface"
    return Path(home).expanduser() / "hub"
