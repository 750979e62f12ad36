"""Trials of faster ways to run a forward."""

from __future__ import annotations

import threading
from typing import Literal

__all__ = ["CompileMode", "making_seconds"]

_spent = threading.local()


def making_seconds() -> float:
    """Time that this thread has spent on making graphs. It is no part of what steps cost."""
    return getattr(_spent, "seconds", 0.0)


CompileMode = Literal["auto", "off", "reduce-overhead", "max-autotune"]
