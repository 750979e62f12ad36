"""From a TGIConfig to `docker run` with the official image, and what Docker says when that fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tgi_launcher.command import PLAIN_TRACEBACKS, TOKEN_VARIABLES, Command, given_secrets, launcher_flags, masked
from tgi_launcher.config import TGIConfig
from tgi_launcher.errors import Reason, StartError
from tgi_launcher.paths import absolute, split_adapters

LABEL = "tgi-launcher"

# Each container has ports of its own, so this one is always free.
_INNER_PORT = 80
_MODEL_FOLDER = "/model"
_CONFIG_FILE = "/tokenizer-config"
_ADAPTER_FOLDER = "/adapters"
# Docker gets so many seconds less than the supervisor, so that Docker kills the container and not the supervisor.
_KILL_MARGIN = 2


def find_docker() -> str | None:
    """Path of Docker's client, None if there is none."""
    return shutil.which("docker")


def require_docker() -> str:
    """Path of Docker's client.

    Raises:
        StartError: There is none.
    """
    docker = find_docker()
    if docker is None:
        msg = (
            "There is no docker on PATH: install Docker, or Text Generation Inference itself and use runtime='binary'."
        )
        raise StartError(Reason.DOCKER_NOT_FOUND, msg)
    return docker


def docker_command(config: TGIConfig, port: int, docker: str, *, name: str, label: str = "") -> Command:
    """The command that runs the official image.

    Secrets go by the client's environment: `-e HF_TOKEN` without a value.

    Args:
        config: The server.
        port: Where the container listens on this machine.
        docker: Path of Docker's client.
        name: Of the container.
        label: Folder of the server, by which a clean-up finds out whether it is in use.
    """
    drain = max(1, int(config.drain_seconds) - _KILL_MARGIN)
    argv = [docker, "run", "--rm", "--name", name, "--label", f"{LABEL}={label or name}", "--stop-timeout", str(drain)]
    if config.docker_gpus:
        argv += ["--gpus", f'"device={",".join(map(str, config.devices))}"' if config.devices is not None else "all"]
    argv += ["--shm-size", config.shm_size]
    argv += ["-p", f"{_in_brackets(config.hostname)}:{port}:{_INNER_PORT}"]
    argv += ["-v", f"{_cache_folder(config)}:/data"]
    secrets = _secrets(config)
    # The image starts its launcher with an unquoted $@, which would split values with spaces: these go by environment.
    flags, by_environment = _without_spaces(_inner_flags(config, argv))
    given = {name: text for name, text in config.env.items() if name not in secrets}
    settings = {**PLAIN_TRACEBACKS, **given, "LOG_LEVEL": config.log_level, **by_environment}
    if config.cpu:
        # This image has the Hub's cache at /data itself, and the others below it.
        settings.setdefault("HUGGINGFACE_HUB_CACHE", "/data/hub")
    for variable in settings:
        argv += ["-e", f"{variable}={settings[variable]}"]
    for variable in secrets:
        argv += ["-e", variable]
    return Command(
        argv=(*argv, config.docker_image, *flags),
        env={**os.environ, **secrets},
        stop=(docker, "stop", "-t", str(drain), name),
        remove=(docker, "rm", "-f", name),
        shown_env=masked(secrets),
        secrets=tuple(secrets.values()),
    )


def _inner_flags(config: TGIConfig, argv: list[str]) -> list[str]:
    inside: dict[str, object] = {
        "hostname": "0.0.0.0",  # noqa: S104  # inside the container; outside, `-p` says where
        "port": _INNER_PORT,
        "prometheus_port": None,
        "master_port": None,
        "shard_uds_path": None,
    }
    folder = Path(config.model_id)
    if folder.is_absolute():
        # TGI converts weights that are no safetensors, and writes the result into the folder.
        mode = ":ro" if any(folder.glob("*.safetensors")) else ""
        target = f"{_MODEL_FOLDER}/{_plain_name(folder.name)}"
        argv += ["-v", f"{folder}:{target}{mode}"]
        inside["model_id"] = target
    if config.lora_adapters:
        inside["lora_adapters"] = ",".join(_mounted_adapters(config.lora_adapters, argv))
    if config.tokenizer_config_path and (path := Path(config.tokenizer_config_path)).exists():
        target = f"{_CONFIG_FILE}/{_plain_name(path.name)}"
        argv += ["-v", f"{path}:{target}:ro"]
        inside["tokenizer_config_path"] = target
    return launcher_flags(config, **inside)


def _mounted_adapters(adapters: str, argv: list[str]) -> Iterator[str]:
    for number, (name, path, revision) in enumerate(split_adapters(adapters)):
        if path is None:
            yield name + revision
            continue
        target = f"{_ADAPTER_FOLDER}/{number}-{_plain_name(Path(path).name)}"
        argv += ["-v", f"{path}:{target}:ro"]
        yield f"{name}={target}{revision}"


def _plain_name(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in name)


def _without_spaces(flags: list[str]) -> tuple[list[str], dict[str, str]]:
    kept: list[str] = []
    by_environment: dict[str, str] = {}
    for flag in flags:
        if any(sign.isspace() or sign in "*?[" for sign in flag) and kept and kept[-1].startswith("--"):
            by_environment[kept.pop().removeprefix("--").replace("-", "_").upper()] = flag
        else:
            kept.append(flag)
    return kept, by_environment


def _secrets(config: TGIConfig) -> dict[str, str]:
    secrets = given_secrets(config)
    if token := next(filter(None, map(os.environ.get, TOKEN_VARIABLES)), None):
        secrets.setdefault("HF_TOKEN", token)
    return secrets


def _cache_folder(config: TGIConfig) -> Path:
    folder = config.docker_cache or os.environ.get("HF_HOME") or "~/.cache/huggingface"
    try:
        return Path(absolute(folder))
    except ValueError as error:
        msg = f"There is no folder to keep downloads in: {error} Give docker_cache, or set HF_HOME."
        raise StartError(Reason.FOLDER_UNUSABLE, msg) from error


def _in_brackets(hostname: str) -> str:
    return f"[{hostname}]" if ":" in hostname else hostname
