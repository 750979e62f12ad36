"""The command line: `tgi-launch MODEL`, `tgi-launch check`, `tgi-launch print-command`, `tgi-launch cleanup`."""

from __future__ import annotations

import sys

from tgi_launcher.extras import install_command
from tgi_launcher.standard_streams import run_program

__all__ = ["main"]

_INSTALL_HINT = f"The command line needs typer and rich: {install_command('cli')}\n"


def main() -> None:
    """Run `tgi-launch` with the arguments of the process, and end it with the command's exit code."""
    run_program(_run)


def _run() -> None:
    try:
        import rich  # noqa: F401  # typer does without it, the commands do not

        from tgi_launcher.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        sys.stderr.write(_INSTALL_HINT)
        sys.exit(1)
    run()
