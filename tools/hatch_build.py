"""The build hook of wheels: with PREBUILD=x86_64 or aarch64, one that has the native decoder compiled in it.

Without that variable nothing is done, and the wheel is a pure one, whose decoder is compiled at its first use.
`PREBUILD_CXX` names the compiler, g++ or aarch64-linux-gnu-g++ as a rule.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # Outside of a build
    BuildHookInterface = object

KERNELS = Path("langchain_specdec/runner/cpu/kernels")
NAME = "decoder"
CAPABILITIES = {"x86_64": ("AVX2", "AVX512"), "aarch64": ("DEFAULT",)}
# The oldest glibc that a library runs with. auditwheel checks it when a release is made.
MANYLINUX = "manylinux_2_24"
# Distributions have a C++ library of their own, which may be older: what it takes to do without is inside, and hidden.
# Not so libgcc, whose newer one asks for a newer glibc.
LINK_FLAGS = (
    "-static-libstdc++", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-s",
    "-Wl,--wrap=pthread_create,--wrap=pthread_join,--wrap=pthread_detach",
)  # fmt: skip


def recipe_of(root: Path) -> ModuleType:
    """The package's own recipe, without the package, which imports PyTorch."""
    spec = importlib.util.spec_from_file_location("kernel_recipe", root / KERNELS / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler_for(machine: str) -> list[str]:
    """The compiler that makes programs for a machine."""
    default = "g++" if platform.machine() == machine else f"{machine}-linux-gnu-g++"
    return shlex.split(os.environ.get("PREBUILD_CXX", "")) or [default]


def prebuild(root: Path, machine: str, folder: Path) -> list[Path]:
    """Compile the decoder for each kind of processor of a machine.

    Args:
        root: Of the sources.
        machine: x86_64 or aarch64.
        folder: Where the libraries are put.

    Raises:
        SystemExit: The machine is another one, or the compiler fails.
    """
    if machine not in CAPABILITIES:
        sys.exit(f"PREBUILD={machine}: nothing is prebuilt for it, only for {' and '.join(CAPABILITIES)}.")
    recipe = recipe_of(root)
    compiler = compiler_for(machine)
    made = []
    with tempfile.TemporaryDirectory(prefix="prebuild-") as scratch:
        for capability in CAPABILITIES[machine]:
            flags = recipe.flags_of(NAME, machine, capability)
            linked = Path(scratch) / recipe.prebuilt_name(NAME, machine, flags)
            sources = [*recipe.sources_of(NAME), root / "tools/old_glibc.cpp"]
            recipe.build(compiler, sources, flags, linked, _run, link_flags=LINK_FLAGS)
            made.append(linked.replace(folder / linked.name))
    return made


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"cannot prebuild the decoder: {error}")


class PrebuildHook(BuildHookInterface):  # type: ignore[misc]
    """Called by hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        machine = os.environ.get("PREBUILD", "")
        if not machine or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="prebuilt-")
        for path in prebuild(Path(self.root), machine, Path(self._folder.name)):
            build_data["force_include"][str(path)] = str(KERNELS / "prebuilt" / path.name)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{MANYLINUX}_{machine}"
