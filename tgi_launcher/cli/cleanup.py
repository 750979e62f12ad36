"""`tgi-launch cleanup`: ends what is left of servers whose owner was killed together with their supervisor."""

from __future__ import annotations

import typer

from tgi_launcher.cleanup import Remains, clean_up
from tgi_launcher.cli.reporting import FAILED, reported
from tgi_launcher.logs import printable


def cleanup() -> None:
    """End the processes and remove the folders and containers that killed servers of this user have left.

    Needed only where a server's supervisor and the process that started it were both killed. Servers in use are left
    alone.
    """
    with reported():
        found = clean_up()
    told = [text for remains in found if (text := _told(remains))]
    for text in told:
        typer.echo(text)
    for remains in found:
        if remains.is_lost:
            typer.echo(printable(remains.problem))
    problems = [remains.problem for remains in found if remains.problem and not remains.is_lost]
    if not told and not any(remains.problem for remains in found):
        typer.echo("Nothing is left of servers that were killed.")
    if in_use := sum(remains.is_in_use for remains in found):
        typer.echo(f"In use, and left alone: {in_use} {'server' if in_use == 1 else 'servers'}.")
    for problem in problems:
        typer.echo(f"error: {printable(problem)}", err=True)
    if problems:
        raise typer.Exit(FAILED)


def _told(remains: Remains) -> str:
    parts = [f"ended {', '.join(f'{pid} ({name})' for pid, name in remains.processes)}"] if remains.processes else []
    parts += [f"removed container {name}" for name in remains.containers]
    if not remains.is_in_use and not remains.problem:
        parts.append(f"removed {remains.folder}")
    return f"A killed server: {'; '.join(parts)}." if parts else ""
