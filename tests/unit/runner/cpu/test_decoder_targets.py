"""The native decoder on every kind of processor it is for, by itself: without Python, and emulated where need be."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from langchain_specdec.runner.cpu.kernels.recipe import VECTOR_FLAGS
from tests.support.decoder_cases import write_cases
from tests.support.source_code import ROOT

_DECODER = ROOT / "langchain_specdec/runner/cpu/kernels/decoder"
_SOURCES = [str(_DECODER / "decoder.cpp"), str(ROOT / "tests/native/check_decoder.cpp")]
_AVX2, _AVX512 = VECTOR_FLAGS["AVX2"], VECTOR_FLAGS["AVX512"]
_COMMON = ["-std=c++17", "-pthread", f"-I{_DECODER}"]
_CAPABILITY = torch.backends.cpu.get_cpu_capability()
pytestmark = [pytest.mark.process, pytest.mark.slow]


@dataclass(frozen=True)
class Target:
    """How the decoder is compiled for a processor, and run.

    Attributes:
        compiler: Its command.
        flags: For that processor.
        emulator: What runs it; empty: this machine.
        capabilities: Which processors run it without one, as PyTorch calls them.
    """

    compiler: str
    flags: tuple[str, ...]
    emulator: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()


TARGETS = {
    "avx512": Target("g++", ("-O3", *_AVX512), capabilities=("AVX512",)),
    "avx2": Target("g++", ("-O3", *_AVX2), capabilities=("AVX2", "AVX512")),
    # The processor with which AVX2 came.
    "avx2 emulated": Target("g++", ("-O3", *_AVX2), ("qemu-x86_64", "-cpu", "Haswell")),
    "neon emulated": Target("aarch64-linux-gnu-g++", ("-O3", "-static"), ("qemu-aarch64",)),
    # GCC 12 warns of its own intrinsics.
    "avx2 by clang": Target("clang++", ("-O3", "-Wall", "-Wextra", "-Werror", *_AVX2), capabilities=("AVX2", "AVX512")),
    "sanitized": Target(
        "g++",
        ("-O1", "-g", *_AVX2, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        capabilities=("AVX2", "AVX512"),
    ),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "cases"
    write_cases(path)
    return path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, tuple[str, ...]], Path]:
    """Compiles the check of the decoder, once for a compiler and its flags."""

    @functools.cache
    def compiled(compiler: str, flags: tuple[str, ...]) -> Path:
        path = tmp_path_factory.mktemp("compiled") / "check"
        subprocess.run([compiler, *flags, *_COMMON, *_SOURCES, "-o", str(path)], check=True)  # noqa: S603
        return path

    return compiled


@pytest.mark.parametrize("name", TARGETS)
def test_numbers_are_right_and_the_same_however_rows_are_batched(
    name: str, cases: Path, compiled: Callable[[str, tuple[str, ...]], Path]
) -> None:
    target = TARGETS[name]
    for program in (target.compiler, *target.emulator[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here (Debian: clang, g++-aarch64-linux-gnu, qemu-user)")
    if target.capabilities and _CAPABILITY not in target.capabilities:
        pytest.skip(f"this processor has {_CAPABILITY} only")
    command = [*target.emulator, str(compiled(target.compiler, target.flags)), str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.endswith(" checks, 0 failed\n")
