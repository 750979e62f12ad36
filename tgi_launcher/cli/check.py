"""`tgi-launch check`: what this machine has to run TGI with, and what a model would do on it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import typer

from tgi_launcher.cli.reporting import FAILED, with_flags
from tgi_launcher.command import Command, find_launcher
from tgi_launcher.config import TGIConfig
from tgi_launcher.cpu import HINT, IMAGE_SUFFIX, VARIABLES
from tgi_launcher.docker import find_docker
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.choice import engine_of
from tgi_launcher.engines.program import choose_runtime as choose_engine_runtime
from tgi_launcher.engines.program import find_program
from tgi_launcher.engines.program import take_port as take_engine_port
from tgi_launcher.errors import StartError
from tgi_launcher.plan import FIRST_PORTS, choose_runtime, preview_command, take_port
from tgi_launcher.ports import PortLocks
from tgi_launcher.systems import require_posix

_MARKS = {"ok": "✓", "note": "!", "missing": "✗", "info": " "}
_COMMAND_SECONDS = 10.0
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
# What huggingface_hub reads as "on".
_TRUE = ("1", "ON", "YES", "TRUE")
# Device files of AMD's, Intel's and other makers' accelerators, and of NVIDIA's where its tool is missing.
_ACCELERATORS = ("kfd", "dri/renderD*", "accel*", "nvidia[0-9]*", "dxg", "neuron*", "hl[0-9]*")


_Status = Literal["ok", "note", "missing", "info"]


@dataclass(frozen=True)
class _Finding:
    name: str
    value: str
    status: _Status = "ok"


def check(config: TGIConfig | EngineConfig, *, has_model: bool) -> None:
    """Show launcher, Docker, GPUs and ports, and for a MODEL what would happen. Starts nothing."""
    require_posix()
    findings = list(_of_tgi(config, has_model) if isinstance(config, TGIConfig) else _of_engine(config, has_model))
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        typer.echo(f"{_MARKS[finding.status]} {finding.name.ljust(width)}  {finding.value}")
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(FAILED)


def _of_tgi(config: TGIConfig, has_model: bool) -> Iterator[_Finding]:
    # Made where it is needed, and once: it looks for ports that are free.
    preview = cache(partial(preview_command, config))
    yield from (*_programs(config), *_gpus(config, preview), *_ports(config))
    if has_model:
        yield from _model(config, preview)
        yield _Finding("command", str(preview()), "info")


def _of_engine(config: EngineConfig, has_model: bool) -> Iterator[_Finding]:
    program = find_program(config)
    is_docker = choose_engine_runtime(config) == "docker"
    missing = f"there is no {config.launcher_path or config.facts.program[0]}: {config.facts.install}"
    status: _Status = "ok" if program else "info" if is_docker else "missing"
    yield _Finding("program", " ".join(program) if program else missing, status)
    if is_docker:
        docker, daemon = _docker()
        yield replace(docker, status="ok" if daemon else "missing")
        yield _Finding("runtime", "docker" if config.runtime != "auto" else "auto: docker")
    with PortLocks() as locks:
        try:
            yield _Finding("port", f"{take_engine_port(config, locks)} is free")
        except StartError as error:
            yield _Finding("port", with_flags(error.summary), "missing")
    if not has_model:
        return
    if drafts := config.drafts:
        by = drafts.method.words + (f" ({drafts.model})" if drafts.model else "")
        yield _Finding("speculation", f"{drafts.num_tokens} tokens per step by {by}")
    else:
        yield _Finding("speculation", "none" if config.speculate == 0 else "the engine's own choice", "note")
    yield _Finding("command", str(engine_of(config).preview_command()), "info")


def _programs(config: TGIConfig) -> Iterator[_Finding]:
    launcher = find_launcher(config)
    yield _Finding("launcher", launcher or "not found", "ok" if launcher else "info")
    docker, daemon = _docker()
    yield docker
    try:
        runtime = choose_runtime(config)
    except StartError as error:
        yield _Finding("runtime", with_flags(error.summary), "missing")
        return
    if runtime == "binary" and launcher is None:
        yield _Finding("runtime", "binary, but there is no launcher", "missing")
    elif runtime == "docker" and daemon is None:
        yield _Finding("runtime", "docker, which cannot be used as it is", "missing")
    else:
        yield _Finding("runtime", runtime if config.runtime != "auto" else f"auto: {runtime}")


def _docker() -> tuple[_Finding, str | None]:
    """What there is of Docker, and the version of its daemon, if that answers."""
    docker = find_docker()
    if docker is None:
        return _Finding("docker", "not found", "info"), None
    daemon = _output("docker", "version", "--format", "{{.Server.Version}}")
    state = f"daemon {daemon}" if daemon else "its daemon does not answer"
    return _Finding("docker", f"{docker}, {state}", "ok" if daemon else "note"), daemon


def _gpus(config: TGIConfig, preview: Callable[[], Command]) -> Iterator[_Finding]:
    if config.cpu:
        yield _Finding("CPU", f"{' '.join(f'{name}={text}' for name, text in VARIABLES.items())} --cuda-graphs 0")
        return
    listing = _output("nvidia-smi", "--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader")
    if listing is None:
        # Those of other makers are not listed by nvidia-smi.
        devices = [str(device) for pattern in _ACCELERATORS for device in sorted(Path("/dev").glob(pattern))]
        if devices:
            yield _Finding(
                "GPUs", f"none found by nvidia-smi, though there is {devices[0]}; {with_flags(HINT)}", "note"
            )
        elif _is_set_for_cpu(config, preview):
            yield _Finding("GPUs", "none found, and none needed as it is set", "note")
        else:
            yield _Finding("GPUs", f"none found; {with_flags(HINT)}", "missing")
        return
    gpus = listing.splitlines()
    for gpu in gpus:
        index, *rest = [part.strip() for part in gpu.split(",")]
        yield _Finding(f"GPU {index}", ", ".join(rest))
    wanted = config.num_shard or len(config.devices or ()) or 1
    if wanted > len(gpus):
        yield _Finding("--num-shard", f"{wanted} GPUs are asked for, there are {len(gpus)}", "missing")


def _is_set_for_cpu(config: TGIConfig, preview: Callable[[], Command]) -> bool:
    """Whether somebody has set what `cpu` sets, or takes an image that has it."""
    command = preview()
    if _is_docker(command):
        return config.docker_image.endswith(IMAGE_SUFFIX)
    is_paged = command.env.get("ATTENTION") in ("paged", "flashdecoding-ipex")
    return is_paged and (config.cuda_graphs == (0,) or command.env.get("CUDA_GRAPHS") == "0")


def _ports(config: TGIConfig) -> Iterator[_Finding]:
    with PortLocks() as locks:
        for field in FIRST_PORTS:
            name = field.replace("_", " ")
            try:
                yield _Finding(name, f"{take_port(config, locks, field)} is free")
            except StartError as error:
                yield _Finding(name, with_flags(error.summary), "missing")


def _model(config: TGIConfig, preview: Callable[[], Command]) -> Iterator[_Finding]:
    info = config.model_info
    if problem := _missing_files(config, preview):
        yield _Finding("model", problem, "missing")
    elif not info.is_known and not Path(config.model_id).is_dir():
        yield _Finding("model", f"{config.model_id} is not on this machine; it will be downloaded", "note")
    elif not info.is_known:
        yield _Finding("model", f"{config.model_id}, an adapter, is on this machine")
    else:
        yield _Finding("model", f"{config.model_id} ({info.model_type or 'speculator'}) is on this machine")
    if info.speculator:
        base = f" for {info.base_model}" if info.base_model else ""
        yield _Finding("heads", f"{info.num_heads} {info.speculator} heads{base}")
    yield _speculation(config)
    if config.num_speculative_tokens and config.max_total_tokens is None:
        yield _Finding(
            "context",
            "with speculation, TGI chooses --max-total-tokens by --max-batch-prefill-tokens, often "
            "4096: set it for longer texts",
            "note",
        )


def _missing_files(config: TGIConfig, preview: Callable[[], Command]) -> str | None:
    """What a model lacks that nobody will download."""
    folder = Path(config.model_id)
    if not folder.is_dir():
        command = preview()
        # A container gets nothing of this environment.
        env = config.env if _is_docker(command) else command.env
        is_offline = str(env.get("HF_HUB_OFFLINE")).upper() in _TRUE
        if config.model_info.is_known or not is_offline:
            return None
        return f"{folder} is not on this machine, and HF_HUB_OFFLINE keeps it from being downloaded"
    if (folder / "adapter_config.json").is_file():
        return None  # an adapter names the model that has the rest
    if not config.model_info.is_known:
        return f"the folder {folder} has no config.json that can be read"
    if config.weights_cache_override is None and not any(next(folder.glob(name), None) for name in _WEIGHTS):
        return f"the folder {folder} has no weights that TGI could load: *.safetensors, or *.bin or *.pt to convert"
    return None


def _is_docker(command: Command) -> bool:
    return command.argv[:2] == ("docker", "run")


def _speculation(config: TGIConfig) -> _Finding:
    info, tokens = config.model_info, config.num_speculative_tokens
    if tokens and info.speculator:
        return _Finding("speculation", f"{tokens} tokens per step by {info.speculator} heads")
    if tokens:
        where = "" if info.is_known else " (or by its heads, if it has some)"
        return _Finding("speculation", f"{tokens} tokens per step by n-grams{where}")
    if config.speculate is None and not info.is_known:
        return _Finding("speculation", "none, unless the model brings heads", "note")
    return _Finding("speculation", "none: set --speculate", "note")


def _output(program: str, *arguments: str) -> str | None:
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603
            [path, *arguments], capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
