"""Draws the plots of docs/benchmarks.md from the measurements beside them: `make plots`.

Each `NAME.json` is what `specdec bench --json` printed, and becomes `NAME.svg`, by the code of `specdec bench --plot`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from langchain_specdec.bench.plot import draw
from langchain_specdec.bench.report import Report

FOLDER = Path(__file__).resolve().parents[1] / "docs/benchmarks"
# As wide as the text of a page, so that letters keep their size.
INCHES = 10.0


def source_of(measurement: Path) -> str:
    """What the picture says that it was drawn from: the file and its content."""
    return f"{measurement.name}, sha256 {hashlib.sha256(measurement.read_bytes()).hexdigest()}"


def draw_plot(measurement: Path, to: Path) -> None:
    """Draw one measurement."""
    report = Report.from_dict(json.loads(measurement.read_text(encoding="utf-8")))
    draw(report, to, inches=INCHES, source=source_of(measurement))


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.json")):
        draw_plot(path, path.with_suffix(".svg"))
        print(f"wrote {path.with_suffix('.svg').relative_to(FOLDER.parents[1])}")
