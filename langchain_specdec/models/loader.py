"""Models and tokenizers by their name: GGUF files in their own bits, everything else by transformers.

What transformers reads is in `pretrained`, which is imported for it alone: that takes seconds.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models import embedded
from langchain_specdec.models.devices import resolve_device
from langchain_specdec.models.gguf.model import GGUFModel, read_gguf
from langchain_specdec.models.gguf.source import local_gguf
from langchain_specdec.models.loaded_model import LoadedModel, eos_token_ids
from langchain_specdec.models.model_source import check_source, means_gguf
from langchain_specdec.models.private_tokenizer import check_tokenizer
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cpu.decoder_trial import native_library

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_logger = logging.getLogger(__name__)
# What only transformers can do for a model.
_NOT_NATIVE = ("device_map", "attn_implementation", "quantization_config", "adapter")


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
            An adapter's id or folder stands for its base
            with the adapter merged into it.
        tokenizer: A loaded tokenizer; None loads the model's own.
        dtype: `"auto"` is the checkpoint's type on a GPU and float32 on CPU; else a torch dtype or its name.
        device: Where to put it; None is the best there is. Not together with `device_map`.
        progress: Told about each step of preparing the embedded model.
        options: As in `LocalOptions`: `device_map` (passed to transformers, for models spread over devices; needs
            accelerate), `revision` (branch, tag or commit of the model id), `attn_implementation` (None is the engine's
            own; `"sdpa"` and `"eager"` are transformers'), `quantization_config` (passed to transformers), `adapter`
            (id or folder of a LoRA or another adapter that PEFT can merge into the weights), `trust_remote_code`
            (whether code that comes with the model may run; off unless asked for), and `token` (access token of the
            Hugging Face Hub; None takes the one that is logged in).

    Raises:
        UnsupportedModelError: The engine cannot run this kind of model. Raised before its weights are read.
        InvalidParameterError: Parameters contradict each other or do not exist. Raised before anything is read.
        ModelLoadError: The model or its tokenizer cannot be found or read, or weights are missing.
        MissingDependencyError: An adapter is to be merged, and PEFT is not installed, or too old.
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if isinstance(model, GGUFModel):
        _check_loaded(model, dtype, device, options)
        return _loaded(model, tokenizer)
    if str(model) == embedded.EMBEDDED_MODEL_ID and _is_native(dtype, device, options):
        file = embedded.gguf_file()
        if file is not None:
            name = embedded.EMBEDDED_MODEL_ID
            return _loaded(read_gguf(file, progress, name=name, with_tokenizer=tokenizer is None), tokenizer)
    if isinstance(model, (str, os.PathLike)) and str(model) != embedded.EMBEDDED_MODEL_ID and means_gguf(model):
        return _load_gguf(model, tokenizer, dtype, device, progress, options)
    from langchain_specdec.models.pretrained import load_pretrained

    return load_pretrained(model, tokenizer, dtype=dtype, device=device, progress=progress, **options)


def _load_gguf(
    model: str | os.PathLike[str],
    tokenizer: Any,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    progress: Progress | None,
    options: dict[str, Any],
) -> LoadedModel:
    """Load a model in the bits of its GGUF file, or where the native decoder cannot run it, dequantised."""
    name, placed = str(model), resolve_device(device)
    given = {option: options.get(option) is not None for option in _NOT_NATIVE}
    given["dtype"] = placed.type == "cpu" and not _is_float32(dtype)
    if unfit := [option for option, is_given in given.items() if is_given]:
        msg = (
            f"{name} is a GGUF file, which runs in the bits that it has, in float32 on a CPU. Leave out "
            f"{', '.join(unfit)}, or give the model that it was made from."
        )
        raise InvalidParameterError(msg)
    place = {option: options.get(option) for option in ("revision", "token")}
    source, place["revision"] = check_source(model, **place)
    read = read_gguf(local_gguf(source, **place), progress, name=name, with_tokenizer=tokenizer is None)
    tokenizer = read.tokenizer if tokenizer is None else tokenizer
    if placed.type == "cpu" and native_library() is not None:
        return _loaded(read, tokenizer)
    from langchain_specdec.models.gguf.to_transformers import to_transformers
    from langchain_specdec.models.pretrained import load_pretrained, resolve_dtype

    _logger.info("%s is dequantised: the native decoder, which runs GGUF files as they are, is not to be had.", name)
    made = to_transformers(read)
    if isinstance(kind := resolve_dtype(dtype, placed), torch.dtype):
        made = made.to(kind)
    return replace(load_pretrained(made, tokenizer, device=placed), is_owned=True)


def _is_native(dtype: str | torch.dtype, device: str | torch.device | None, options: dict[str, Any]) -> bool:
    """Whether the native decoder can do what is asked of a GGUF file; else it is dequantised."""
    if any(options.get(name) is not None for name in _NOT_NATIVE) or not _is_float32(dtype):
        return False
    return resolve_device(device).type == "cpu" and native_library() is not None


def _is_float32(dtype: str | torch.dtype) -> bool:
    return str(dtype).removeprefix("torch.") in ("auto", "float32")


def _check_loaded(
    model: GGUFModel, dtype: str | torch.dtype, device: str | torch.device | None, options: dict[str, Any]
) -> None:
    """Nothing that only loading can do may be asked of a loaded model."""
    given = {name: options.get(name) is not None for name in _NOT_NATIVE} | {
        "dtype": not _is_float32(dtype),
        "device": device is not None and resolve_device(device).type != "cpu",
    }
    if too_late := [name for name, is_given in given.items() if is_given]:
        msg = (
            f"{model.name} is loaded already (in the bits of its GGUF file, on the CPU), which is too late for "
            f"{', '.join(too_late)}. Give the file instead."
        )
        raise InvalidParameterError(msg)


def _loaded(model: GGUFModel, tokenizer: Any) -> LoadedModel:
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        msg = f"{model.name} was loaded without its tokenizer: give tokenizer= too."
        raise InvalidParameterError(msg)
    return LoadedModel(model, tokenizer, model.name, eos_token_ids(model, tokenizer))
