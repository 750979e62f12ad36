"""Decides how and where a server is run on this machine: runtime, ports, its folder, and from them the command."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Literal

from tgi_launcher.command import LAUNCHER, Addresses, Command, binary_command, find_launcher, require_launcher
from tgi_launcher.config import TGIConfig
from tgi_launcher.docker import find_docker, require_docker
from tgi_launcher.docker_tgi import docker_command
from tgi_launcher.errors import Reason, StartError
from tgi_launcher.ports import PortLocks
from tgi_launcher.server_folder import ServerFolder, new_server_folder

# The ports of a server by their fields, and where the search for a free one begins.
FIRST_PORTS = {"port": 8080, "prometheus_port": 9000, "master_port": 29500}


@dataclass(frozen=True)
class LaunchPlan:
    """A server that is about to be run.

    Attributes:
        command: What to run.
        addresses: Where it will listen.
        is_docker: Whether Docker runs it.
        folder: Its own, to be removed at the end.
    """

    command: Command
    addresses: Addresses
    is_docker: bool
    folder: ServerFolder


def choose_runtime(config: TGIConfig) -> Literal["binary", "docker"]:
    """The runtime that `auto` stands for on this machine.

    Raises:
        StartError: There is neither launcher nor Docker.
    """
    if config.runtime != "auto":
        return config.runtime
    if config.launcher_path or find_launcher(config):
        return "binary"
    if find_docker():
        return "docker"
    msg = (
        f"There is neither {LAUNCHER} nor docker on PATH: install Text Generation Inference or Docker, or give "
        "launcher_path."
    )
    raise StartError(Reason.LAUNCHER_NOT_FOUND, msg)


def take_port(config: TGIConfig, locks: PortLocks, field: str) -> int:
    """Lock a port of a server: the one that its config gives, else a free one.

    Args:
        config: The server.
        locks: Takes the port.
        field: Which port: a key of `FIRST_PORTS`.

    Raises:
        StartError: It is taken, or none is free.
    """
    # The router binds its exporter, and torch its rendezvous, at every address.
    hostname = config.hostname if field == "port" else "0.0.0.0"  # noqa: S104
    what = field.replace("_", " ").capitalize()
    return locks.take(hostname, getattr(config, field), first=FIRST_PORTS[field], what=what)


def make_plan(config: TGIConfig, locks: PortLocks, *, earlier: Addresses | None = None) -> LaunchPlan:
    """Choose everything that is left open.

    Args:
        config: The server.
        locks: Takes the ports.
        earlier: Where the server was before a restart; it stays there, its ports locked already.

    Raises:
        StartError: A port is taken, or there is nothing to run.
    """
    if choose_runtime(config) == "docker":
        return _plan_docker(config, locks, earlier)
    launcher = require_launcher(config)
    ports = {field: getattr(earlier, field) if earlier else take_port(config, locks, field) for field in FIRST_PORTS}
    with new_server_folder() as folder:
        addresses = Addresses(**ports, shard_uds_path=config.shard_uds_path or folder.sockets)
        command = binary_command(config, addresses, launcher)
        # One that the config gives wins; `binary_command` has made it absolute.
        env = {**command.env, **({} if "TMPDIR" in config.env else {"TMPDIR": folder.temporary})}
        return LaunchPlan(replace(command, env=env, folder=folder.work), addresses, is_docker=False, folder=folder)


def _plan_docker(config: TGIConfig, locks: PortLocks, earlier: Addresses | None) -> LaunchPlan:
    # The options may have been checked for `auto`, and Docker takes fewer.
    config = TGIConfig.model_validate({**dict(config), "runtime": "docker"})
    docker = require_docker("Text Generation Inference")
    port = earlier.port if earlier else take_port(config, locks, "port")
    with new_server_folder() as folder:
        name = f"tgi-{port}-{uuid.uuid4().hex[:8]}"
        folder.note_container(name)
        command = docker_command(config, port, docker, name=name, label=str(folder.path))
        return LaunchPlan(command, Addresses(port, 0, 0, ""), is_docker=True, folder=folder)


def preview_command(config: TGIConfig) -> Command:
    """The command that `make_plan` would make now, to read or to paste. Nothing is kept locked, or need be installed.

    What belongs to the folder that a server gets is left to TGI: the shards' sockets, and where the command runs.
    Ports that are given are not looked at.
    """
    try:
        runtime = choose_runtime(config)
    except StartError:
        runtime = "binary"
    with PortLocks() as locks:
        ports = {field: getattr(config, field) or _likely_port(config, locks, field) for field in FIRST_PORTS}
    addresses = Addresses(**ports, shard_uds_path=config.shard_uds_path)
    if runtime == "docker":
        config = TGIConfig.model_validate({**dict(config), "runtime": "docker"})
        return docker_command(config, addresses.port, "docker", name=f"tgi-{addresses.port}")
    return binary_command(config, addresses, config.launcher_path or LAUNCHER)


def _likely_port(config: TGIConfig, locks: PortLocks, field: str) -> int:
    try:
        return take_port(config, locks, field)
    except StartError:  # a start says why
        return FIRST_PORTS[field]
