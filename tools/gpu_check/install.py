"""Installs the wheels of a folder whose packages are not there, or only in older versions, without network."""

from __future__ import annotations

import importlib.util
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
    this = f"{sys.executable} (Python {'.'.join(map(str, sys.version_info[:3]))})"
    absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        sys.exit(f"{this} has no {' and no '.join(absent)}: set PYTHON to the interpreter that has.")
    found = list(missing(wheels))
    if not found:
        return
    print(f"Installing {len(found)} packages: {', '.join(wheel.name.split('-')[0] for wheel in found)}", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--root-user-action", "ignore"]
    # An older one that was installed there before has to go.
    if subprocess.run([*pip, "--upgrade", "--target", str(target), *map(str, found)], check=False).returncode:
        sys.exit(f"pip could not install them in {target}. They are for Python 3.12 on Linux x86_64; this is {this}.")


if __name__ == "__main__":
    main()
