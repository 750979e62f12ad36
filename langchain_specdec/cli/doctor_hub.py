"""What the doctor looks at beyond this process: the Hub, the folders of caches, and the compiler."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from langchain_specdec.cli.doctor_finding import Finding
from langchain_specdec.models.hub import hub_address, unreachable, within

_SECONDS = 3.0
_GB = 1e9


def hub() -> Finding:
    """Whether the Hugging Face Hub can be reached, by one request and in a few seconds."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    name, address = "Hugging Face Hub", hub_address()
    if constants.HF_HUB_OFFLINE:
        value = "offline (HF_HUB_OFFLINE is set): only models that are here already"
        return Finding(name, value, "warning", "Unset HF_HUB_OFFLINE to download models.")
    started = time.monotonic()
    try:
        response: Any = within(
            _SECONDS + 1, lambda: get_session().head(constants.ENDPOINT, timeout=_SECONDS, headers={})
        )
    except Exception as error:
        advice = "Only models that are here already can be loaded. Look at the network, HTTPS_PROXY and HF_ENDPOINT."
        return Finding(name, f"{address} cannot be reached: {unreachable(error)}", "warning", advice)
    milliseconds = 1000 * (time.monotonic() - started)
    status = response.status_code
    if status >= 400 and status != 405:
        advice = "Is a proxy in between, or is HF_ENDPOINT no Hub?"
        return Finding(name, f"{address} answers with status {status}", "warning", advice)
    return Finding(name, f"{address} can be reached ({milliseconds:.0f} ms)", "ok")


def folder(name: str, path: Path, variable: str, *, room: float) -> Finding:
    """Whether a cache's folder can be written to, and how much room is there.

    Args:
        name: What it is called.
        path: The folder, which need not be there yet.
        variable: Of the environment, that names another one.
        room: Gigabytes that should be free.
    """
    try:
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free / _GB
    except OSError as error:
        value = f"{path} cannot be written to ({error.strerror or type(error).__name__})"
        return Finding(name, value, "warning", f"Set {variable} to a folder of your own.")
    value = f"{path} ({free:.1f} GB free)"
    if free < room:
        return Finding(name, value, "warning", f"Make room, or set {variable} to a folder on another disk.")
    return Finding(name, value)


def compiler() -> Finding:
    """The C++ compiler, by which kernels are made."""
    from langchain_specdec.runner.cpu.compiler import WITHOUT, compiler_command, find_compiler

    command = shlex.join(compiler_command())
    if find_compiler() is None:
        return Finding("C++ compiler", f"no {command}", "warning", f"Without one, {WITHOUT}.")
    return Finding("C++ compiler", command, "ok")
