"""The extras of this distribution, as commands that install them however it was installed itself."""

from __future__ import annotations

EXTRAS = {
    "adapters": ("peft>=0.21",),
    "agents": ("langchain>=1,<2",),
    "bench": ("matplotlib>=3.8",),
    "cli": ("jinja2>=3.1", "packaging", "prompt-toolkit>=3.0.50", "rich>=13.8", "typer>=0.15"),
    "embedded": ("gguf>=0.17",),
    "images": ("pillow>=10",),
    "serve": ("starlette>=0.46", "uvicorn>=0.34"),
    "train": ("accelerate>=1.1",),
}
"""What a user installs beside the package, as pyproject.toml declares it."""


def install_command(extra: str, *, upgrade: bool = False) -> str:
    """The command that installs what an extra brings.

    It names the packages and not the extra, so it works beside an installation from a checkout, a wheel or an index,
    and in any folder.

    Args:
        extra: One of `EXTRAS`.
        upgrade: Whether what is there is to be replaced by the newest version that fits.
    """
    quoted = (f'"{package}"' if set(package) & set("<>") else package for package in EXTRAS[extra])
    return f"pip install {'-U ' * upgrade}{' '.join(quoted)}"
