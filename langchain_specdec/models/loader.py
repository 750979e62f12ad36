"""Models and tokenizers by their name: GGUF files in their own bits, everything else by transformers.

What transformers reads is in `pretrained`, which is imported for it alone: that takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models import embedded
from langchain_specdec.models.common_vocabulary import ModelTokens
from langchain_specdec.models.devices import resolve_device, resolve_dtype
from langchain_specdec.models.gguf.config import read_config
from langchain_specdec.models.gguf.file import open_gguf
from langchain_specdec.models.gguf.model import GGUFModel, read_gguf
from langchain_specdec.models.gguf.source import local_gguf
from langchain_specdec.models.loaded_model import LoadedModel, eos_token_ids
from langchain_specdec.models.memory import give_back_freed
from langchain_specdec.models.model_source import check_source, means_gguf
from langchain_specdec.models.private_tokenizer import PrivateTokenizer, apart, check_tokenizer
from langchain_specdec.models.quantized_loading import option_of
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cpu.decoder_trial import native_library

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What only transformers can do for a model.
_NOT_NATIVE = ("device_map", "attn_implementation", "quantization", "adapter", "adapters")
_NOT_OF_GGUF = ("device_map", "quantization", "adapter", "adapters")


def load_model(
    model: str | os.PathLike[str] | PreTrainedModel | GGUFModel,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> LoadedModel:
    """Load a model and its tokenizer, or take ones that are loaded already.

    Args:
        model: Model id, local folder, GGUF file (`owner/name:file.gguf` on the Hub), `"embedded"`, or a loaded model.
            An adapter's id or folder stands for its base with the adapter merged into it.
        tokenizer: A loaded tokenizer; None loads the model's own.
        dtype: `"auto"` is the checkpoint's type on a GPU and float32 on CPU; else a torch dtype or its name.
        device: Where to put it; None is the best there is. Not together with `device_map`.
        progress: Told about each step of preparing the embedded model.
        options: As in `LocalOptions`: `device_map` (passed to transformers, for models spread over devices; needs
            accelerate), `revision` (branch, tag or commit of the model id), `attn_implementation` (None is the engine's
            own; `"sdpa"` and `"eager"` are transformers'), `adapter` (id or folder of a LoRA or another adapter that
            PEFT can merge into the weights), `adapters` (ids or folders of LoRAs by name, put beside them),
            `trust_remote_code` (whether code that comes with the model may run; off unless asked for), and `token`
            (access token of the Hugging Face Hub; None takes the one that is logged in). And `quantization`: `"int8"`
            or `"int4"`, which is the runner's to do on a CPU and transformers' on a GPU, or a `quantization_config` of
            transformers.

    Raises:
        UnsupportedModelError: The engine cannot run this kind of model. Raised before its weights are read.
        InvalidParameterError: Parameters contradict each other or do not exist. Raised before anything is read.
        ModelLoadError: The model or its tokenizer cannot be found or read, or weights are missing.
        MissingDependencyError: An adapter is to be merged, and PEFT is not installed, or too old; or the model is to be
            quantised on a GPU, and no package that does it is installed.
    """
    if tokenizer is not None:
        check_tokenizer(apart(tokenizer)[0])
    if isinstance(model, GGUFModel):
        _check_loaded(model, dtype, device, options)
        return _loaded(model, tokenizer)
    if isinstance(model, (str, os.PathLike)):
        is_native = _is_native(dtype, device, options)
        if (file := _gguf_file(model, options, is_native=is_native)) is not None:
            read = read_gguf(file, progress, name=str(model), with_tokenizer=tokenizer is None)
            # Imports and the tokenizer's building leave some 20 MB of holes.
            give_back_freed()
            loaded = replace(_loaded(read, tokenizer), is_owned=True)
            return loaded if is_native else _dequantised(loaded, dtype, device, options)
    from langchain_specdec.models.pretrained import load_pretrained

    adapters, token = options.pop("adapters", None), options.get("token")
    if adapters is None:
        return load_pretrained(model, tokenizer, dtype=dtype, device=device, progress=progress, **options)
    from langchain_specdec.models.named_adapters import find_adapters, put_beside

    found = find_adapters(adapters, model, token)
    loaded = load_pretrained(model, tokenizer, dtype=dtype, device=device, progress=progress, **options)
    by_row = put_beside(loaded.model, found, loaded.name, token)
    return replace(loaded, adapters=by_row, adapter_sources={name: each.name for name, each in found.items()})


def load_tokens(model: str | os.PathLike[str]) -> ModelTokens:
    """The tokens of a model, without its weights where those are not of a GGUF file.

    Raises:
        ModelLoadError: The model or its tokenizer cannot be found or read.
        UnsupportedModelError: The engine cannot run this kind of model.
    """
    name = str(model)
    if (file := _gguf_file(model, {}, is_native=True)) is not None:
        loaded = _loaded(read_gguf(file, name=name), None)
        return ModelTokens(name, loaded.private_tokenizer, loaded.model.config.get_text_config().vocab_size)
    from langchain_specdec.models.pretrained import tokens_of

    return tokens_of(model)


def load_config(model: str | os.PathLike[str]) -> Any:
    """The configuration of a model, without its weights.

    Raises:
        ModelLoadError: The model cannot be found or read.
        UnsupportedModelError: The engine cannot run this kind of model.
    """
    if (file := _gguf_file(model, {}, is_native=True)) is not None:
        return read_config(open_gguf(file))
    from langchain_specdec.models.pretrained import config_of

    return config_of(model)


def _gguf_file(source: str | os.PathLike[str], options: Mapping[str, Any], *, is_native: bool) -> Path | None:
    """The GGUF file that is meant; None where none is, or where the embedded model's folder does what is asked."""
    name = str(source)
    revision, token = options.get("revision"), options.get("token")
    if name == embedded.EMBEDDED_MODEL_ID:
        check_source(name, revision=revision)
        return embedded.gguf_file() if is_native else None
    if not means_gguf(source):
        return None
    if too_much := _asked_for(options, _NOT_OF_GGUF):
        msg = (
            f"{name} is a GGUF file, for which there is no {' and no '.join(too_much)}. Leave that out, or give the "
            "model that the file was made from, by its folder or its id on the Hugging Face Hub."
        )
        raise InvalidParameterError(msg)
    found, revision = check_source(source, revision=revision, token=token)
    return local_gguf(found, revision, token)


def _is_native(dtype: str | torch.dtype, device: str | torch.device | None, options: Mapping[str, Any]) -> bool:
    """Whether the native decoder can do what is asked of a GGUF file; else it is dequantised."""
    if any(options.get(name) is not None for name in _NOT_NATIVE) or not _is_float32(dtype):
        return False
    return resolve_device(device).type == "cpu" and native_library() is not None


def _dequantised(
    loaded: LoadedModel, dtype: str | torch.dtype, device: str | torch.device | None, options: Mapping[str, Any]
) -> LoadedModel:
    """The model as a module of transformers, for a GPU, another type, or a machine without the native decoder."""
    from langchain_specdec.models.gguf.to_transformers import to_transformers
    from langchain_specdec.models.pretrained import load_pretrained

    module = to_transformers(loaded.model)
    if not _is_float32(dtype):
        module = module.to(resolve_dtype(dtype, resolve_device(device)))
    placed = load_pretrained(
        module,
        loaded.private_tokenizer,
        device=resolve_device(device),
        attn_implementation=options.get("attn_implementation"),
    )
    return replace(placed, name=loaded.name, is_owned=True)


def _asked_for(options: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the options that are given, as the user calls them."""
    given = [name for name in names if options.get(name) is not None]
    return [option_of(options[name]) if name == "quantization" else name for name in given]


def _is_float32(dtype: str | torch.dtype) -> bool:
    return str(dtype).removeprefix("torch.") in ("auto", "float32")


def _check_loaded(
    model: GGUFModel, dtype: str | torch.dtype, device: str | torch.device | None, options: Mapping[str, Any]
) -> None:
    """Nothing that only loading can do may be asked of a loaded model."""
    given = {
        "dtype": not _is_float32(dtype),
        "revision": options.get("revision") is not None,
        "device": device is not None and resolve_device(device).type != "cpu",
    }
    if too_late := [*_asked_for(options, _NOT_NATIVE), *(name for name, is_given in given.items() if is_given)]:
        msg = (
            f"{model.name} is loaded already (in the bits of its GGUF file, on the CPU), which is too late for "
            f"{', '.join(too_late)}. Give the file instead."
        )
        raise InvalidParameterError(msg)


def _loaded(model: GGUFModel, tokenizer: Any) -> LoadedModel:
    if tokenizer is not None:
        private = PrivateTokenizer.of(apart(tokenizer)[0])
    elif model.private_tokenizer is not None:
        private = model.private_tokenizer.latest
    else:
        msg = f"{model.name} was loaded without its tokenizer: give tokenizer= too."
        raise InvalidParameterError(msg)
    return LoadedModel(model, private, model.name, eos_token_ids(model, private.copied))
