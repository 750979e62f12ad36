"""TGI's launcher and Docker as stand-ins play them, where the processes that a test starts find them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STANDIN = Path(__file__).resolve().parents[1] / "standin"


def put_launcher_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put `text-generation-launcher` on PATH, by a link in `folder`; it works fast, and without faults."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "text-generation-launcher").symlink_to(STANDIN / "text-generation-launcher")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_PYTHON", sys.executable)
    monkeypatch.setenv("STANDIN_SECONDS", "0.02")
    monkeypatch.delenv("STANDIN_FAULT", raising=False)


def put_docker_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[], list[dict[str, Any]]]:
    """Put `docker` into `folder/bin`, which is on PATH; returns a function that reads how it was called."""
    program = folder / "bin" / "docker"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN / "docker.py"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("STANDIN_DOCKER", str(folder))
    return lambda: [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
