"""Adapters (LoRA and its kin): found, told from models, and merged into the weights of their base."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from langchain_specdec.errors import (
    InvalidParameterError,
    MissingDependencyError,
    ModelLoadError,
    UnsupportedModelError,
)
from langchain_specdec.models.checkpoint import explained
from langchain_specdec.models.model_source import ADAPTER, check_source, is_missing_folder
from langchain_specdec.runner.row_adapters import AdaptedLinear
from tgi_launcher.extras import install_command

_WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
_CONFIG_FILE = "adapter_config.json"
_ADAPTER_FILES = (_CONFIG_FILE, "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Adapter:
    """An adapter that was found.

    Attributes:
        name: Its folder or id, as the user gave it.
        place: What to read: a folder, or an id.
        revision: Revision of that id.
    """

    name: str
    place: str
    revision: str | None = None


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are.

    Attributes:
        source: Model id or folder of the weights.
        revision: Revision of that id.
        adapter: What to merge into them; None where there is nothing.
        tokenizer: Id or folder of the tokenizer.
    """

    source: str
    revision: str | None
    adapter: Adapter | None
    tokenizer: str


def find_parts(
    source: str, name: str, adapter: Adapter | None, revision: str | None, token: str | bool | None
) -> Parts:
    """Find what is named by the model that was asked for: a model, or an adapter that names its base.

    Args:
        source: Model id or folder.
        name: What the user calls it.
        adapter: What was asked for beside it.
        revision: Revision of the model id.
        token: Access token of the hub.

    Raises:
        ModelLoadError: It is an adapter whose base is unknown, or a folder that holds an adapter beside a model.
        InvalidParameterError: Model and adapter are an adapter both.
    """
    found = _adapter_config(source, name, revision, token)
    if found is None:
        return Parts(source, revision, adapter, source)
    base = found.get("base_model_name_or_path")
    if any((Path(source) / file).is_file() for file in _WEIGHT_FILES):
        msg = (
            f"{name} holds a model and, by its adapter_config.json, an adapter beside it, and which of them is meant "
            "cannot be told. Move the adapter into a folder of its own, and give that as adapter= if it is to be used."
        )
        raise ModelLoadError(msg)
    if adapter is not None:
        msg = f"{name} is an adapter itself, and adapter= is another. Give the base that both are for as the model" + (
            f" ({base!r})." if base else "."
        )
        raise InvalidParameterError(msg)
    if not base or not isinstance(base, str) or is_missing_folder(base):
        names = f"names {base!r} as its base, which is not here" if base else "names no base"
        msg = (
            f"{name} is an adapter, and its adapter_config.json {names}: give the base as the model, and {name} as "
            "adapter=."
        )
        raise ModelLoadError(msg)
    # Of a folder, PEFT notes a revision too, which says nothing.
    base_revision = None if Path(base).exists() else found.get("revision")
    place, base_revision = check_source(base, revision=base_revision, token=token)
    if _adapter_config(place, base, base_revision, token) is not None:
        msg = (
            f"{name} is an adapter for {base}, which is one itself. Merge that into its base first "
            "(merge_and_unload of peft), and give what comes of it as the model."
        )
        raise ModelLoadError(msg)
    has_tokenizer = any(_has_file(source, file, revision, token) for file in _TOKENIZER_FILES)
    return Parts(place, base_revision, Adapter(source, source, revision), source if has_tokenizer else place)


def find_adapter(adapter: str | os.PathLike[str], token: str | bool | None) -> Adapter:
    """Find an adapter, and download it if it is one of the Hub, which is not asked again when it is read.

    Args:
        adapter: Its folder or id.
        token: Access token of the Hub.

    Raises:
        InvalidParameterError: It is neither.
        ModelLoadError: It is not where its name says, or is no adapter.
    """
    name = str(adapter)
    place, _ = check_source(adapter, holds=ADAPTER, token=token)
    if not Path(place).is_dir():
        with explained(name, place):
            place = snapshot_download(place, token=token, allow_patterns=list(_ADAPTER_FILES))
    if not (Path(place) / _CONFIG_FILE).is_file():
        msg = (
            f"There is no adapter in {name!r}: it has no adapter_config.json. Give the folder that PEFT saved an "
            "adapter to, or the id of one on the Hugging Face Hub."
        )
        raise ModelLoadError(msg)
    return Adapter(name, place)


def check_mergeable(parts: Parts, quantization: object) -> None:
    """Raise an `UnsupportedModelError` where an adapter would have to be merged into weights that come quantised.

    Args:
        parts: What was found.
        quantization: The `quantization_config` that is given or that the base comes with; None: neither.
    """
    if parts.adapter is not None and quantization is not None:
        msg = (
            f"{parts.adapter.name} cannot be merged into quantised weights without changing its text. Load "
            f"{parts.source} without quantisation, or save the merged model and quantise that."
        )
        raise UnsupportedModelError(msg)


def merged(model: Any, parts: Parts, token: str | bool | None) -> Any:
    """The model with its adapter merged into its weights, which are written to.

    Raises:
        MissingDependencyError: PEFT is not installed, or does not fit the version of transformers.
        UnsupportedModelError: An adapter of this kind cannot be merged.
        ModelLoadError: The adapter cannot be read, or is for another model.
    """
    adapter = parts.adapter
    assert adapter is not None  # noqa: S101
    tuned = tuned_by(model, adapter, parts.source, token)
    with explained(f"the adapter {adapter.name}", adapter.place):
        if not hasattr(tuned.base_model, "merge_and_unload"):
            kind = kind_of(tuned.active_peft_config)
            msg = f"{adapter.name} is an adapter of the kind {kind}, which PEFT cannot merge into a model."
            raise UnsupportedModelError(msg)
        _untie(model)
        return tuned.merge_and_unload(safe_merge=True)


def tuned_by(model: Any, adapter: Adapter, base: str, token: str | bool | None) -> Any:
    """PEFT's model of a base and an adapter, whose layers stand in the base.

    Args:
        model: The base.
        adapter: The adapter.
        base: What the base is called, for messages.
        token: Access token of the Hub.

    Raises:
        MissingDependencyError: PEFT is not installed, or does not fit the version of transformers.
        UnsupportedModelError: An adapter of this kind has no weights beside the model's.
        ModelLoadError: The adapter cannot be read, or is for another model.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:  # also of a PEFT that is too old for this version of transformers
        msg = (
            f"{adapter.name} is an adapter, and reading it takes PEFT, which cannot be imported ({error}): "
            f"{install_command('adapters', upgrade=True)}. Or merge it into the model elsewhere, and save that."
        )
        raise MissingDependencyError(msg) from error

    hub: dict[str, Any] = {"token": token, "revision": adapter.revision}
    hub = {key: value for key, value in hub.items() if value is not None}
    with explained(f"the adapter {adapter.name}", adapter.place):
        config = PeftConfig.from_pretrained(adapter.place, **hub)
        config.inference_mode = True
        if config.is_prompt_learning or config.is_adaption_prompt:
            msg = (
                f"{adapter.name} is an adapter of the kind {kind_of(config)}, which has no weights for the model's "
                "layers. LoRA and its kin work."
            )
            raise UnsupportedModelError(msg)
        tuned = PeftModel(model, config)
        try:
            keys = tuned.load_adapter(adapter.place, "default", **hub)
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            named = f", which it names {config.base_model_name_or_path!r}" if config.base_model_name_or_path else ""
            msg = f"it changes layers of other shapes than those of {base}. Give the base that it was made for{named}."
            raise ValueError(msg) from error
        if not_read := sorted({*keys.missing_keys, *keys.unexpected_keys}):
            msg = (
                f"the weights that it holds are not those that a {type(model).__name__} takes by its "
                f"adapter_config.json ({len(not_read)} differ, such as {not_read[0]}). Is {base} its base?"
            )
            raise ValueError(msg)
        return tuned


def _untie(model: torch.nn.Module) -> None:
    """Give the layers that an adapter changes weights of their own: merged into a tied one, it changes both ends."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    for module in model.modules():
        layer: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else None
        weight = getattr(layer, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and uses[id(weight)] > 1:
            uses[id(weight)] -= 1
            layer.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
            config: Any = model.config
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False


def check_without_adapters(model: torch.nn.Module, name: str) -> None:
    """Raise an `UnsupportedModelError` where a loaded model has an adapter in it, which its caller may switch."""
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        msg = (
            f"{name} has adapters that another backend chooses among. Give the base's id or folder, and adapters= once "
            "more."
        )
        raise UnsupportedModelError(msg)
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        msg = (
            f"{name} has an adapter in it. Merge it first, model = model.merge_and_unload() of a PeftModel; or give "
            "the base's id or folder, and adapter= with the folder or id of the adapter."
        )
        raise UnsupportedModelError(msg)


def kind_of(config: Any) -> str:
    """The kind of an adapter by its configuration, such as "LORA"."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def _adapter_config(source: str, name: str, revision: str | None, token: str | bool | None) -> dict[str, Any] | None:
    """What stands in an adapter's adapter_config.json; None where there is none."""
    with explained(name, source):
        # A model that was downloaded is none, and a hub out of reach would be asked for half a minute.
        is_model = not Path(source).is_dir() and isinstance(
            try_to_load_from_cache(source, "config.json", revision=revision), str
        )
        path = find_adapter_config_file(source, revision=revision, token=token, local_files_only=is_model)
        if path is None:
            return None
        config = json.loads(Path(path).read_bytes())
        if not isinstance(config, dict):
            msg = "adapter_config.json holds no JSON object."
            raise TypeError(msg)
        return config


def _has_file(source: str, file: str, revision: str | None, token: str | bool | None) -> bool:
    if Path(source).is_dir():
        return (Path(source) / file).is_file()
    found = cached_file(
        source, file, revision=revision, token=token, _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return found is not None
