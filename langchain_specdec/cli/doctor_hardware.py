"""What is installed against what the machine has: PyTorch's build and the GPU, threads and cores, memory and models."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from langchain_specdec.cli.doctor_finding import Finding

_GIB = 2**30
_SECONDS = 10
_PYTORCH = "https://pytorch.org/get-started/locally/"
_PROC = Path("/proc")
_SYS = Path("/sys")
_DISPLAYS = "0x03"  # classes of PCI devices that show pictures or compute them
_MAKERS = {"0x10de": "NVIDIA", "0x1002": "AMD"}
_UNSEEN = "PyTorch sees no GPU: look at its driver, and in a container at what it is given (docker run --gpus all)."
# A parameter in float32 and a quarter of that for the texts and the work.
_BYTES_OF_PARAMETER = 5
# What a thread of the native decoder works in, for models of some billions of parameters; see `work_bytes`.
_BYTES_OF_THREAD = 0.12e9
# What a short answer of the embedded model takes, of all that there are the smallest: by the native decoder, and where
# it is dequantised.
_SMALLEST, _SMALLEST_DEQUANTISED = 0.5 * _GIB, 1.0 * _GIB


@dataclass(frozen=True)
class Machine:
    """What was found, of the machine and of PyTorch's build.

    Attributes:
        system: "Linux", "Darwin" or "Windows".
        processor: Its architecture, such as "x86_64".
        is_64bit: Whether this Python is.
        is_musl: Whether its C library is musl.
        instructions: What an x86 processor can do of "avx2", "avx512f" and "amx_tile".
        gpus: Makers of the GPUs, "NVIDIA" or "AMD", and their names where they are known.
        driver: Version of NVIDIA's driver; "" without one.
        driver_cuda: Newest CUDA that it runs; "" where it does not tell.
        cores: That this process may run on.
        quota: Cores' worth of time that its container allows it; None without a limit.
        free_memory: Bytes that it can take.
        memory_limit: Bytes that its container allows it; None without a limit.
        torch_cuda: CUDA that PyTorch is built for; "" for a build without it.
        torch_rocm: ROCm that it is built for.
        num_devices: GPUs that PyTorch can use.
        threads: That PyTorch computes with.
        decoder_threads: Those of the native decoder; 0 where there is none.
        capability: Instructions that it uses on an x86 processor: "AVX512", "AVX2" or "DEFAULT".
        hidden: Value of CUDA_VISIBLE_DEVICES; None where it is not set.
    """

    system: str = "Linux"
    processor: str = "x86_64"
    is_64bit: bool = True
    is_musl: bool = False
    instructions: frozenset[str] = frozenset({"avx2"})
    gpus: tuple[tuple[str, str], ...] = ()
    driver: str = ""
    driver_cuda: str = ""
    cores: int = 1
    quota: float | None = None
    free_memory: int = 8 * _GIB
    memory_limit: int | None = None
    torch_cuda: str = ""
    torch_rocm: str = ""
    num_devices: int = 0
    threads: int = 1
    decoder_threads: int = 0
    capability: str = "AVX2"
    hidden: str | None = None


def findings(machine: Machine) -> list[Finding]:
    """What fits and what does not."""
    return [*_python(machine), _build(machine), _instructions(machine), _threads(machine), _memory(machine)]


def _python(machine: Machine) -> Iterator[Finding]:
    if not machine.is_64bit:
        yield Finding("Python", "32-bit", "error", "Install a 64-bit Python: PyTorch has no build for this one.")
    if machine.is_musl:
        advice = "PyTorch and llguidance have no packages for musl: use a system with glibc, such as Debian's image."
        yield Finding("C library", "musl (Alpine)", "error", advice)


def _build(machine: Machine) -> Finding:
    name = "PyTorch build"
    if machine.torch_rocm:
        value = f"for ROCm {machine.torch_rocm}: nothing of this package was tested on it"
        return Finding(name, value, "ok" if machine.num_devices else "warning", "" if machine.num_devices else _UNSEEN)
    mine = f"for CUDA {machine.torch_cuda}" if machine.torch_cuda else "without CUDA"
    makers = dict(reversed(machine.gpus))
    if "NVIDIA" in makers:
        return _build_for_nvidia(machine, mine, makers["NVIDIA"] or "an NVIDIA GPU")
    if "AMD" in makers:
        advice = f"PyTorch has a build for ROCm ({_PYTORCH}); nothing of this package was tested on it."
        return Finding(name, f"{mine}; there is an AMD GPU, which it cannot use", "info", advice)
    if machine.torch_cuda and not machine.num_devices:
        advice = f"It works. PyTorch's build for CPUs saves some 4 GB: {_PYTORCH} shows its command."
        return Finding(name, f"{mine}, and no NVIDIA GPU is here", "info", advice)
    if machine.system == "Darwin":
        return Finding(name, "for macOS: runs on the CPU unless asked for MPS, which was not tested", "ok")
    return Finding(name, mine if machine.torch_cuda else "for CPUs, as this machine needs", "ok")


def _build_for_nvidia(machine: Machine, mine: str, model: str) -> Finding:
    name = "PyTorch build"
    if not machine.torch_cuda:
        newest = f" for CUDA {machine.driver_cuda} or older" if machine.driver_cuda else " for CUDA"
        advice = f"Install PyTorch's build{newest}, as {_PYTORCH} shows, with --force-reinstall."
        return Finding(name, f"{mine}, so {model} is not used", "warning", advice)
    # A driver runs every CUDA of its major version and of older ones.
    if machine.driver_cuda and _major(machine.driver_cuda) < _major(machine.torch_cuda):
        advice = (
            f"Update the driver to one for CUDA {_major(machine.torch_cuda)}, or install PyTorch's build for CUDA "
            f"{machine.driver_cuda} or older, as {_PYTORCH} shows."
        )
        value = f"{mine}, but the driver {machine.driver} of {model} runs CUDA {machine.driver_cuda} at most"
        return Finding(name, value, "warning", advice)
    if machine.num_devices:
        return Finding(name, f"{mine}, as {model} needs", "ok")
    if machine.hidden is not None:
        advice = "Unset CUDA_VISIBLE_DEVICES, or set it to numbers of GPUs, such as 0."
        value = f"{mine}, but CUDA_VISIBLE_DEVICES={machine.hidden!r} leaves it no GPU"
        return Finding(name, value, "warning", advice)
    if not machine.driver:
        advice = "Install NVIDIA's driver; in a container, give it the GPU (docker run --gpus all)."
        return Finding(name, f"{mine}, but {model} has no driver here", "warning", advice)
    return Finding(name, f"{mine}, but it cannot use {model}", "warning", _UNSEEN)


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _instructions(machine: Machine) -> Finding:
    name = "instructions"
    if machine.processor.lower() not in ("x86_64", "amd64"):
        own = (
            "the native decoder has NEON"
            if machine.processor.lower() in ("aarch64", "arm64")
            else "none of this package"
        )
        return Finding(name, f"{machine.processor}: {own}, and all else PyTorch's own operators")
    if machine.capability == "DEFAULT":
        if machine.instructions & {"avx2", "avx512f"}:
            advice = "Unset ATEN_CPU_CAPABILITY, or install PyTorch anew: it uses neither AVX2 nor AVX-512 here."
            return Finding(name, "AVX2, which PyTorch does not use", "warning", advice)
        advice = "In a virtual machine, pass the host's processor through; else expect a few tokens per second."
        return Finding(name, "neither AVX2 nor AVX-512: slow, without the kernels of this package", "warning", advice)
    used = {"AVX512": "AVX-512"}.get(machine.capability, machine.capability)
    if machine.capability == "AVX2" and "avx512f" in machine.instructions:
        used += "; AVX-512 is there, but PyTorch does not use it"
    elif "amx_tile" in machine.instructions:
        used += "; AMX, which is for 16-bit weights, is not used"
    return Finding(name, used, "ok")


def _threads(machine: Machine) -> Finding:
    name = "threads"
    allowed = machine.cores if machine.quota is None else min(machine.cores, machine.quota)
    share = f"{allowed:.3g} of {machine.cores} cores, by its container" if allowed < machine.cores else (
        f"{machine.cores} {'core' if machine.cores == 1 else 'cores'}"
    )  # fmt: skip
    value = f"{machine.threads} for {share}"
    # Who takes more than the quota is stopped for the rest of each tenth of a second, threads that others wait for too.
    if machine.threads > max(allowed, 1):
        advice = f"Set OMP_NUM_THREADS={max(int(allowed), 1)}: more threads than cores wait for one another."
        return Finding(name, value, "warning", advice)
    return Finding(name, value, "ok")


def _memory(machine: Machine) -> Finding:
    limit = f" of the {machine.memory_limit / _GIB:.1f} that its container allows" if machine.memory_limit else ""
    room = max(machine.free_memory - machine.decoder_threads * _BYTES_OF_THREAD, 0) / _BYTES_OF_PARAMETER / 1e9
    value = f"{machine.free_memory / _GIB:.1f} GiB free{limit}: room for some {room:.2g} billion parameters in float32"
    smallest = _SMALLEST if machine.decoder_threads else _SMALLEST_DEQUANTISED
    if machine.free_memory < smallest:
        advice = (
            f"Even the embedded model needs some {smallest / _GIB:.1f} GiB: end other programs, or give the container "
            "more memory."
        )
        return Finding("room", value, "warning", advice)
    return Finding("room", value, "ok")


def look() -> Machine:
    """Find all of it out. What the system does not tell is left as if it were not there."""
    import torch

    from langchain_specdec.bench.machine import num_cores
    from langchain_specdec.models.memory import cpu_quota, default_threads, free_memory, memory_limit
    from langchain_specdec.runner.cpu.decoder_trial import native_library

    nvidia = _nvidia_smi()
    names = re.findall(r"Product Name\s*:\s*(.+)", nvidia)
    return Machine(
        system=platform.system(),
        processor=platform.machine(),
        is_64bit=sys.maxsize > 2**32,
        is_musl=platform.system() == "Linux" and _is_musl(),
        instructions=_flags(),
        gpus=tuple(("NVIDIA", name.strip()) for name in names) or tuple(_pci_gpus()),
        driver=_first(r"Driver Version\s*:\s*([\d.]+)", nvidia) or _driver(),
        driver_cuda=_first(r"CUDA(?: UMD)? Version\s*:\s*(\d[\d.]*)", nvidia),
        cores=num_cores() or 1,
        quota=cpu_quota(),
        free_memory=free_memory(torch.device("cpu")),
        memory_limit=memory_limit(),
        torch_cuda=torch.version.cuda or "",
        torch_rocm=torch.version.hip or "",
        num_devices=torch.cuda.device_count(),
        threads=torch.get_num_threads(),
        decoder_threads=0 if native_library() is None else default_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _nvidia_smi() -> str:
    """What NVIDIA's tool says of the GPUs; "" where it does not run. WSL keeps it in a folder of its own."""
    tool = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if tool is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - NVIDIA's tool
            [tool, "-q"], capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _driver() -> str:
    with contextlib.suppress(OSError):
        text = (_PROC / "driver/nvidia/version").read_text(encoding="utf-8")
        return _first(r"\b(\d{3,}\.[\d.]+)", text)
    return ""


def _pci_gpus() -> Iterator[tuple[str, str]]:
    """Makers of the GPUs that the system sees, which has no need of their drivers."""
    for device in sorted((_SYS / "bus/pci/devices").glob("*")):
        with contextlib.suppress(OSError):
            maker = _MAKERS.get((device / "vendor").read_text(encoding="utf-8").strip())
            if maker and (device / "class").read_text(encoding="utf-8").startswith(_DISPLAYS):
                yield maker, ""


def _is_musl() -> bool:
    return platform.libc_ver()[0] != "glibc" and any(Path("/lib").glob("ld-musl-*"))


def _flags() -> frozenset[str]:
    with contextlib.suppress(OSError):
        text = (_PROC / "cpuinfo").read_text(encoding="utf-8")
        return frozenset(_first(r"^flags\s*:(.*)$", text).split()) & {"avx2", "avx512f", "amx_tile"}
    return frozenset()


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else ""
