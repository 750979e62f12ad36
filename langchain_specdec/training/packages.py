"""Whether what training needs is installed, told before PyTorch or a model is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from langchain_specdec.errors import MissingDependencyError
from tgi_launcher.extras import install_command


def check_packages() -> None:
    """Raise unless what training needs is installed.

    Raises:
        MissingDependencyError: It is not.
    """
    if find_spec("accelerate") is None:
        msg = f"A draft is trained by transformers' Trainer, which needs accelerate: {install_command('train')}"
        raise MissingDependencyError(msg)
