"""Memory of this process: how much there is to take, and giving back what was freed."""

from __future__ import annotations

import ctypes

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device; what the system holds of files it gives up on demand."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available


def give_back_freed() -> None:
    """Hand memory that was freed back to the system, where the C library keeps it otherwise.

    glibc keeps freed blocks of up to 32 MiB for the next allocation of their kind: after a model of 540 MB, some
    400 MB. Elsewhere this does nothing.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
