"""What a model's config.json, in a folder or in the local cache, says of the heads it speculates with."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

_MLP_SPECULATOR = "MLPSpeculatorPreTrainedModel"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without the network.

    Attributes:
        is_known: Whether its config.json was found; else the other fields are empty.
        speculator: Kind of heads it brings along, None if it has none.
        num_heads: How many tokens they can draft per step.
        base_model: Model that the heads belong to.
        model_type: As in config.json.
        problem: Why TGI cannot load it at all, in a part of a sentence.
    """

    is_known: bool = False
    speculator: Literal["Medusa", "MLP-speculator"] | None = None
    num_heads: int | None = None
    base_model: str | None = None
    model_type: str | None = None
    problem: str | None = None


def find_model_info(model_id: str, *, revision: str | None = None, cache: str | None = None) -> ModelInfo:
    """Read a model's config.json if it is on this machine; nothing is downloaded.

    Args:
        model_id: Folder, or id of the Hub.
        revision: Branch, tag or commit.
        cache: Folder of the Hub's cache; None is where the Hugging Face libraries have it.

    Returns:
        What the file says; `is_known` is False where there is none, or none that can be read.
    """
    try:
        path = _config_path(model_id, revision, cache)
        config = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
    except (OSError, ValueError, RecursionError):  # huggingface_hub raises ValueError for what cannot be an id
        config = None
    info = _read(config, Path(model_id)) if isinstance(config, dict) else ModelInfo()
    problem = info.problem or _base_problem(Path(model_id))
    return replace(info, problem=problem) if problem else info


def _base_problem(folder: Path) -> str | None:
    """What is wrong with the base model that the files of a folder name."""
    for name in ("config.json", "adapter_config.json"):
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
        # An id of the Hub looks the same, so the folder has to be there.
        if isinstance(base, str) and base and not Path(base).is_absolute() and Path(base).is_dir():
            return (
                f'base_model_name_or_path in its {name} is "{base}", a relative path, and TGI runs in a folder of its '
                "own: write the absolute path there"
            )
    return None


def _read(config: dict[str, Any], folder: Path) -> ModelInfo:
    model_type = config.get("model_type")
    architectures = config.get("architectures")
    base_model = config.get("base_model_name_or_path")
    if isinstance(heads := config.get("medusa_num_heads"), int):
        # By this key TGI takes it for another kind, and loads neither heads nor the model's own last layer.
        problem = "the config.json of Medusa heads may not have `architectures`" if "architectures" in config else None
        return ModelInfo(True, "Medusa", heads, base_model, model_type, problem)
    if model_type == "mlp_speculator":
        heads = heads if isinstance(heads := config.get("n_predict"), int) else None
        # TGI looks at the first architecture. With another one it loads neither heads nor the model's own last layer.
        first = architectures[0] if isinstance(architectures, list) and architectures else None
        if first != _MLP_SPECULATOR:
            problem = f'its config.json does not say `architectures: ["{_MLP_SPECULATOR}"]`'
        elif not config.get("tie_weights", False):
            problem = "its MLP speculator has weights that are not tied (tie_weights), for which TGI 3.3 has a fault"
        elif folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZERS):
            # For Medusa heads TGI takes that of the base model.
            problem = (
                "its folder has no tokenizer, without which TGI breaks off every request: copy that of its base model"
            )
        else:
            problem = None
        return ModelInfo(True, "MLP-speculator", heads, base_model, model_type, problem)
    return ModelInfo(is_known=True, model_type=model_type)


def _config_path(model_id: str, revision: str | None, cache: str | None) -> Path | None:
    folder = Path(model_id)
    if folder.is_dir():
        return folder / "config.json"
    # The import takes a quarter of a second, which only an id of the Hub needs.
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model_id, "config.json", cache_dir=cache, revision=revision)
    return Path(path) if isinstance(path, str) else None
