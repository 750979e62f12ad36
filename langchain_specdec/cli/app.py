"""The application: its commands and what holds for all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from langchain_specdec._version import __version__
from langchain_specdec.cli.bench import bench
from langchain_specdec.cli.chat import chat
from langchain_specdec.cli.demo import demo
from langchain_specdec.cli.doctor import doctor
from langchain_specdec.cli.generate import generate
from langchain_specdec.cli.options import Command
from langchain_specdec.cli.summarize import summarize
from langchain_specdec.cli.terminal_text import visible
from tgi_launcher.cli.help_text import Group


class _Group(Group):
    shown = staticmethod(visible)


app = typer.Typer(
    name="specdec",
    cls=_Group,
    help="Language models with speculative decoding: the same text, sooner.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, generate, summarize, bench, chat, doctor):
    app.command(cls=Command)(command)


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
