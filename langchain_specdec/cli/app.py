"""The application: its commands and what holds for all of them."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Annotated

import typer

from langchain_specdec._version import __version__
from langchain_specdec.cli.bench import bench
from langchain_specdec.cli.chat import chat
from langchain_specdec.cli.demo import demo
from langchain_specdec.cli.doctor import doctor
from langchain_specdec.cli.generate import generate
from langchain_specdec.cli.reporting import INTERRUPTED

__all__ = ["app", "run"]

app = typer.Typer(
    name="specdec",
    help="Language models with speculative decoding: the same text, sooner.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(generate)
app.command()(bench)
app.command()(chat)
app.command()(doctor)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"specdec {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # Everything is done by the option's callback.
    del version


def run() -> None:
    """Run the application with the arguments of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode shows a replacement instead of ending the program.
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="replace")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
