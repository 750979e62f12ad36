"""The C++ compiler of this machine: what CXX names, as a shell reads it, else g++."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

WITHOUT = (
    "the engine's own kernels are not used, and PyTorch's operators are, which are slower. Install g++ (apt install "
    "g++, dnf install gcc-c++, apk add g++), or have CXX name a compiler"
)
"""What is lost where there is none, and what to do."""


def compiler_command() -> tuple[str, ...]:
    """The compiler and the options that CXX gives it, such as `("ccache", "g++")`; not whether it is there."""
    named = os.environ.get("CXX", "").strip()
    if not named:
        return ("g++",)
    if Path(named).is_file():
        return (named,)  # a path with blanks
    try:
        return tuple(shlex.split(named)) or ("g++",)
    except ValueError:
        return (named,)  # a quotation mark that is not closed: nothing of that name will be found


def compiler_program() -> str:
    """The compiler alone, without a launcher in front of it, such as ccache, and options behind it."""
    first, *rest = compiler_command()
    return rest[0] if rest and not rest[0].startswith("-") else first


def find_compiler() -> tuple[str, ...] | None:
    """`compiler_command`, if all its programs are there; None where one is not."""
    command = compiler_command()
    return command if all(map(shutil.which, (command[0], compiler_program()))) else None
