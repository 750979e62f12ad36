"""`tgi-launch print-command`: what would be run, to read or to paste."""

from __future__ import annotations

import typer

from tgi_launcher.config import TGIConfig
from tgi_launcher.engine_config import EngineConfig
from tgi_launcher.engines.choice import engine_of


def print_command(config: TGIConfig | EngineConfig) -> None:
    """Print the command that `start` would run, secrets as ***, and run nothing.

    Ports that are not given are those that are free now.
    """
    typer.echo(str(engine_of(config).preview_command()))
