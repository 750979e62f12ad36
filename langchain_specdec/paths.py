"""Where files are kept on this machine."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path

from langchain_specdec.errors import SpecDecError


def cache_folder() -> Path:
    """Return where prepared models and compiled kernels are kept: below `$XDG_CACHE_HOME` or the platform's cache.

    Raises:
        SpecDecError: The home folder is unknown.
    """
    try:
        return user_cache_path("langchain-specdec", appauthor=False)
    except RuntimeError as error:
        raise SpecDecError("The home folder is unknown. Set XDG_CACHE_HOME to a writable folder.") from error
