"""What systems servers can be started on."""

from __future__ import annotations

import sys

from tgi_launcher.errors import Reason, StartError

if sys.platform == "win32":
    from typing import NoReturn

    def require_posix() -> NoReturn:
        """Say that servers cannot be started here.

        Raises:
            StartError: Always, on Windows.
        """
        msg = (
            "tgi_launcher starts servers on Linux (macOS is untested), not on Windows: run it in WSL, or connect to a "
            "server that runs elsewhere."
        )
        raise StartError(Reason.UNSUPPORTED_SYSTEM, msg)
else:

    def require_posix() -> None:
        """Say it where servers cannot be started; type checkers then know what follows not to run on Windows."""
