"""Stop strings in a growing text."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Cuts a growing text at the first stop string and holds back what may become one.

    Args:
        stop: The stop strings.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.is_found = False

    def add(self, text: str) -> str:
        """Text that is safe to release, without the stop string if that is complete now."""
        if not self._stop:
            return text
        text = self._held + text
        positions = [position for position in (text.find(s) for s in self._stop) if position >= 0]
        if positions:
            self.is_found = True
            self._held = ""
            return text[: min(positions)]
        end = len(text) - max(overlap(text, s) for s in self._stop)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """What was held back; the text ended and it did not become a stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark` and is not all of it."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
