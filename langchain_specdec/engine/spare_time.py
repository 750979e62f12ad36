"""Time that plain decoding can spare: a small share of it, saved up for what may pay later."""

from __future__ import annotations

import math


class SpareTime:
    """Seconds saved up.

    Args:
        share: Of the time that is told, how much is saved.
        most_steps: Most that is saved up, in steps as the latest one.
    """

    def __init__(self, share: float, most_steps: float = math.inf) -> None:
        self._share = share
        self._most_steps = most_steps
        self._seconds = 0.0

    def save(self, step_seconds: float) -> None:
        """Save the share of a step."""
        self._seconds = min(self._seconds + self._share * step_seconds, self._most_steps * step_seconds)

    def holds(self, seconds: float) -> bool:
        """Whether so much has been saved up."""
        return self._seconds >= seconds

    def spend(self, seconds: float) -> bool:
        """Whether so much has been saved up; it is spent then. What is expected to save time itself is free."""
        if not self.holds(seconds):
            return False
        self.owe(seconds)
        return True

    def owe(self, seconds: float) -> None:
        """Spend what may not have been saved up yet."""
        self._seconds -= max(seconds, 0.0)
