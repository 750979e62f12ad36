"""The command line: `specdec demo`, `generate`, `summarize`, `bench`, `chat`, `serve`, `make-draft` and `doctor`."""

from __future__ import annotations

import sys

from tgi_launcher.extras import install_command
from tgi_launcher.standard_streams import run_program

__all__ = ["main"]

_INSTALL_HINT = f"The command line needs typer and rich: {install_command('cli')}"


def main() -> None:
    """Run `specdec` with the arguments of the process, and end it with the command's exit code."""
    run_program(_run)


def _run() -> None:
    try:
        import rich  # noqa: F401  # typer does without it, the commands do not

        from langchain_specdec.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print(_INSTALL_HINT, file=sys.stderr)
        sys.exit(1)
    app()
