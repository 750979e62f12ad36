"""The program of an engine other than TGI, or its image: the command, its environment, and where it runs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import uuid
from dataclasses import replace
from typing import Literal

from tgi_launcher.command import TOKEN_VARIABLES, Addresses, Command, given_secrets, masked
from tgi_launcher.docker import find_docker, require_docker
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.arguments import (
    SHOWN_KEY_FILE,
    arguments_of,
    key_file_arguments,
    key_in_file,
    write_key_file,
)
from tgi_launcher.engines.container import container_command
from tgi_launcher.errors import Reason, StartError
from tgi_launcher.paths import absolute, absolute_variables
from tgi_launcher.plan import LaunchPlan
from tgi_launcher.ports import PortLocks
from tgi_launcher.server_folder import new_server_folder


def find_program(config: EngineConfig) -> tuple[str, ...] | None:
    """The program of an engine with its first words, None if it is not on this machine."""
    facts = config.facts
    program, *words = facts.program
    if found := shutil.which(config.launcher_path or program):
        return absolute(found), *words
    if config.launcher_path is None and facts.module is not None and importlib.util.find_spec(facts.module):
        return sys.executable, "-m", facts.module, *words
    return None


def require_program(config: EngineConfig) -> tuple[str, ...]:
    """The program of an engine with its first words.

    Raises:
        StartError: It is not on this machine, or cannot be run.
    """
    program = find_program(config)
    if program is None:
        facts = config.facts
        where = f"at {config.launcher_path}" if config.launcher_path else "on PATH"
        msg = f"There is no {facts.program[0]} that can be run {where}: {facts.install}, or give launcher_path."
        raise StartError(Reason.LAUNCHER_NOT_FOUND, msg)
    return program


def choose_runtime(config: EngineConfig) -> Literal["binary", "docker"]:
    """The runtime that `auto` stands for on this machine."""
    if config.runtime != "auto":
        return config.runtime
    is_for_docker = config.launcher_path is None and config.machines is None and config.image
    return "docker" if is_for_docker and find_program(config) is None and find_docker() else "binary"


def take_port(config: EngineConfig, locks: PortLocks) -> int:
    """Lock the port of a server: the one that its config gives, else a free one.

    Raises:
        StartError: It is taken, or none is free.
    """
    return locks.take(config.hostname, config.port, first=config.facts.first_port, what="Port")


def make_plan(config: EngineConfig, locks: PortLocks, earlier: Addresses | None) -> LaunchPlan:
    """Choose everything that is left open. As `Engine.make_plan`."""
    facts, machines = config.facts, config.machines
    if machines is not None and machines.rank and not facts.followers_answer:
        msg = (
            f"{facts.title} answers on the first machine only, so this one would never seem ready: run what tgi-launch "
            "print-command prints for it, and end it yourself."
        )
        raise StartError(Reason.INVALID_ARGUMENTS, msg)
    if choose_runtime(config) == "docker":
        return _plan_docker(config, locks, earlier)
    program = require_program(config)
    port = earlier.port if earlier else take_port(config, locks)
    with new_server_folder() as folder:
        command = engine_command(config, port, program, key_file=write_key_file(config, folder.path))
        env = {**command.env, **({} if "TMPDIR" in config.env else {"TMPDIR": folder.temporary})}
        command = replace(command, env=env, folder=folder.work)
        return LaunchPlan(command, Addresses(port, 0, 0, None), is_docker=False, folder=folder)


def _plan_docker(config: EngineConfig, locks: PortLocks, earlier: Addresses | None) -> LaunchPlan:
    docker = require_docker(config.facts.title)
    port = earlier.port if earlier else take_port(config, locks)
    with new_server_folder() as folder:
        name = f"{config.engine}-{port}-{uuid.uuid4().hex[:8]}"
        folder.note_container(name)
        key_file = write_key_file(config, folder.path)
        command = container_command(config, port, docker, name=name, label=str(folder.path), key_file=key_file)
        return LaunchPlan(command, Addresses(port, 0, 0, None), is_docker=True, folder=folder)


def preview_command(config: EngineConfig) -> Command:
    """The command that `make_plan` would make now. As `Engine.preview_command`."""
    with PortLocks() as locks:
        try:
            port = config.port or take_port(config, locks)
        except StartError:  # a start says why
            port = config.facts.first_port
    if choose_runtime(config) == "docker":
        # Docker takes what does not begin like a path for the name of a volume.
        key_file = f"./{SHOWN_KEY_FILE}" if key_in_file(config) is not None else None
        return container_command(config, port, "docker", name=f"{config.engine}-{port}", key_file=key_file)
    return engine_command(config, port, find_program(config) or config.facts.program)


def engine_command(
    config: EngineConfig, port: int, program: tuple[str, ...], *, key_file: str | None = None
) -> Command:
    """The command that starts a server.

    Args:
        config: The server.
        port: Where it listens.
        program: The program with its first words.
        key_file: File that holds the key, for an engine that reads it from one.
    """
    facts = config.facts
    secrets = given_secrets(config, facts.key_variable)
    shown = {name: text for name, text in config.env.items() if name not in secrets}
    if config.devices is not None:
        # CUDA would number GPUs by speed, nvidia-smi numbers them by bus.
        shown |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, config.devices))}
    inherited = {name: text for name, text in os.environ.items() if not facts.option_variables.fullmatch(name)}
    env = absolute_variables({**inherited, **facts.variables, **shown, **secrets})
    more = [key_in_file(config), *map(env.get, TOKEN_VARIABLES)]
    return Command(
        argv=(*program, *arguments_of(config, port), *key_file_arguments(config, key_file)),
        env=env,
        shown_env={**shown, **masked(secrets)},
        dropped=tuple(sorted(os.environ.keys() - env.keys())),
        secrets=tuple(dict.fromkeys([*secrets.values(), *filter(None, more)])),
    )
