"""The application: its commands and what holds for all of them."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from langchain_specdec._version import __version__
from langchain_specdec.cli.bench import bench
from langchain_specdec.cli.chat import chat
from langchain_specdec.cli.demo import demo
from langchain_specdec.cli.doctor import doctor
from langchain_specdec.cli.generate import generate
from langchain_specdec.cli.options import Command
from langchain_specdec.cli.summarize import summarize
from langchain_specdec.cli.terminal_text import visible

# Of the click that typer comes with, or stands on.
_UsageError: Any = typer.BadParameter.__mro__[1]


class _Group(TyperGroup):
    """Says in one line what was wrong on the command line, as commands say what else is."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        is_alone = kwargs.get("standalone_mode", True)
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                print(f"error: {visible(' '.join(error.format_message().split()))}", file=sys.stderr)
            code = error.exit_code
        if is_alone:
            sys.exit(code)
        return code


app = typer.Typer(
    name="specdec",
    cls=_Group,
    help="Language models with speculative decoding: the same text, sooner.",
    no_args_is_help=True,
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
