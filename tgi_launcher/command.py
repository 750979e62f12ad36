"""From a TGIConfig to the command line and the environment of `text-generation-launcher`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tgi_launcher.config import FLAGS, TGIConfig
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.environment import clean_environment, machine_settings
from tgi_launcher.errors import Reason, StartError
from tgi_launcher.paths import absolute, absolute_variables

LAUNCHER = "text-generation-launcher"
MASK = "***"
# Where TGI and the Hugging Face libraries look for the Hub's token.
TOKEN_VARIABLES = ("HF_TOKEN", "HF_API_TOKEN", "HUGGING_FACE_HUB_TOKEN")

# Names of variables whose values are taken for secrets, among those that a caller adds.
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|[A-Z]*KEY|SECRET|PASS(?:CODE|PHRASE|WD|WORD)?|PWD|CREDENTIALS?|AUTH(?:ORIZATION|TOKEN)?|COOKIE|DSN)"
    r"(?:_|$)",
    re.IGNORECASE,
)
# An address with a password in it, whatever the name.
_SECRET_VALUE = re.compile(r"://[^/@\s]*:[^/@\s]+@")
# Typer would draw the tracebacks of TGI's server in boxes of 80 columns, which cut sentences and secrets in two.
PLAIN_TRACEBACKS = {"_TYPER_STANDARD_TRACEBACK": "1"}
# A shorter value is no secret, and masking it everywhere would make a log unreadable.
_MIN_SECRET = 6


@dataclass(frozen=True)
class Addresses:
    """Ports and sockets of one server, which no other server on this machine may have.

    Attributes:
        port: Of the HTTP API.
        prometheus_port: Of the router's metrics exporter.
        master_port: Where shards meet.
        shard_uds_path: Start of the shards' socket paths; None leaves it to TGI, whose own is the same for all.
    """

    port: int
    prometheus_port: int
    master_port: int
    shard_uds_path: str | None


@dataclass(frozen=True)
class Command:
    """What to run, how to end it, and what of it is secret.

    Attributes:
        argv: Program and arguments. Holds no secret.
        env: The whole environment.
        folder: Where to run it; None is where this process runs.
        stop: Command that ends it gently, instead of SIGTERM to the process.
        remove: Command that removes what may be left when the process is gone.
        shown_env: Variables worth showing to a person, of those in `env`; secrets masked.
        dropped: Variables of this process that it does not get.
        secrets: Texts that must not reach a log.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    folder: str | None = None
    stop: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    shown_env: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        """One line to paste into a shell, each secret as `***`."""
        settings = [f"{name}={MASK if value == MASK else shlex.quote(value)}" for name, value in self.shown_env.items()]
        without = ["env", *(part for name in self.dropped for part in ("-u", name))] if self.dropped else []
        return " ".join([*without, *settings, shlex.join(self.argv)])


def find_launcher(config: TGIConfig) -> str | None:
    """Path of the installed launcher, None if there is none."""
    launcher = shutil.which(config.launcher_path or LAUNCHER)
    return absolute(launcher) if launcher else None


def require_launcher(config: TGIConfig) -> str:
    """Path of the installed launcher.

    Raises:
        StartError: There is none, or none that can be run.
    """
    launcher = find_launcher(config)
    if launcher is None:
        if found := _not_executable(config):
            what = (
                "a folder, not a program" if found.is_dir() else "not executable: run chmod +x on it, or reinstall it"
            )
            raise StartError(Reason.LAUNCHER_NOT_FOUND, f"{found} is {what}.")
        where = f"at {config.launcher_path}" if config.launcher_path else "on PATH"
        msg = (
            f"There is no {LAUNCHER} {where}: install Text Generation Inference, "
            "give launcher_path, or use runtime='docker'."
        )
        raise StartError(Reason.LAUNCHER_NOT_FOUND, msg)
    return launcher


def _not_executable(config: TGIConfig) -> Path | None:
    """What is there in place of a launcher that could be run."""
    folders = [""] if config.launcher_path else os.get_exec_path()
    paths = (Path(folder, config.launcher_path or LAUNCHER) for folder in folders)
    return next((path for path in paths if path.exists() and (config.launcher_path or path.is_file())), None)


def binary_command(config: TGIConfig, addresses: Addresses, launcher: str) -> Command:
    """The command that starts an installed launcher.

    Args:
        config: The server.
        addresses: Where it listens.
        launcher: Path of the program.
    """
    secrets = given_secrets(config)
    shown = {name: text for name, text in config.env.items() if name not in secrets}
    if config.devices is not None:
        # CUDA would number GPUs by speed, nvidia-smi numbers them by bus.
        shown |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, config.devices))}
    if config.cpu:
        # TGI would take a GPU that it sees.
        shown["CUDA_VISIBLE_DEVICES"] = ""
    inherited = clean_environment(config, os.environ)
    if "LOG_LEVEL" in os.environ:
        shown["LOG_LEVEL"] = config.log_level
    env = absolute_variables({**inherited, **PLAIN_TRACEBACKS, **shown, "LOG_LEVEL": config.log_level, **secrets})
    known = ("API_KEY", *TOKEN_VARIABLES)
    return Command(
        argv=(launcher, *launcher_flags(config, **asdict(addresses))),
        env=env,
        shown_env={**machine_settings(inherited), **shown, **masked(secrets)},
        dropped=tuple(sorted(os.environ.keys() - env.keys())),
        secrets=tuple(dict.fromkeys([*secrets.values(), *(env[name] for name in known if env.get(name))])),
    )


def given_secrets(config: TGIConfig | EngineConfig, key_variable: str | None = "API_KEY") -> dict[str, str]:
    """The secrets that a config gives, by the environment variable that they are read from.

    Args:
        config: The server.
        key_variable: Where it reads its key from; None where it cannot have one.
    """
    given: dict[str | None, SecretStr | None] = {key_variable: config.api_key, "HF_TOKEN": config.hf_token}
    named = {
        name: text
        for name, text in config.env.items()
        if len(text) >= _MIN_SECRET and (_SECRET_NAME.search(name) or _SECRET_VALUE.search(text))
    }
    return {
        **named,
        **{name: secret.get_secret_value() for name, secret in given.items() if name and secret is not None},
    }


def masked(secrets: Mapping[str, str]) -> dict[str, str]:
    """Secrets as they are shown. Those that a shell like this process's has already are left out."""
    return {name: MASK for name, text in secrets.items() if os.environ.get(name) != text}


def launcher_flags(config: TGIConfig, **instead: Any) -> list[str]:
    """The options of the launcher, without secrets.

    Args:
        config: The server.
        instead: Values to use in place of those of the config; None leaves an option out.
    """
    arguments: list[str] = []
    for name in FLAGS:
        value = instead.get(name, getattr(config, name))
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is False or value == ():
            continue
        if value is True:
            arguments.append(flag)
        elif name == "cors_allow_origin":
            for origin in value:
                arguments += [flag, origin]
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            arguments += [flag, text]
    # With JSON each record is one line, however many lines its message has.
    return [*arguments, "--json-output"]
