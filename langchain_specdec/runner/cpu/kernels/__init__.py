"""Kernels of our own in C++, for what neither PyTorch nor oneDNN does fast: decoding a few tokens on a CPU.

A kernel is one source file beside this one, or a folder of them with threads of its own. It is compiled when it is
first needed, which takes seconds, and kept in the user's cache folder, if there is one. Each has a module of the engine
that tests it and calls it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from langchain_specdec.errors import SpecDecError
from langchain_specdec.paths import cache_folder, read_own, write_own
from langchain_specdec.runner.cpu.compiler import WITHOUT, compiler_command, find_compiler

__all__ = ["tested_kernel"]

_Kernel = TypeVar("_Kernel")

_logger = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
_BUILD_SECONDS = 120
# Compiler flags by what PyTorch finds the processor to be able to. Others would gain little.
_FLAGS = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx512f", "-mfma")}
# Of a folder: half-precision numbers came before AVX2, and PyTorch's AVX512 stands for these four.
_FOLDER_FLAGS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
}
_SUFFIXES = (".cpp", ".h")
# NEON is part of all 64-bit ARM processors.
_ARM = ("aarch64", "arm64")


def tested_kernel(
    name: str, purpose: str, wrap: Callable[[ctypes.CDLL], _Kernel], is_right: Callable[[_Kernel], bool]
) -> _Kernel | None:
    """The kernel of that name; None where there is none for this machine, or it fails its test here.

    Args:
        name: Of its source file, or of its folder.
        purpose: What it is for, in a message.
        wrap: Makes what calls it of its library.
        is_right: Its test.
    """
    sources, flags = _sources(name)
    if flags is None or sys.platform != "linux":
        return None
    try:
        kernel = wrap(_library(name, sources, flags))
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        if find_compiler() is None:
            _warn_once(compiler_command())
        reason = getattr(error, "stderr", None) or error
        _logger.info("No kernel %s on this CPU, PyTorch's own operators are used instead: %s", name, reason)
        return None
    if not is_right(kernel):
        _logger.warning("The kernel for %s computes something else on this CPU and is not used.", purpose)
        return None
    return kernel


@functools.cache
def _warn_once(command: tuple[str, ...]) -> None:
    """A debug message for each kernel beside, but one warning: what is slow has to be told why."""
    _logger.warning("There is no C++ compiler %s: %s.", shlex.join(command), WITHOUT)


def _sources(name: str) -> tuple[list[Path], tuple[str, ...] | None]:
    """What a kernel is compiled of, headers included, and its flags on this processor; None where there are none."""
    capability = torch.backends.cpu.get_cpu_capability()
    folder = _FOLDER / name
    if not folder.is_dir():
        alone = _FLAGS.get(capability)
        return [_FOLDER / f"{name}.cpp", *sorted(_FOLDER.glob("*.h"))], alone and (*alone, "-fopenmp")
    flags: tuple[str, ...] | None = () if platform.machine().lower() in _ARM else _FOLDER_FLAGS.get(capability)
    sources = [path for path in (*sorted(folder.iterdir()), *sorted(_FOLDER.glob("*.h"))) if path.suffix in _SUFFIXES]
    return sources, None if flags is None else (*flags, "-pthread")


def _library(name: str, sources: Sequence[Path], flags: tuple[str, ...]) -> ctypes.CDLL:
    """Load what an earlier run compiled, or compile it.

    Raises:
        OSError: There is no compiler, or what it made cannot be loaded.
        subprocess.SubprocessError: It failed.
    """
    compiler = compiler_command()
    texts = [path.read_text(encoding="utf-8") for path in sources]
    identity = hashlib.sha256("\0".join((*texts, *compiler, *flags)).encode()).hexdigest()
    name = f"{name}-{identity[:16]}"
    folder = _cache_folder()
    with tempfile.TemporaryDirectory(prefix="specdec-") as private:
        linked = Path(private) / f"{name}.so"
        content = _kept(folder, name) if folder is not None else None
        if content is not None:
            # Loaded from a copy, since nobody can change or cut short that one.
            linked.write_bytes(content)
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(linked))
            linked.unlink()
        _compile([*compiler, "-O3", "-std=c++17", "-fPIC", *flags], compiler, sources, linked)
        content = linked.read_bytes()
        library = ctypes.CDLL(str(linked))
    if folder is None:
        return library
    try:
        write_own(folder / f"{name}-{_digest(content)}.so", content)
    except OSError as error:
        _logger.debug("cannot keep %s in %s: %s", name, folder, error)
    return library


def _compile(command: list[str], compiler: Sequence[str], sources: Sequence[Path], linked: Path) -> None:
    units = [path for path in sources if path.suffix == ".cpp"]
    compiled = [linked.with_name(f"{path.stem}.o") for path in units]
    # As many at a time as there may be cores; each takes seconds.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = [[*command, "-c", str(unit), "-o", str(made)] for unit, made in zip(units, compiled, strict=True)]
        list(pool.map(_run, commands))
    # Without -fopenmp: the names of OpenMP's functions are found in the library that PyTorch has loaded.
    threads = ["-pthread"] if "-pthread" in command else []
    _run([*compiler, "-shared", *threads, *map(str, compiled), "-o", str(linked)])


def _cache_folder() -> Path | None:
    """Where kernels are kept; None for a user without a home folder, whose kernels are compiled in each process."""
    try:
        return cache_folder()
    except SpecDecError as error:
        _logger.debug("kernels are not kept: %s", error)
        return None


def _kept(folder: Path, name: str) -> bytes | None:
    """What an earlier run compiled, if this user did and it is whole: the digest in its name is its own.

    It runs in this process, so what others put into a shared folder must not.
    """
    for path in folder.glob(f"{name}-*.so"):
        content = read_own(path)
        if content is not None and path.stem == f"{name}-{_digest(content)}":
            return content
        _logger.info("%s is damaged, or could be changed by others, and is not used.", path)
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _run(command: list[str]) -> None:
    # The compiler is the one that the user's environment names; all else is ours.
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_SECONDS)  # noqa: S603
