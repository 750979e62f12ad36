"""How long work on a device takes; and the lock on what stops the whole device, or may not be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

device_lock = threading.RLock()
"""Held while a CUDA graph is captured, and by all that waits for a whole GPU: that would break off the capture, in
whichever thread it is. Waiting for a stream that captures nothing harms nobody."""


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Seconds that an action takes, with the work that it leaves to the device.

    Args:
        action: Runs once.
        device: Where it leaves work, on this thread's stream.
    """
    _finish(device)
    started = time.perf_counter()
    action()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
