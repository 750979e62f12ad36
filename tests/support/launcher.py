"""TGI's launcher as the stand-in plays it, where the processes that a test starts find it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
