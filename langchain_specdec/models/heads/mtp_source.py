"""The MTP layers that lie in a model's own checkpoint, which transformers leaves out: found by name, not yet read.

Qwen3-Next, Qwen3.5 and what follows them are trained to predict one token more by weights called `mtp.*`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.models import embedded
from langchain_specdec.models.checkpoint import explained
from langchain_specdec.models.heads.head_source import HeadSource
from langchain_specdec.models.model_source import check_source, means_gguf

PREFIX = "mtp."
"""What the names of their weights begin with."""
_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"
_ELSE = "Or leave drafter out: lookups need no layers"


@dataclass(frozen=True)
class MtpSource:
    """MTP layers that were found in a checkpoint.

    Attributes:
        name: What the user calls the model.
        place: The folder it is in, or its id on the Hub.
        files: The file of each weight, by its name without `mtp.`; none where that takes files that are not here.
    """

    name: str
    place: str
    files: Mapping[str, Path]

    @property
    def is_here(self) -> bool:
        """Whether they are on this machine, so that they can be read."""
        return Path(self.place).is_dir() or (bool(self.files) and all(path.exists() for path in self.files.values()))


def find_mtp(
    model: Any, *, revision: str | None = None, token: str | bool | None = None, downloads: bool = True
) -> MtpSource:
    """The MTP layers of a model; only names are read of its weights, though on the Hub whole files are downloaded.

    Args:
        model: The model as it is given to be loaded.
        revision: Branch, tag or commit of its id.
        token: Access token of the Hub; None takes the one that is logged in.
        downloads: Whether weights are downloaded that are not on this machine.

    Raises:
        InvalidParameterError: It is given in a form that has none: loaded, or as a GGUF file.
        UnsupportedModelError: Its checkpoint has none.
        ModelLoadError: There is no such model, its files cannot be read, or the Hub is out of reach.
    """
    needs = "drafter='mtp' needs the folder or the Hub's id of a model with MTP layers, such as 'Qwen/Qwen3.5-4B'"
    if not isinstance(model, (str, os.PathLike)):
        msg = f"{needs}: transformers leaves these layers out, so a loaded model has none. {_ELSE}."
        raise InvalidParameterError(msg)
    name = str(model)
    if name == embedded.EMBEDDED_MODEL_ID or means_gguf(model):
        kind = "the embedded model has none" if name == embedded.EMBEDDED_MODEL_ID else f"{name} is a GGUF file"
        raise InvalidParameterError(f"{needs}: {kind}. {_ELSE}.")
    place, revision = check_source(model, revision=revision, token=token)
    source = HeadSource(name, {}, place, revision, token)
    with explained(name, place):
        files = _files(source, source.file if downloads else source.here)
    if files is None and not downloads and not Path(place).is_dir():
        return MtpSource(name, place, {})
    if not files:
        msg = (
            f"{name} has no MTP layers: no weights in its safetensors are called {PREFIX}*. Those of Qwen3.5 and "
            f"Qwen3-Next have some, as long as they were not saved anew by transformers. {_ELSE}."
        )
        raise UnsupportedModelError(msg)
    return MtpSource(name, place, files)


def _files(source: HeadSource, find: Callable[[str], Path | None]) -> dict[str, Path] | None:
    """The file of each weight; None where no file tells of weights."""
    index = source.file(_INDEX)
    if index is None:
        whole = find(_WHOLE)
        if whole is None:
            return None
        with safe_open(whole, "pt") as file:
            return {name.removeprefix(PREFIX): whole for name in file.keys() if name.startswith(PREFIX)}  # noqa: SIM118
    parts: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    wanted = {name: part for name, part in parts.items() if name.startswith(PREFIX)}
    found = {part: find(part) for part in set(wanted.values())}
    # A part that is missing is told of when it is read.
    return {name.removeprefix(PREFIX): found[part] or Path(source.place, part) for name, part in wanted.items()}
