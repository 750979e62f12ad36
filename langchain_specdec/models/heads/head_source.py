"""Whether a name is that of a trained head, by its config.json alone, and where its files are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from langchain_specdec.models import embedded
from langchain_specdec.models.checkpoint import explained
from langchain_specdec.models.hub import downloaded_file
from langchain_specdec.models.model_source import check_source, means_gguf

_CONFIG = "config.json"
# What only configurations of heads say. The first EAGLE-3 heads call themselves LlamaForCausalLM.
_KEYS = (
    "speculators_model_type", "speculators_config", "draft_vocab_size", "truncated_vocab_size", "eagle_config",
    "dflash_config", "medusa_num_heads",
)  # fmt: skip
_TYPES = (
    "eagle", "medusa", "mlp_speculator", "speculator_model", "gemma4_assistant", "gemma4_unified_assistant",
)  # fmt: skip
_ARCHITECTURES = ("eagle3", "causallmeagle", "eaglellama", "eaglemodel", "peagle", "speculator", "dflash", "dspark")


@dataclass(frozen=True)
class HeadSource:
    """A head that was found, of which only config.json was read.

    Attributes:
        name: What the user calls it.
        config: Its config.json.
        place: The folder it is in, or its id on the Hub.
        revision: Branch, tag or commit of the id.
        token: Access token of the Hub.
    """

    name: str
    config: Mapping[str, Any]
    place: str
    revision: str | None = None
    token: str | bool | None = None

    def here(self, name: str) -> Path | None:
        """One of its files; None where it is not on this machine."""
        if Path(self.place).is_dir():
            return self.file(name)
        return downloaded_file(self.place, name, self.revision)

    def file(self, name: str) -> Path | None:
        """One of its files, downloaded if need be; None where it has none of that name. Raises what the Hub raises."""
        return _file(self.place, name, self.revision, self.token)


def find_head(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> HeadSource | None:
    """The head that a draft model's name stands for; None where it is that of a model.

    Nothing but its config.json is read or downloaded. Heads of every kind are found, so that those that do not run
    here can be told from damaged models; `load_head` says which do.

    Args:
        source: Folder or id on the Hub, as for a model.
        revision: Branch, tag or commit of the id.
        token: Access token of the Hub; None takes the one that is logged in.

    Raises:
        InvalidParameterError: It is no name, or a revision is given of what is on this machine.
        ModelLoadError: There is no such folder or id, it cannot be read, or the Hub is out of reach.
    """
    name = str(source)
    if not isinstance(source, (str, os.PathLike)) or name == embedded.EMBEDDED_MODEL_ID or means_gguf(source):
        return None
    place, revision = check_source(source, revision=revision, token=token)
    with explained(name, place):
        path = _file(place, _CONFIG, revision, token)
        # That of an adapter has another name.
        config = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        return HeadSource(name, config, place, revision, token) if _is_of_head(config) else None


def _file(place: str, name: str, revision: str | None, token: str | bool | None) -> Path | None:
    if Path(place).is_dir():
        path = Path(place, name)
        return path if path.exists() else None
    try:
        return Path(hf_hub_download(place, name, revision=revision, token=token))
    except EntryNotFoundError as error:
        # One that could not be fetched may be there.
        if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            raise
        return None


def _is_of_head(config: Any) -> bool:
    if not isinstance(config, dict):
        return False
    names = " ".join(map(str, config.get("architectures") or ())).lower()
    has_name = any(name in names for name in _ARCHITECTURES)
    return has_name or config.get("model_type") in _TYPES or any(config.get(key) is not None for key in _KEYS)
