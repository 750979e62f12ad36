"""gunicorn: workers that load a model each, one that was loaded before they were forked, reloading and ending."""

from __future__ import annotations

import contextlib
import signal
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.hosts.programs import Program, environment, free_port, running

httpx = pytest.importorskip("httpx")
pytest.importorskip("gunicorn")

pytestmark = [pytest.mark.process, pytest.mark.server, pytest.mark.slow]

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
WSGI = "tests.support.hosts.web_wsgi:application"
TOKENS = 24
LONG = 3500


@contextlib.contextmanager
def gunicorn(folder, log, app: str, *options: str, **env: str) -> Iterator[tuple[Program, Any]]:
    """A server and a client of it."""
    port = free_port()
    bounds = ["--graceful-timeout", "1", "--timeout", "60", "--no-control-socket"]
    command = ["-m", "gunicorn", app, "--bind", f"127.0.0.1:{port}", *bounds, *options]
    with (
        running(command, log, environment(folder, **env)) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, verify=NO_TLS) as client,
    ):
        server.wait_for(lambda: "Booting worker" in server.output)
        yield server, client


def ask(client, text: str, tokens: int = TOKENS):
    """As a new connection, which any worker may take."""
    return client.get("/", params={"text": text, "tokens": tokens}, headers={"Connection": "close"})


def workers(server: Program) -> set[int]:
    return {each.pid for each in server.family()[1:]}


def test_a_model_for_each_worker(tiny_folder, plain, tmp_path):
    """With threads in each, HUP and TERM; and `--preload`, so that workers load after a fork that imported all."""
    options = ["--workers", "2", "--threads", "4", "--preload"]
    with gunicorn(tiny_folder, tmp_path / "log", WSGI, *options) as (server, client):
        seen = set()

        def ask_until_both_answered() -> bool:
            answer = ask(client, "The sea")
            assert answer.text == plain("The sea", TOKENS)
            seen.add(answer.headers["X-Pid"])
            return len(seen) == 2

        server.wait_for(ask_until_both_answered)
        before = workers(server)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: len(now := workers(server)) == 2 and not now & before, 20.0)
        assert ask(client, "Again").text == plain("Again", TOKENS)
        with client.stream("GET", "/", params={"text": "Long", "tokens": LONG, "stream": 1}) as response:
            pieces = response.iter_bytes()
            next(pieces)
            assert server.zombies() == []
            assert server.stop() == 0
        assert "Traceback" not in server.output, server.output


def test_a_model_that_was_loaded_before_the_fork_is_refused_in_words(tiny_folder, tmp_path):
    """`--preload` with a model at module level, which has answered already."""
    options = ["--workers", "2", "--preload"]
    with gunicorn(tiny_folder, tmp_path / "log", WSGI, *options, LOAD="import") as (server, client):
        for _ in range(4):
            answer = ask(client, "The sea")
            assert answer.status_code == 503
            assert "another process" in answer.text
            assert "Load the model in the process that uses it" in answer.text
        before = workers(server)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: len(now := workers(server)) == 2 and not now & before, 10.0)
        assert server.zombies() == []
        assert server.stop() == 0
        assert "Traceback" not in server.output, server.output


def test_a_worker_of_an_event_loop(tiny_folder, plain, tmp_path):
    """The FastAPI program of the documentation: a client that leaves, and the end in the middle of a stream."""
    pytest.importorskip("fastapi")
    app = "tests.support.hosts.web_app:app"
    with gunicorn(tiny_folder, tmp_path / "log", app, "--worker-class", "asgi") as (server, client):
        server.wait_for(lambda: "ASGI server listening" in server.output)

        def figures() -> dict[str, Any]:
            return dict(client.get("/figures").json())

        def stream():
            return client.stream("POST", "/chat/stream", json={"text": "Long", "max_tokens": LONG})

        with stream() as response:
            lines = response.iter_lines()
            next(lines)
            assert figures()["running"] == 1
        server.wait_for(lambda: figures()["running"] == 0, 15.0)
        assert figures()["forwards"] < LONG / 4, "the work of the stream went on"
        answer = client.post("/chat", json={"text": "The sea", "max_tokens": TOKENS}).json()
        assert answer["text"] == plain("The sea", TOKENS)
        assert answer["usage"]["output_tokens"] == TOKENS
        with stream() as response:
            lines = response.iter_lines()
            next(lines)
            assert server.stop() == 0
        assert "Traceback" not in server.output, server.output
