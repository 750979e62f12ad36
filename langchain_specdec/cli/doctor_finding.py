"""One thing that the doctor has looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        value: What was found.
        status: `ok`; `warning` where something does not work without it; `error` where nothing does; `info` where
            either is fine.
        advice: What to do about it.
    """

    name: str
    value: str
    status: Literal["ok", "warning", "error", "info"] = "info"
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return asdict(self)
