"""Time from a fresh process to the first token: what is loaded, and what is said of processes that fail."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_specdec.bench import startup
from langchain_specdec.bench.contestant import ContestantSpec
from langchain_specdec.bench.startup import check_startup, measure_startup, sources
from langchain_specdec.cli.app import app
from langchain_specdec.errors import InvalidParameterError, ModelLoadError
from langchain_specdec.models import embedded
from tests.support.tiny_models import byte_tokenizer, tiny_model

pytestmark = pytest.mark.slow


def spec(name: str) -> ContestantSpec:
    return ContestantSpec(name, name)


def test_what_each_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "model_path", lambda: tmp_path / "folder")
    monkeypatch.setattr(embedded, "gguf_file", lambda: tmp_path / "file.gguf")
    everyone = [spec(name) for name in ("plain", "hf", "llama-cpp")]
    assert sources("embedded", everyone) == {
        "ours": "embedded", "peer": str(tmp_path / "folder"), "gguf": str(tmp_path / "file.gguf"),
    }  # fmt: skip
    # The folder is written for whoever asks for it.
    assert sources("embedded", [spec("auto")]) == {"ours": "embedded", "peer": "embedded"}


def test_the_first_process_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([9.0, 2.0, 4.0])
    asked: list[dict[str, Any]] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append(json.loads(options["input"]))
        return SimpleNamespace(stdout=f"{json.dumps({'seconds': next(told), 'at': time.time() + 1})}\n")

    monkeypatch.setattr(subprocess, "run", run)
    start = measure_startup(spec("hf"), {"peer": "folder"}, 2)
    assert start.seconds == (2.0, 4.0)
    assert start.process_seconds == pytest.approx((1.0, 1.0), abs=0.5)
    assert asked == [{"kind": "hf", "models": {"peer": "folder"}}] * 3


@pytest.mark.process
def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_CHILD", "raise SystemExit(3)")
    found = CliRunner().invoke(app, ["bench", "--startup", "--contestants", "plain"])
    assert found.exit_code == 1
    assert "plain failed: its process ended with code 3" in found.stderr
    assert "–" in found.stdout


@pytest.mark.process
def test_a_model_that_cannot_be_loaded_is_told_without_a_traceback(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(b"GGUF")
    start = measure_startup(spec("plain"), {"ours": str(file)}, 1)
    assert start.failure == f"{str(file)!r} is damaged: it ends within its metadata. Download or copy it anew."
    assert capfd.readouterr().err == ""


def test_what_is_certainly_not_loaded_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"There is no file '{tmp_path}/x.gguf'"):
        check_startup([spec("plain")], f"{tmp_path}/x.gguf")
    (tmp_path / "x.gguf").touch()
    check_startup([spec("plain"), spec("llama-cpp")], f"{tmp_path}/x.gguf")
    with pytest.raises(InvalidParameterError, match=r"transformers would dequantise .*: leave 'hf' out"):
        check_startup([spec("plain"), spec("hf")], f"{tmp_path}/x.gguf")


@pytest.mark.process
@pytest.mark.transformers
def test_a_process_of_its_own(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    start = measure_startup(spec("plain"), {"ours": str(tmp_path)}, 1)
    assert start.failure == ""
    assert 0 < start.seconds[0] < start.process_seconds[0]
