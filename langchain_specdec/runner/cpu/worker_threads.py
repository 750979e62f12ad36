"""The worker threads that parallel operators run on, and letting go of those that would only be in the way."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable

_SOFT = 1  # omp_pause_soft of the OpenMP specification, 5.0 and later
_known: list[Callable[[int], int]] = []


def release_workers() -> None:
    """End the calling thread's idle OpenMP workers. Its next parallel operator starts new ones, in some 0.1 ms.

    Each thread that ever ran a parallel operator keeps workers of its own. Where there are more of them than cores, as
    soon as a model was loaded in one thread and runs in another, GNU's OpenMP has all workers sleep at once after each
    operator, and a step waits for them to wake hundreds of times: a fifth of its time, measured on two cores.
    """
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


def use_one_worker() -> None:
    """Have the calling thread's parallel operators run in it alone; all other threads' go on as they did.

    For a thread whose forwards run on threads of their own: workers beside those would only wait, spinning.
    """
    import torch

    # PyTorch sets a thread's number at its first operator there, which would undo this.
    torch.get_num_threads()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).omp_set_num_threads(1)


def _pause() -> Callable[[int], int] | None:
    if not _known:
        try:
            # Of the OpenMP library that PyTorch has loaded; none on some systems, and none before PyTorch is loaded.
            _known.append(ctypes.CDLL(None).omp_pause_resource_all)
        except (AttributeError, OSError, TypeError):
            return None
    return _known[0]


# Workers do not live on in a forked child, but the thread that forked would wait for them there, for ever, at its next
# parallel operator. Without them it starts new ones, in parent and child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=release_workers)
