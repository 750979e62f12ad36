"""The records of a check: one JSON object a line, on the disk as soon as it is made."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

_NAME = "gpu.jsonl"


def note(out: Path, **values: Any) -> None:
    """Append a record to those of a folder.

    Args:
        out: The folder.
        values: What it holds; `at`, in seconds since 1970, is added. What JSON does not know is written as text.
    """
    line = json.dumps({**values, "at": round(time.time(), 2)}, default=str) + "\n"
    with (out / _NAME).open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read(out: Path) -> list[dict[str, Any]]:
    """The records of a folder so far."""
    path = out / _NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
