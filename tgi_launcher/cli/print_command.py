"""`tgi-launch print-command`: what would be run, to read or to paste."""

from __future__ import annotations

import typer

from tgi_launcher.config import TGIConfig
from tgi_launcher.plan import preview_command


def print_command(config: TGIConfig) -> None:
    """Print the command that `start` would run, secrets as ***, and run nothing.

    Ports that are not given are those that are free now.
    """
    typer.echo(str(preview_command(config)))
