"""How the progress of long work is told."""

from __future__ import annotations

from collections.abc import Callable

READING_WEIGHTS = "Reading the weights"
"""The step that is done each time a model is loaded; all others are done once."""
Progress = Callable[[str, int, int], None]
"""Told of long work: what is done, how much of it, of how much (bytes or steps)."""
