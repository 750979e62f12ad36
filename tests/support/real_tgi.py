"""A real text-generation-launcher for tests: where it is, how it is run here, and one server at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from langchain_specdec.models.embedded import is_available, model_path
from tgi_launcher import TGIConfig, TGIServer

LAUNCHER = os.environ.get("TGI_LAUNCHER") or shutil.which("text-generation-launcher")
"""Path of the launcher, None where there is none."""
MODEL = os.environ.get("TGI_MODEL")
"""Folder of the model to serve; None is the one that comes along."""

# bfloat16 keeps 8 bits of a logit: two tokens this close, in nats, may change places.
ROUNDING = 0.5

MARKS = [
    pytest.mark.real_tgi,
    pytest.mark.process,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
"""For every module of tests on a real server."""


def why_not(markers: str) -> str | None:
    """Why no test runs on a real server, if so.

    Args:
        markers: What pytest was given by `-m`.
    """
    if "real_tgi" not in markers:
        return "starts servers, for minutes: make test-tgi, or pytest -m real_tgi"
    if LAUNCHER is None:
        return "no text-generation-launcher on PATH, and TGI_LAUNCHER names none"
    if MODEL is None and not is_available():
        return "no embedded model, and TGI_MODEL names no folder of another"
    return None


def model_folder() -> str:
    """The folder of the model to serve."""
    return MODEL or str(model_path())


@cache
def _free_ports() -> dict[str, int]:
    """Ports that nobody has, and that no other launcher looks for: other tests may run beside these."""
    names = ("port", "prometheus_port", "master_port")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return dict(zip(names, (one.getsockname()[1] for one in sockets), strict=True))


def real_config(**options: Any) -> TGIConfig:
    """A server that starts soon: short limits, and on a machine without a GPU what TGI needs there."""
    assert LAUNCHER is not None
    # The launcher finds its router and its shards on PATH, as a rule beside itself.
    path = f"{Path(LAUNCHER).resolve().parent}{os.pathsep}{os.environ['PATH']}"
    env = {"HF_HUB_OFFLINE": "1", "PATH": path}
    here: dict[str, Any] = {}
    if not torch.cuda.is_available():
        env["OMP_NUM_THREADS"] = "1"
        here["cpu"] = True
    defaults = {
        "model_id": model_folder(),
        "launcher_path": LAUNCHER,
        "runtime": "binary",
        **_free_ports(),
        "max_total_tokens": 1400,
        "max_input_tokens": 900,
        "max_batch_prefill_tokens": 1024,
        "max_concurrent_requests": 8,
        "graceful_termination_timeout": 5,
        "startup_timeout": 240.0,
    }
    return TGIConfig(**{**defaults, **here, "env": env, **options})


def answers(server: TGIServer) -> bool:
    """Whether it generates; for some seconds after a shard has died nothing else tells."""
    body = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 1}}).encode()
    request = urllib.request.Request(f"{server.base_url}/generate", body, {"Content-Type": "application/json"})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class Servers:
    """At most one server at a time, since two share the machine; whoever asks for the one that runs gets it."""

    def __init__(self) -> None:
        self._current: TGIServer | None = None

    def get(self, **options: Any) -> TGIServer:
        """A server that is ready, with these options of `TGIConfig`."""
        config = real_config(**options)
        if self._current is None or self._current.config != config or not answers(self._current):
            self.close()
            self._current = TGIServer(config)
            self._current.start()
        return self._current

    def close(self) -> None:
        """End the one that runs."""
        if self._current is not None:
            self._current.stop(10.0)
        self._current = None


def processes_with(name: str, value: str) -> list[psutil.Process]:
    """Processes with a variable in their environment, this one left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def in_time(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Wait until it comes true; what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} seconds: {what}"
        time.sleep(0.05)
    return value
