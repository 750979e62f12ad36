"""From a TGIConfig to `docker run` with the official image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tgi_launcher.command import PLAIN_TRACEBACKS, Command, launcher_flags
from tgi_launcher.config import TGIConfig
from tgi_launcher.docker import Container, as_mount, cache_mount, container_secrets, mounted, plain_name
from tgi_launcher.paths import split_adapters

# Each container has ports of its own, so this one is always free.
_INNER_PORT = 80
_MODEL_FOLDER = "/model"
_CONFIG_FILE = "/tokenizer-config"
_ADAPTER_FOLDER = "/adapters"


def docker_command(config: TGIConfig, port: int, docker: str, *, name: str, label: str = "") -> Command:
    """The command that runs the official image.

    Args:
        config: The server.
        port: Where the container listens on this machine.
        docker: Path of Docker's client.
        name: Of the container.
        label: Folder of the server, by which a clean-up finds out whether it is in use.
    """
    mounts = [cache_mount(config)]
    secrets = container_secrets(config)
    # The image starts its launcher with an unquoted $@, which would split values with spaces: these go by environment.
    flags, by_environment = _without_spaces(_inner_flags(config, mounts))
    settings = {**PLAIN_TRACEBACKS, **config.env, "LOG_LEVEL": config.log_level, **by_environment}
    if config.cpu:
        # This image has the Hub's cache at /data itself, and the others below it.
        settings.setdefault("HUGGINGFACE_HUB_CACHE", "/data/hub")
    container = Container(
        name, label, config.docker_image, flags, (port, _INNER_PORT), config.shm_size, mounts, settings, secrets
    )
    return container.command(config, docker)


def _inner_flags(config: TGIConfig, mounts: list[str]) -> list[str]:
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
        inside["model_id"], mount = mounted(folder, _MODEL_FOLDER, ":ro" if any(folder.glob("*.safetensors")) else "")
        mounts.append(mount)
    if config.lora_adapters:
        inside["lora_adapters"] = ",".join(_mounted_adapters(config.lora_adapters, mounts))
    if config.tokenizer_config_path and (path := Path(config.tokenizer_config_path)).exists():
        inside["tokenizer_config_path"], mount = mounted(path, _CONFIG_FILE)
        mounts.append(mount)
    return launcher_flags(config, **inside)


def _mounted_adapters(adapters: str, mounts: list[str]) -> Iterator[str]:
    for number, (name, path, revision) in enumerate(split_adapters(adapters)):
        if path is None:
            yield name + revision
            continue
        target = f"{_ADAPTER_FOLDER}/{number}-{plain_name(Path(path).name)}"
        mounts.append(as_mount(path, target))
        yield f"{name}={target}{revision}"


def _without_spaces(flags: list[str]) -> tuple[list[str], dict[str, str]]:
    kept: list[str] = []
    by_environment: dict[str, str] = {}
    for flag in flags:
        if any(sign.isspace() or sign in "*?[" for sign in flag) and kept and kept[-1].startswith("--"):
            by_environment[kept.pop().removeprefix("--").replace("-", "_").upper()] = flag
        else:
            kept.append(flag)
    return kept, by_environment
