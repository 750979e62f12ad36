"""The command line of the check."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tools.gpu_check.parts import PARTS
from tools.gpu_check.time_boxes import run_parts, table

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def _interrupt(*_: Any) -> None:
    """Once: the part that runs is ended meanwhile, as it would go on without this process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run parts, and return 1 if one of them failed or none ran, 130 if this was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description="Check the engine on a GPU.")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-check-out")), help="Takes records.")
    parser.add_argument("--budget", type=float, default=sum(part.box for part in PARTS.values()), help="Seconds.")
    parser.add_argument("--parts", default=",".join(PARTS), help="Which, with commas, in order.")
    parser.add_argument("--rehearse", action="store_true", help="On a CPU, with tiny shapes.")
    arguments = parser.parse_args()
    names = arguments.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}. Parts: {', '.join(PARTS)}")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Boxes are made for a GPU; a rehearsal may be slow, as it is beside other work.
    boxes = {name: part._replace(box=10 * part.box) for name, part in PARTS.items()} if arguments.rehearse else PARTS
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        outcomes = run_parts(names, boxes, out, budget=arguments.budget, is_rehearsal=arguments.rehearse)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Records up to here are in {out / 'gpu.jsonl'}", flush=True)
        return 130
    print(f"\n{table(outcomes)}\n\nRecords are in {out / 'gpu.jsonl'}", flush=True)
    statuses = [outcome.status for outcome in outcomes if not outcome.status.startswith("left out")]
    return int(not statuses or any(status.startswith("failed") for status in statuses))


if __name__ == "__main__":
    sys.exit(main())
