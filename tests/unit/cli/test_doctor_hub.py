"""What the doctor says of the Hub, of folders and of the compiler."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.utils
import pytest
from huggingface_hub import constants

from langchain_specdec.cli import doctor_hub


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the Hub answers: a status, or an error."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:hf_secret@hub.example")

    def answer(what: int | Exception) -> None:
        def head(address: str, **options: Any) -> Any:
            assert address == constants.ENDPOINT
            if isinstance(what, Exception):
                raise what
            return SimpleNamespace(status_code=what)

        monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(head=head))

    return answer


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        (200, "ok", "https://***@hub.example can be reached ("),
        (302, "ok", "can be reached"),
        (407, "warning", "answers with status 407"),
        (503, "warning", "answers with status 503"),
        (OSError("[Errno -3] Temporary failure in name resolution"), "warning", "cannot be reached: its name is not"),
        (OSError("Cannot connect to proxy"), "warning", "the proxy does not let it through"),
    ],
)
def test_whether_the_hub_can_be_reached(answered: Any, what: int | Exception, status: str, said: str) -> None:
    answered(what)
    finding = doctor_hub.hub()
    assert finding.status == status
    assert said in finding.value
    assert "hf_secret" not in str(finding)
    assert bool(finding.advice) == (status != "ok")


def test_offline_it_is_not_asked(answered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(AssertionError("it is asked"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    finding = doctor_hub.hub()
    assert finding.value.startswith("offline (HF_HUB_OFFLINE is set)")
    assert finding.status == "warning"


def test_a_name_server_that_does_not_answer(answered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    event = threading.Event()
    answered(200)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", event.wait)
    monkeypatch.setattr(doctor_hub, "_SECONDS", -0.99)
    assert doctor_hub.hub().value.endswith("cannot be reached: it does not answer")
    event.set()


@pytest.mark.server
def test_a_hub_that_takes_connections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_hub, "_SECONDS", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert doctor_hub.hub().value.endswith("cannot be reached: it does not answer")


def test_a_folder_that_can_be_written_to(tmp_path: Path) -> None:
    finding = doctor_hub.folder("its cache folder", tmp_path / "not" / "there", "HF_HOME", room=0)
    assert finding.status == "info"
    assert finding.value.startswith(f"{tmp_path / 'not' / 'there'} (")
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    below_a_file = doctor_hub.folder("x", tmp_path / "file" / "cache", "HF_HOME", room=0)

    def read_only(**options: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    for finding in (below_a_file, doctor_hub.folder("x", tmp_path, "HF_HOME", room=0)):
        assert finding.status == "warning"
        assert "cannot be written to (" in finding.value
        assert finding.advice == "Set HF_HOME to a folder of your own."


def test_a_folder_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5e9))
    finding = doctor_hub.folder("x", tmp_path, "HF_HOME", room=3)
    assert (finding.status, finding.value) == ("warning", f"{tmp_path} (1.5 GB free)")
    assert "HF_HOME" in finding.advice


def test_a_compiler_that_is_missing_is_told_with_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    finding = doctor_hub.compiler()
    assert (finding.status, finding.value) == ("warning", "no no-such-compiler")
    assert "which are slower. Install g++ (apt install g++" in finding.advice
