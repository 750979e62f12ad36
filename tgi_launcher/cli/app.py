"""The application: its commands, and `start` as the one that may be left out."""

from __future__ import annotations

import contextlib
import io
import sys

import typer

from tgi_launcher.cli.check import check
from tgi_launcher.cli.cleanup import cleanup
from tgi_launcher.cli.options import takes_config
from tgi_launcher.cli.print_command import print_command
from tgi_launcher.cli.start import start

_COMMANDS = {
    "start": takes_config(start),
    "check": takes_config(check, needs_model=False),
    "print-command": takes_config(print_command),
    "cleanup": cleanup,
}
_HELP = ("-h", "--help")

app = typer.Typer(
    name="tgi-launch",
    help="Run Text Generation Inference on this machine, with speculative decoding.\n\n"
    "tgi-launch MODEL [OPTIONS] is short for tgi-launch start MODEL [OPTIONS].",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": list(_HELP)},
)
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


@app.callback()
def _root() -> None:
    pass


def run() -> None:
    """Run the application with the arguments of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode shows a replacement instead of ending the program.
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="replace")
    app(args=_with_command(sys.argv[1:]), prog_name="tgi-launch")


def _with_command(arguments: list[str]) -> list[str]:
    """Put in the command that was left out."""
    if arguments and arguments[0] not in (*_COMMANDS, *_HELP):
        return ["start", *arguments]
    return arguments
