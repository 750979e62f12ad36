"""Kernels of our own in C++, for what neither PyTorch nor oneDNN does fast: decoding a few tokens on a CPU.

A kernel is one source file beside this one, or a folder of them with threads of its own. It is compiled when it is
first needed, which takes seconds, and kept in the user's cache folder, if there is one; a platform wheel brings some
that are compiled. Each has a module of the engine that tests it and calls it.
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
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from langchain_specdec.errors import SpecDecError
from langchain_specdec.paths import cache_folder, read_own, write_own
from langchain_specdec.progress import tell
from langchain_specdec.runner.cpu.compiler import WITHOUT, compiler_command, find_compiler
from langchain_specdec.runner.cpu.kernels import recipe

__all__ = ["tested_kernel"]

_Kernel = TypeVar("_Kernel")

_logger = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
_BUILD_SECONDS = 120
_COMPILING = "Compiling the kernels for this CPU"


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
    flags = recipe.flags_of(name, platform.machine(), torch.backends.cpu.get_cpu_capability())
    if flags is None or sys.platform != "linux":
        return None
    try:
        kernel = wrap(_prebuilt(name, flags) or _library(name, flags))
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


def _prebuilt(name: str, flags: tuple[str, ...]) -> ctypes.CDLL | None:
    """What a platform wheel brought, if it was compiled of the sources that are here."""
    path = recipe.PREBUILT / recipe.prebuilt_name(name, platform.machine(), flags)
    if not path.is_file():
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        _logger.info("The kernel %s that was installed cannot be loaded, so it is compiled: %s", name, error)
        return None


def _library(name: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Load what an earlier run compiled, or compile it.

    Raises:
        OSError: There is no compiler, or what it made cannot be loaded.
        subprocess.SubprocessError: It failed.
    """
    compiler, sources = compiler_command(), recipe.sources_of(name)
    name = f"{name}-{recipe.identity_of(sources, *compiler, *flags)[:16]}"
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
        if find_compiler() is not None:
            tell(_COMPILING, 0, 1)
            _logger.info("%s, which takes some seconds and is done once: %s", _COMPILING, name)
        recipe.build(compiler, sources, flags, linked, _run, num_jobs=os.cpu_count() or 1)
        tell(_COMPILING, 1, 1)
        content = linked.read_bytes()
        library = ctypes.CDLL(str(linked))
    if folder is None:
        _warn_not_kept("the home folder is unknown")
        return library
    try:
        write_own(folder / f"{name}-{_digest(content)}.so", content)
    except OSError as error:
        _warn_not_kept(f"{folder} cannot be written to ({error.strerror or error})")
    return library


def _cache_folder() -> Path | None:
    """Where kernels are kept; None for a user without a home folder, whose kernels are compiled in each process."""
    try:
        return cache_folder()
    except SpecDecError as error:
        _logger.debug("kernels are not kept: %s", error)
        return None


@functools.cache
def _warn_not_kept(why: str) -> None:
    """Some ten seconds in each process, for which nothing else gives a reason."""
    _logger.warning(
        "The engine's own kernels cannot be kept, so each process compiles them anew: %s. "
        "Set XDG_CACHE_HOME to a folder of your own.",
        why,
    )


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
