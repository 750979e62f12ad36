"""How a kernel of ours is compiled: sources, flags and commands. It needs Python alone: a wheel is built by it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PREBUILT = Path(__file__).parent / "prebuilt"
"""Where a platform wheel has libraries; there is no such folder in a checkout and in a pure wheel."""

VECTOR_FLAGS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
}
"""By what PyTorch finds the processor to be able to: half precision came before AVX2, and its AVX512 is these four."""

# NEON is part of all 64-bit ARM processors.
_ARM = ("aarch64", "arm64")
_COMMON = ("-O3", "-std=c++17", "-fPIC")
_SUFFIXES = (".cpp", ".h")
_FOLDER = Path(__file__).parent


def sources_of(name: str) -> list[Path]:
    """What a kernel is compiled of, headers included: a file of that name, or all in a folder."""
    folder = _FOLDER / name
    if not folder.is_dir():
        return [_FOLDER / f"{name}.cpp", *sorted(_FOLDER.rglob("*.h"))]
    headers = sorted(_FOLDER.glob("*.h"))
    return [path for path in (*sorted(folder.iterdir()), *headers) if path.suffix in _SUFFIXES]


def flags_of(name: str, machine: str, capability: str) -> tuple[str, ...] | None:
    """A kernel's flags for a processor; None where there is no kernel for it.

    Args:
        name: Of the kernel.
        machine: As `platform.machine()` has it.
        capability: As `torch.backends.cpu.get_cpu_capability()` has it.
    """
    is_folder = (_FOLDER / name).is_dir()
    # What is in one file runs on x86-64 only.
    flags: tuple[str, ...] | None = () if is_folder and machine.lower() in _ARM else VECTOR_FLAGS.get(capability)
    return None if flags is None else (*flags, "-pthread" if is_folder else "-fopenmp")


def identity_of(sources: Sequence[Path], *words: str) -> str:
    """A digest of sources and of what else a library depends on, such as flags."""
    texts = [path.read_text(encoding="utf-8") for path in sources]
    return hashlib.sha256("\0".join((*texts, *words)).encode()).hexdigest()


def prebuilt_name(name: str, machine: str, flags: Sequence[str]) -> str:
    """The file that a platform wheel has a kernel in. Its sources and flags are in the name, so that none is stale."""
    return f"{name}-{identity_of(sources_of(name), machine.lower(), *_COMMON, *flags)[:32]}.so"


def build(
    compiler: Sequence[str],
    sources: Sequence[Path],
    flags: Sequence[str],
    linked: Path,
    run: Callable[[list[str]], object],
    *,
    num_jobs: int = 1,
    link_flags: Sequence[str] = (),
) -> None:
    """Compile a library.

    Args:
        compiler: Its command.
        sources: See `sources_of`.
        flags: See `flags_of`.
        linked: What to write; object files are put beside it.
        run: Runs a command, and raises if it fails.
        num_jobs: Compilers at a time; each takes seconds.
        link_flags: For linking alone.
    """
    units = [path for path in sources if path.suffix == ".cpp"]
    compiled = [linked.with_name(f"{linked.stem}-{path.stem}.o") for path in units]
    command = [*compiler, *_COMMON, *flags]
    with ThreadPoolExecutor(num_jobs) as pool:
        commands = [[*command, "-c", str(unit), "-o", str(made)] for unit, made in zip(units, compiled, strict=True)]
        list(pool.map(run, commands))
    # Without -fopenmp: the names of OpenMP's functions are found in the library that PyTorch has loaded.
    threads = ["-pthread"] if "-pthread" in flags else []
    run([*compiler, "-shared", *threads, *map(str, compiled), *link_flags, "-o", str(linked)])
