"""Servers in containers: `docker run` for any engine, secrets by the client's environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tgi_launcher.command import TOKEN_VARIABLES, Command, given_secrets, masked
from tgi_launcher.config import TGIConfig
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.errors import Reason, StartError
from tgi_launcher.paths import absolute

LABEL = "tgi-launcher"
# Where the folder for downloads is in each container.
CACHE = "/data"

# Docker gets so many seconds less than the supervisor, so that Docker kills the container and not the supervisor.
_KILL_MARGIN = 2


@dataclass(frozen=True)
class Container:
    """A container that is to be run.

    Attributes:
        name: Its name.
        label: Folder of the server, by which a clean-up finds out whether it is in use; empty without one.
        image: Image, with its tag.
        arguments: What the image is given.
        ports: Port of this machine, and the one inside that it leads to.
        shm_size: Its shared memory; None for Docker's own default.
        mounts: Paths of this machine, with those inside, as `-v` takes them.
        settings: Variables of its environment.
        secrets: Those that do not stand on the command line, whatever the settings say of them.
    """

    name: str
    label: str
    image: str
    arguments: Sequence[str]
    ports: tuple[int, int]
    shm_size: str | None
    mounts: Sequence[str]
    settings: Mapping[str, str]
    secrets: Mapping[str, str]

    def command(self, config: TGIConfig | EngineConfig, docker: str) -> Command:
        """The command that runs it.

        Args:
            config: The server in it.
            docker: Path of Docker's client.
        """
        drain = max(1, int(config.drain_seconds) - _KILL_MARGIN)
        argv = [docker, "run", "--rm", "--name", self.name, "--label", f"{LABEL}={self.label or self.name}"]
        argv += ["--stop-timeout", str(drain)]
        if config.docker_gpus:
            argv += [
                "--gpus",
                f'"device={",".join(map(str, config.devices))}"' if config.devices is not None else "all",
            ]
        if self.shm_size is not None:
            argv += ["--shm-size", self.shm_size]
        outside, inside = self.ports
        argv += ["-p", f"{_in_brackets(config.hostname)}:{outside}:{inside}"]
        for mount in self.mounts:
            argv += ["-v", mount]
        for name, text in self.settings.items():
            if name not in self.secrets:
                argv += ["-e", f"{name}={text}"]
        # Without a value, Docker's client takes it from its own environment.
        for name in self.secrets:
            argv += ["-e", name]
        return Command(
            argv=(*argv, self.image, *self.arguments),
            env={**os.environ, **self.secrets},
            stop=(docker, "stop", "-t", str(drain), self.name),
            remove=(docker, "rm", "-f", self.name),
            shown_env=masked(self.secrets),
            secrets=tuple(self.secrets.values()),
        )


def find_docker() -> str | None:
    """Path of Docker's client, None if there is none."""
    return shutil.which("docker")


def require_docker(title: str) -> str:
    """Path of Docker's client.

    Args:
        title: What could be installed instead.

    Raises:
        StartError: There is none.
    """
    docker = find_docker()
    if docker is None:
        msg = f"There is no docker on PATH: install Docker, or {title} itself and use runtime='binary'."
        raise StartError(Reason.DOCKER_NOT_FOUND, msg)
    return docker


def container_secrets(config: TGIConfig | EngineConfig, key_variable: str | None = "API_KEY") -> dict[str, str]:
    """What a container gets of secrets: those that a config gives, and the Hub's token of the environment."""
    secrets = given_secrets(config, key_variable)
    if token := next(filter(None, map(os.environ.get, TOKEN_VARIABLES)), None):
        secrets.setdefault("HF_TOKEN", token)
    return secrets


def cache_mount(config: TGIConfig | EngineConfig) -> str:
    """The folder for downloads, as a mount.

    Raises:
        StartError: There is none that could be found.
    """
    folder = config.docker_cache or os.environ.get("HF_HOME") or "~/.cache/huggingface"
    try:
        return as_mount(absolute(folder), CACHE, "")
    except ValueError as error:
        msg = f"There is no folder to keep downloads in: {error} Give docker_cache, or set HF_HOME."
        raise StartError(Reason.FOLDER_UNUSABLE, msg) from error


def mounted(path: str | Path, folder: str, mode: str = ":ro") -> tuple[str, str]:
    """A path of this machine in a folder of a container, as (path inside, mount)."""
    target = f"{folder}/{plain_name(Path(path).name)}"
    return target, as_mount(path, target, mode)


def as_mount(path: str | Path, target: str, mode: str = ":ro") -> str:
    """A path of this machine as a container has it under another, as `-v` takes it.

    Raises:
        StartError: It cannot be mounted.
    """
    if ":" in str(path):
        msg = f"Docker mounts no path with a colon in it: rename {path}, or give another."
        raise StartError(Reason.FOLDER_UNUSABLE, msg)
    return f"{path}:{target}{mode}"


def plain_name(name: str) -> str:
    """A name without what means something to Docker or to a shell."""
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in name)


def _in_brackets(hostname: str) -> str:
    return f"[{hostname}]" if ":" in hostname else hostname
