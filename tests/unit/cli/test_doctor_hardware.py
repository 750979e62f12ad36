"""What the doctor says of PyTorch's build, threads and memory, for machines that these tests do not run on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_specdec.cli import doctor_hardware
from langchain_specdec.cli.doctor_finding import Finding
from langchain_specdec.cli.doctor_hardware import Machine, findings, look
from langchain_specdec.models import memory

GIB = 2**30
A10 = (("NVIDIA", "NVIDIA A10"),)
SMI = """==============NVSMI LOG==============
Driver Version                            : 535.183.01
CUDA Version                              : 12.2
Attached GPUs                             : 1
GPU 00000000:00:1E.0
    Product Name                          : NVIDIA A10
"""


def found(name: str, **facts: Any) -> Finding:
    (finding,) = (finding for finding in findings(Machine(**facts)) if finding.name == name)
    return finding


def test_a_machine_that_fits_needs_nothing():
    fitting = (
        Machine(),
        Machine(gpus=A10, driver="535.183.01", driver_cuda="12.2", torch_cuda="12.8", num_devices=1),
        Machine(system="Darwin", processor="arm64", capability="DEFAULT", instructions=frozenset()),
    )
    for machine in fitting:
        assert [
            finding for finding in findings(machine) if finding.advice or finding.status in ("warning", "error")
        ] == []


@pytest.mark.parametrize(
    ("facts", "status", "value", "advice"),
    [
        (
            {"gpus": A10, "driver": "535.183.01", "driver_cuda": "12.2"},
            "warning",
            "without CUDA, so NVIDIA A10 is not used",
            "build for CUDA 12.2 or older",
        ),
        (
            {"gpus": (("NVIDIA", ""),)},
            "warning",
            "so an NVIDIA GPU is not used",
            "PyTorch's build for CUDA, as https://",
        ),
        ({"torch_cuda": "13.0"}, "info", "for CUDA 13.0, and no NVIDIA GPU is here", "saves some 4 GB"),
        (
            {"gpus": A10, "driver": "535.183.01", "driver_cuda": "12.2", "torch_cuda": "13.0"},
            "warning",
            "but the driver 535.183.01 of NVIDIA A10 runs CUDA 12.2 at most",
            "Update the driver to one for CUDA 13, or install PyTorch's build for CUDA 12.2 or older",
        ),
        (
            {"gpus": A10, "driver": "580.1", "driver_cuda": "13.0", "torch_cuda": "13.0", "hidden": ""},
            "warning",
            "CUDA_VISIBLE_DEVICES='' leaves it no GPU",
            "Unset CUDA_VISIBLE_DEVICES",
        ),
        ({"gpus": A10, "torch_cuda": "13.0"}, "warning", "has no driver here", "Install NVIDIA's driver"),
        (
            {"gpus": A10, "driver": "580.1", "driver_cuda": "13.0", "torch_cuda": "13.0"},
            "warning",
            "but it cannot use NVIDIA A10",
            "docker run --gpus all",
        ),
        ({"gpus": (("AMD", ""),)}, "info", "there is an AMD GPU, which it cannot use", "build for ROCm"),
        ({"torch_rocm": "6.4", "num_devices": 1}, "ok", "nothing of this package was tested on it", ""),
        ({"torch_rocm": "6.4"}, "warning", "for ROCm 6.4", "PyTorch sees no GPU"),
    ],
)
def test_the_build_of_pytorch_and_the_gpu(facts, status, value, advice):
    finding = found("PyTorch build", **facts)
    assert finding.status == status
    assert value in finding.value
    assert advice in finding.advice
    assert bool(finding.advice) == bool(advice)


@pytest.mark.parametrize(
    ("facts", "status", "value", "advice"),
    [
        ({"cores": 64, "quota": 2.0, "threads": 64}, "warning", "64 for 2 of 64 cores", "OMP_NUM_THREADS=2"),
        ({"cores": 64, "quota": 0.5, "threads": 2}, "warning", "2 for 0.5 of 64 cores", "OMP_NUM_THREADS=1"),
        ({"cores": 64, "quota": 0.5, "threads": 1}, "ok", "1 for 0.5 of 64 cores", ""),
        ({"cores": 2, "quota": 8.0, "threads": 2}, "ok", "2 for 2 cores", ""),
        ({"cores": 2, "threads": 4}, "warning", "4 for 2 cores", "OMP_NUM_THREADS=2"),
        ({"cores": 8, "threads": 4}, "ok", "4 for 8 cores", ""),
    ],
)
def test_threads_and_the_cores_of_a_container(facts, status, value, advice):
    finding = found("threads", **facts)
    assert (finding.status, advice in finding.advice) == (status, True)
    assert finding.value.startswith(value)


def test_memory_and_what_fits_in():
    assert found("room", free_memory=10 * GIB).value == "10.0 GiB free: room for some 2.1 billion parameters in float32"
    contained = found("room", free_memory=GIB // 2, memory_limit=GIB)
    assert contained.status == "warning"
    assert "0.5 GiB free of the 1.0 that its container allows" in contained.value
    assert "Even the embedded model needs some 1.0 GiB" in contained.advice
    assert "give the container more memory" in contained.advice


def test_the_native_decoder_needs_less_for_the_embedded_model_and_room_for_each_thread():
    assert found("room", free_memory=GIB // 2 + 1, decoder_threads=2).status == "ok"
    short = found("room", free_memory=GIB // 2 - 1, decoder_threads=2)
    assert (short.status, "Even the embedded model needs some 0.5 GiB" in short.advice) == ("warning", True)
    many = found("room", free_memory=10 * GIB, decoder_threads=64)
    assert many.value.endswith("room for some 0.61 billion parameters in float32")
    assert found("room", free_memory=2 * GIB, decoder_threads=64).value.endswith("some 0 billion parameters in float32")


@pytest.mark.parametrize(
    ("facts", "status", "value"),
    [
        ({"capability": "AVX512", "instructions": frozenset({"avx2", "avx512f"})}, "ok", "AVX-512"),
        ({"capability": "AVX512", "instructions": frozenset({"avx512f", "amx_tile"})}, "ok", "AVX-512; AMX"),
        ({"instructions": frozenset({"avx2", "avx512f"})}, "ok", "AVX2; AVX-512 is there"),
        ({"capability": "DEFAULT"}, "warning", "AVX2, which PyTorch does not use"),
        ({"capability": "DEFAULT", "instructions": frozenset()}, "warning", "neither AVX2 nor AVX-512"),
        ({"processor": "aarch64", "capability": "DEFAULT"}, "info", "aarch64: the native decoder has NEON"),
    ],
)
def test_instructions_of_the_processor(facts, status, value):
    finding = found("instructions", **facts)
    assert finding.status == status
    assert finding.value.startswith(value)


def test_pythons_that_pytorch_has_no_build_for():
    assert found("Python", is_64bit=False).status == "error"
    assert "Debian's image" in found("C library", is_musl=True).advice


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a system, as yet without any."""
    monkeypatch.setattr(doctor_hardware, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(doctor_hardware, "_SYS", tmp_path / "sys")
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(doctor_hardware, "_nvidia_smi", lambda: "")
    return tmp_path


def test_nothing_that_the_system_tells(system):
    machine = look()
    assert (machine.gpus, machine.driver, machine.quota, machine.memory_limit) == ((), "", None, None)
    assert machine.instructions == frozenset()


def test_a_gpu_is_seen_without_its_driver(system):
    for number, (vendor, kind) in enumerate([("0x8086", "0x030000"), ("0x10de", "0x030200"), ("0x10de", "0x040300")]):
        device = system / f"sys/bus/pci/devices/{number}"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    assert look().gpus == (("NVIDIA", ""),)


def test_what_nvidias_tool_says(system, monkeypatch):
    monkeypatch.setattr(doctor_hardware, "_nvidia_smi", lambda: SMI)
    machine = look()
    assert (machine.gpus, machine.driver, machine.driver_cuda) == (A10, "535.183.01", "12.2")


def test_a_tool_that_fails_or_hangs_is_as_none(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)

    def hanging(*_: Any, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(subprocess, "run", hanging)
    assert doctor_hardware._nvidia_smi() == ""
    failed = SimpleNamespace(returncode=9, stdout="NVIDIA-SMI has failed because it couldn't communicate")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert doctor_hardware._nvidia_smi() == ""


def test_the_driver_without_its_tool(system):
    (system / "proc/driver/nvidia").mkdir(parents=True)
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    (system / "proc/driver/nvidia/version").write_text(line)
    (system / "proc/cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f\n")
    machine = look()
    assert machine.driver == "550.54.15"
    assert machine.instructions == {"avx2", "avx512f"}
