"""`tgi-launch cleanup`: ends what is left of servers whose owner was killed together with their supervisor."""

from __future__ import annotations

import typer

from tgi_launcher.cleanup import Remains, clean_up
from tgi_launcher.cli.reporting import FAILED, reported


def cleanup() -> None:
    """End the processes and remove the folders and containers that killed servers of this user have left.

    Needed only where a server's supervisor and the process that started it were both killed. Servers in use are left
    alone.
    """
    with reported():
        found = clean_up()
    gone = [remains for remains in found if not remains.is_in_use]
    for remains in gone:
        typer.echo(_told(remains))
    if not gone:
        typer.echo("Nothing is left of servers that were killed.")
    if in_use := len(found) - len(gone):
        typer.echo(f"In use, and left alone: {in_use} {'server' if in_use == 1 else 'servers'}.")
    if left := [str(pid) for remains in gone for pid in remains.left]:
        typer.echo(f"error: These processes did not end even by SIGKILL: {', '.join(left)}.", err=True)
        raise typer.Exit(FAILED)


def _told(remains: Remains) -> str:
    ended = [f"{pid} ({name})" for pid, name in remains.processes if pid not in remains.left]
    parts = [f"ended {', '.join(ended)}"] if ended else []
    parts += [f"removed container {name}" for name in remains.containers]
    return f"A killed server: {'; '.join([*parts, f'removed {remains.folder}'])}."
