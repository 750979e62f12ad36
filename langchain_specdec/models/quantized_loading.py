"""How a model is loaded that is to be quantised: what may be asked for beside it, and what transformers is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models.devices import default_device
from langchain_specdec.models.embedded import EMBEDDED_MODEL_ID
from langchain_specdec.models.model_source import means_gguf


@dataclass(frozen=True)
class QuantizedLoading:
    """What is decided before anything is read.

    Attributes:
        by_runner: The word, where `make_runner` is to quantise; None: nothing, or transformers does.
        dtype: What to load the other weights in.
        config: The configuration of transformers; None: it does not quantise.
    """

    by_runner: str | None
    dtype: str | torch.dtype
    config: Any


def quantized_loading(
    quantization: Any, dtype: str | torch.dtype, device: torch.device, device_map: object
) -> QuantizedLoading:
    """Decide how to load what `quantization` asks for.

    Args:
        quantization: `"int8"`, `"int4"`, a configuration of transformers, or None.
        dtype: What the model would be loaded in; "auto" is the checkpoint's type, on a GPU.
        device: Where it goes without a `device_map`.
        device_map: For transformers.

    Raises:
        InvalidParameterError: Something else that is asked for contradicts it.
        MissingDependencyError: No package that quantises on a GPU is installed.
    """
    if not isinstance(quantization, str):
        return QuantizedLoading(None, dtype, quantization)
    if _is_cpu(device, device_map):
        if device_map is not None:
            msg = f"On a CPU, quantised to {quantization}, a model has no use for a device_map. Leave it out."
            raise InvalidParameterError(msg)
        if dtype != torch.float32:
            said = str(dtype).removeprefix("torch.")
            msg = f"On a CPU quantised weights are computed with in float32, got dtype={said!r}. Leave dtype out."
            raise InvalidParameterError(msg)
        return QuantizedLoading(quantization, dtype, None)
    from langchain_specdec.models.gpu_quantization import gpu_quantization_config

    if not isinstance(dtype, torch.dtype):
        dtype = torch.bfloat16
    return QuantizedLoading(None, dtype, gpu_quantization_config(quantization, dtype))


def check_quantizable(model: object, option: str, quantization: object) -> None:
    """Raise an `InvalidParameterError` where a model is to be quantised that is loaded, or in the bits of a GGUF file.

    Args:
        model: As the user gave it.
        option: `quantization` or `draft_quantization`.
        quantization: Its value.
    """
    if quantization is None:
        return
    if not isinstance(model, (str, os.PathLike)):
        kind = type(model).__name__
        msg = f"The {kind} is loaded already, which is too late for {option}. Leave it out, or give the model's id."
        raise InvalidParameterError(msg)
    if str(model) == EMBEDDED_MODEL_ID or means_gguf(model):
        msg = f"{model} comes in the bits of a GGUF file: leave {option} out, or give the model that it was made from."
        raise InvalidParameterError(msg)


def option_of(quantization: object) -> str:
    """What the user calls what was given: a word is `quantization`, and all else a `quantization_config`."""
    return "quantization" if isinstance(quantization, str) else "quantization_config"


def check_plain(model_config: Any, quantization: object, name: str) -> None:
    """Raise an `InvalidParameterError` where a model that is to be quantised by a word comes quantised."""
    found = getattr(model_config, "quantization_config", None)
    if not isinstance(quantization, str) or found is None:
        return
    method = found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)
    kind = f" ({getattr(method, 'value', method)})" if method else ""
    msg = f"{name} comes quantised{kind}, so it cannot be quantised to {quantization}: leave its quantization out."
    raise InvalidParameterError(msg)


def _is_cpu(device: torch.device, device_map: object) -> bool:
    """Whether all of a model goes to the CPU. What a map leaves open is decided as where there is none."""
    if device_map is None:
        return device.type == "cpu"
    named = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    kinds = {str(place).partition(":")[0] for place in named} - {"disk"}
    is_open = any(kind in ("auto", "balanced", "balanced_low_0", "sequential") for kind in kinds)
    return default_device().type == "cpu" if is_open else kinds <= {"cpu"}
