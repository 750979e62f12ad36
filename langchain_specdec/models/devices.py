"""Where a model runs: the device that is asked for, or the best that was tried."""

from __future__ import annotations

import torch

from langchain_specdec.errors import InvalidParameterError


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
        msg = f"device must be one that PyTorch knows, such as 'cpu', 'cuda' or 'cuda:1', got {device!r}."
        raise InvalidParameterError(msg) from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        msg = f"There is no device {device!r}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} of CUDA."
        raise InvalidParameterError(msg)
    if resolved.type == "meta":
        msg = "Nothing can run on the device 'meta', which holds no numbers. Leave device out, or name another one."
        raise InvalidParameterError(msg)
    try:
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        msg = f"PyTorch {torch.__version__} can use no device {device!r} here. Leave device out for {default_device()}."
        raise InvalidParameterError(msg) from error
    return resolved
