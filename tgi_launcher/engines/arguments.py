"""The command line of an engine other than TGI, behind its program, and how it is given its key."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.own_folder import why_unusable

SHOWN_KEY_FILE = "key.yaml"
"""Stands for the file with the key where a command is only shown."""


def arguments_of(config: EngineConfig, port: int) -> list[str]:
    """The arguments of a server, but those that give it its key.

    Args:
        config: The server.
        port: Where it listens.
    """
    facts = config.facts
    arguments = [*facts.model(config.model_id)]
    for name, flag in facts.flags.items():
        value = port if name == "port" else getattr(config, name)
        if value is None or value is False:
            continue
        arguments += [flag] if value is True else [flag, str(value)]
    if (machines := config.machines) is not None and facts.machines is not None:
        arguments += facts.machines(machines)
    arguments += facts.always
    if (drafts := config.drafts) is not None:
        arguments += [*facts.speculation[drafts.method](drafts), *facts.when_speculating]
    elif config.speculate == 0:
        arguments += facts.no_speculation
    return [*arguments, *config.extra_args]


def key_in_file(config: EngineConfig) -> str | None:
    """The key of a server whose engine reads it from a file; None where there is none, or a variable has it."""
    key = config.api_key if config.facts.key_file_option is not None else None
    return key.get_secret_value() if key is not None else None


def key_file_arguments(config: EngineConfig, path: str | None) -> list[str]:
    """The arguments that name the file with the key, if there is to be one.

    Args:
        config: The server.
        path: The file; None where the command is only shown.
    """
    option = config.facts.key_file_option
    return [option, path or SHOWN_KEY_FILE] if option is not None and config.api_key is not None else []


def write_key_file(config: EngineConfig, folder: Path) -> str | None:
    """Write the key into a file that only this user can read, if the engine reads it from one.

    Args:
        config: The server.
        folder: The server's own.

    Returns:
        The file, or None.

    Raises:
        StartError: It cannot be written.
    """
    key = key_in_file(config)
    if key is None:
        return None
    path = folder / SHOWN_KEY_FILE
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            # JSON is YAML.
            json.dump({"api-key": key}, file)
    except OSError as error:
        raise why_unusable(error, folder) from error
    return str(path)
