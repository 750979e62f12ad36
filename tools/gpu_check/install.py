"""Installs the wheels of a folder whose packages are not there, or only in older versions, without network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path


def missing(wheels: Path) -> Iterator[Path]:
    """The wheels of a folder whose packages Python finds in no version, or in an older one."""
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        found = [_numbers(distribution.version) for distribution in metadata.distributions(name=name)]
        if not found or max(found) < _numbers(version):
            yield wheel


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def main() -> None:
    """`python -m tools.gpu_check.install WHEELS TARGET`."""
    wheels, target = map(Path, sys.argv[1:])
    found = list(missing(wheels))
    print(f"Installing {len(found)} packages: {', '.join(wheel.name.split('-')[0] for wheel in found)}", flush=True)
    if found:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, *map(str, found)], check=True)


if __name__ == "__main__":
    main()
