"""Where files are kept on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from langchain_specdec.errors import SpecDecError

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return where prepared models are kept: in `$XDG_CACHE_HOME` or the platform's cache folder.

    Raises:
        SpecDecError: The home folder is unknown.
    """
    # The XDG specification says to ignore relative paths.
    if (chosen := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        return chosen / "langchain-specdec"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "langchain-specdec"
    try:
        return Path.home() / ".cache" / "langchain-specdec"
    except RuntimeError as error:
        raise SpecDecError("The home folder is unknown. Set XDG_CACHE_HOME to a writable folder.") from error
