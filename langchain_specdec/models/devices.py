"""Where a model runs: the device that is asked for, or the best that was tried."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from langchain_specdec.errors import InvalidParameterError

# What a device_map may hold beside devices.
_PLACES = ("auto", "balanced", "balanced_low_0", "sequential", "disk")


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU. Apple's MPS has to be asked for: nothing was tested on it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device that is meant; None is `default_device`.

    Raises:
        InvalidParameterError: PyTorch does not know it, or this machine does not have it.
    """
    if device is None:
        return default_device()
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        msg = f"device must be one that PyTorch knows, such as 'cpu', 'cuda' or 'cuda:1', got {device!r}. {_found()}"
        raise InvalidParameterError(msg) from error
    if resolved.type == "meta":
        msg = f"Nothing can run on the device 'meta', which holds no numbers. {_found()}"
        raise InvalidParameterError(msg)
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise InvalidParameterError(_missing(device))
    try:
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise InvalidParameterError(_missing(device)) from error
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    """The numeric type that is meant; `"auto"` is float32 on a CPU and stays elsewhere.

    Raises:
        InvalidParameterError: There is none of that name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    resolved = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        msg = f"dtype must be 'auto', 'float32', 'bfloat16', 'float16' or a torch dtype, got {dtype!r}."
        raise InvalidParameterError(msg)
    return resolved


def check_device_map(device_map: object) -> None:
    """Raise an `InvalidParameterError` where a device_map names a device that is not here."""
    named = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    for device in named:
        if isinstance(device, (str, torch.device)) and str(device) not in _PLACES:
            resolve_device(device)


def _missing(device: object) -> str:
    return f"There is no device {str(device)!r} here. {_found()}"


def _found() -> str:
    """What there is, in a sentence, and what to do."""
    count = torch.cuda.device_count()
    found = ["cpu", *(f"cuda:{index}" for index in range(count))]
    if torch.backends.mps.is_available():
        found.append("mps")
    built = "" if count or torch.version.cuda else ", which is built without CUDA,"
    return f"PyTorch {torch.__version__}{built} sees {' and '.join(found)}. Name one, or leave device out."
