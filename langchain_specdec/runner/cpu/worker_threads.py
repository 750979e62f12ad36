"""The worker threads that parallel operators run on, and letting go of those that would only be in the way."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

_SOFT = 1  # omp_pause_soft of the OpenMP specification, 5.0 and later


def release_workers() -> None:
    """End the calling thread's idle OpenMP workers. Its next parallel operator starts new ones, in some 0.1 ms.

    Each thread that ever ran a parallel operator keeps workers of its own. Where there are more of them than cores, as
    soon as a model was loaded in one thread and runs in another, GNU's OpenMP has all workers sleep at once after each
    operator, and a step waits for them to wake hundreds of times: a fifth of its time, measured on two cores.
    """
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@functools.cache
def _pause() -> Callable[[int], int] | None:
    try:
        # Of the OpenMP library that PyTorch has loaded; none on some systems.
        function: Callable[[int], int] = ctypes.CDLL(None).omp_pause_resource_all
    except (AttributeError, OSError, TypeError):
        return None
    return function
