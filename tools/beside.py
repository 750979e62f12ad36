"""Runs a command beside busy processes, and says how long it took: `python -m tools.beside 2 specdec demo`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from langchain_specdec.bench.neighbours import busy_neighbours

_USAGE = "python -m tools.beside PROCESSES COMMAND [ARGUMENT ...]"


def main(arguments: Sequence[str]) -> int:
    """Run it; what the command returned.

    Args:
        arguments: How many busy processes, the command, and its arguments.
    """
    if len(arguments) < 2 or not arguments[0].isdecimal():
        print(_USAGE, file=sys.stderr)
        return 2
    with busy_neighbours(int(arguments[0])):
        started = time.perf_counter()
        code = subprocess.run(arguments[1:], check=False).returncode
        seconds = time.perf_counter() - started
    print(f"{seconds:.1f} s beside {arguments[0]} busy processes", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
