"""The container of an engine other than TGI: its image, what it sees of this machine, and its command."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tgi_launcher.command import Command
from tgi_launcher.docker import CACHE, Container, as_mount, cache_mount, container_secrets, mounted
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.arguments import arguments_of, key_file_arguments, key_in_file

_MODEL_FOLDER = "/model"
_DRAFT_FOLDER = "/draft-model"
_KEY_FILE = "/api-key/key.yaml"
# One of the files of a model that is in several.
_IS_PART = re.compile(r".*-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)


def container_command(
    config: EngineConfig, port: int, docker: str, *, name: str, label: str = "", key_file: str | None = None
) -> Command:
    """The command that runs a server in the image of its engine.

    Args:
        config: The server.
        port: Where the container listens on this machine.
        docker: Path of Docker's client.
        name: Of the container.
        label: Folder of the server, by which a clean-up finds out whether it is in use.
        key_file: File that holds the key, for an engine that reads it from one.
    """
    facts = config.facts
    mounts = [cache_mount(config)]
    inside = {
        "hostname": "0.0.0.0",  # noqa: S104  # inside the container; outside, `-p` says where
        "model_id": _seen(config.model_id, _MODEL_FOLDER, mounts),
        "draft_model": _seen(config.draft_model, _DRAFT_FOLDER, mounts) if config.draft_model else None,
    }
    if key_file is not None:
        mounts.append(as_mount(key_file, _KEY_FILE))
    secrets = container_secrets(config, facts.key_variable)
    arguments = [
        *facts.images.words,
        *arguments_of(config.model_copy(update=inside), facts.first_port),
        *key_file_arguments(config, key_file and _KEY_FILE),
    ]
    container = Container(
        name,
        label,
        config.image,
        arguments,
        (port, facts.first_port),
        config.shm_size or facts.images.shm_size,
        mounts,
        {**facts.variables, "HF_HOME": CACHE, **config.env},
        secrets,
    )
    command = container.command(config, docker)
    return replace(command, secrets=(*command.secrets, *filter(None, [key_in_file(config)])))


def _seen(model: str, folder: str, mounts: list[str]) -> str:
    """A model as the container sees it: one that is on this machine is mounted, and an id stays what it is."""
    if not Path(model).is_absolute():
        return model
    if _IS_PART.fullmatch(model):
        target, mount = mounted(Path(model).parent, folder)
        mounts.append(mount)
        return f"{target}/{Path(model).name}"
    target, mount = mounted(model, folder)
    mounts.append(mount)
    return target
