"""The application: its commands, and `start` as the one that may be left out."""

from __future__ import annotations

import difflib
import sys
from importlib import metadata
from pathlib import Path

from tgi_launcher.cli.check import check
from tgi_launcher.cli.cleanup import cleanup
from tgi_launcher.cli.help_text import Command, make_app
from tgi_launcher.cli.options import takes_config
from tgi_launcher.cli.print_command import print_command
from tgi_launcher.cli.reporting import WRONG_USE
from tgi_launcher.cli.start import start
from tgi_launcher.standard_streams import has_surrogates

_COMMANDS = {
    "start": takes_config(start),
    "check": takes_config(check, needs_model=False),
    "print-command": takes_config(print_command),
    "cleanup": cleanup,
}
_HELP = ("-h", "--help", "--version")
# How alike a word and a command are, from 0 to 1, for the one to be a slip for the other.
_MIN_SIMILARITY = 0.7


def _version() -> str:
    try:
        return metadata.version("langchain-specdec")
    except metadata.PackageNotFoundError:
        return "of a checkout that is not installed"


app = make_app(
    "tgi-launch",
    "Run Text Generation Inference, vLLM, SGLang, llama.cpp or specdec serve on this machine, with speculative "
    "decoding.\n\n"
    "tgi-launch MODEL [OPTIONS] is short for tgi-launch start MODEL [OPTIONS].",
    _version,
    add_completion=False,
)
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=Command)(_command)


def run() -> None:
    """Run the application with the arguments of the process."""
    arguments = sys.argv[1:]
    for number, argument in enumerate(arguments, 1):
        if has_surrogates(argument):
            # It is not shown: it may hold a secret.
            sys.stderr.write(
                f"error: Argument {number} is not text in {sys.getfilesystemencoding()}, the encoding of this locale. "
                "Write it in that; if it is UTF-8, set PYTHONUTF8=1 or LC_ALL=C.UTF-8.\n"
            )
            sys.exit(WRONG_USE)
    if slip := _slip(arguments):
        sys.stderr.write(f"error: {slip}\n")
        sys.exit(WRONG_USE)
    app(args=_with_command(arguments), prog_name="tgi-launch")


def _slip(arguments: list[str]) -> str | None:
    """What to say of a first word that is taken for a model, and seems to be meant for a command."""
    word = arguments[0] if arguments else ""
    if word in _COMMANDS or Path(word).is_dir():
        return None
    likely = difflib.get_close_matches(word, _COMMANDS, n=1, cutoff=_MIN_SIMILARITY)
    if not likely:
        return None
    return f"There is no command {word}: use {likely[0]}, or, if it is a model, tgi-launch start {word}."


def _with_command(arguments: list[str]) -> list[str]:
    """Put in the command that was left out."""
    if arguments and arguments[0] not in (*_COMMANDS, *_HELP):
        return ["start", *arguments]
    return arguments
