"""Memory of this process: how much there is to take, and giving back what was freed."""

from __future__ import annotations

import ctypes
import os

import torch

__all__ = ["free_memory", "give_back_freed"]


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        # Not every system tells; 4 GiB is there on any that runs a language model.
        return 4 * 2**30


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
