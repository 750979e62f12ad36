"""A server started from here that crashes, as processes of the stand-in: requests wait for it, errors say why."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from typing import Any

import psutil
import pytest

from langchain_specdec import SpeculativeLLM
from langchain_specdec.errors import BackendUnavailableError
from tests.standin.models import FakeModel
from tests.support.launcher import put_launcher_on_path
from tgi_launcher import Backoff

pytestmark = [pytest.mark.process, pytest.mark.server]


@pytest.fixture(autouse=True)
def launcher(monkeypatch, tmp_path):
    put_launcher_on_path(monkeypatch, tmp_path)


def launched(**options: Any) -> SpeculativeLLM:
    return SpeculativeLLM.launch_tgi("fake", speculate=0, max_new_tokens=60, read_timeout=30.0, **options)


def kill_shard(llm: SpeculativeLLM) -> None:
    """The router answers 424 then, until the launcher has ended it."""
    body, kind = json.dumps(["dead-shard"]).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{llm.backend.base_url}/standin/faults", body, kind)  # type: ignore[attr-defined]  # noqa: S310
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).close()
    launcher = psutil.Process(llm.backend._server.pid)  # type: ignore[attr-defined]
    shards = [
        p.pid for p in launcher.children(recursive=True) if any(part.endswith("shard.py") for part in p.cmdline())
    ]
    assert shards
    for pid in shards:
        os.kill(pid, signal.SIGKILL)


def test_a_request_is_answered_after_the_restart():
    with launched(restart="on-failure", backoff=Backoff(first_seconds=0.1)) as llm:
        assert llm.invoke("x") == FakeModel.ANSWER
        kill_shard(llm)
        assert llm.invoke("x") == FakeModel.ANSWER
        assert llm.backend._server.last_exit is not None  # type: ignore[attr-defined]


def test_the_error_says_why_a_server_ended_that_is_not_restarted():
    with launched() as llm:
        assert llm.invoke("x") == FakeModel.ANSWER
        os.kill(llm.backend._server.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(BackendUnavailableError, match="The server, which was started from here, has ended: "):
            for _ in range(50):
                llm.invoke("x")
