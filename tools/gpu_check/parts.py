"""The parts of the check: what each may take, and which are run together, in order of value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Part(NamedTuple):
    """One part.

    Attributes:
        box: Seconds at most.
        expected: Seconds that it should take.
        function: What it runs, `module:function`; called with the `Check`.
    """

    box: float
    expected: float
    function: str


class Phase(NamedTuple):
    """What one command runs.

    Attributes:
        name: Of the phase that the command belongs to.
        budget: Seconds at most, of all parts together.
        parts: Names of parts.
    """

    name: str
    budget: int
    parts: tuple[str, ...]

    @property
    def arguments(self) -> str:
        """What the command line says of it."""
        return f"--budget {self.budget} --parts {','.join(self.parts)}"


def _part(box: float, expected: float, module: str, function: str) -> Part:
    return Part(box, expected, f"tools.gpu_check.part_{module}:{function}")


PARTS: Mapping[str, Part] = {
    "env": _part(25, 12, "env", "env"),
    "mask": _part(35, 25, "mask", "mask"),
    "capture": _part(45, 35, "capture", "capture"),
    "unit": _part(80, 60, "unit", "unit"),
    "text": _part(55, 40, "text", "text"),
    "steps": _part(75, 55, "steps", "steps"),
    "profile": _part(30, 20, "profile", "profile"),
    "pair": _part(95, 80, "bench", "pair"),
    "flashspec": _part(60, 50, "bench", "flashspec"),
    "eight": _part(85, 70, "bench", "eight"),
    "embedded": _part(60, 45, "embedded", "embedded"),
    "batch": _part(45, 35, "batch", "batch"),
    "memory": _part(40, 30, "memory", "memory"),
}

PHASES = (
    Phase("A", 195, ("env", "mask", "capture", "unit", "text")),
    Phase("B", 25, ("env",)),
    Phase("B", 455, ("steps", "profile", "pair", "flashspec", "eight", "embedded", "batch", "memory")),
)
"""Phase A asks whether all is right, and is read before phase B, which asks how fast it is."""
