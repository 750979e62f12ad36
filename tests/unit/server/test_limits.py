"""How much a server takes, and what it lets go of: bodies, requests that wait, clients that leave, time, the end."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from functools import partial
from typing import Any, cast

import httpx
import pytest

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.server import connections
from langchain_specdec.server.run import Server
from langchain_specdec.server.settings import ServerSettings
from tests.support.backends import is_idle, lasting, make_chat_backend
from tests.support.served import CannedBackend, serving
from tests.support.tiny_models import wait_until
from tools.serve_load import is_empty, run_round
from tools.serve_load import main as serve_load

pytestmark = pytest.mark.server

# As long as there is room for, and no end before.
LONG = {"prompt": "x", "max_tokens": 2900, "ignore_eos": True, "temperature": 0}
SHORT = {**LONG, "max_tokens": 4}


@pytest.fixture(scope="module")
def backend():
    with lasting(make_chat_backend(num_slots=2)) as backend:
        yield backend


def running(client: httpx.Client) -> float:
    """Requests that the server has, by its figures."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith(("tgi_queue_size ", "tgi_batch_current")))


@pytest.fixture(scope="module")
def client():
    with serving(CannedBackend(), body_limit=1000) as client:
        yield client


class TestBodies:
    @pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions"])
    def test_a_body_that_is_too_large_is_refused_unread(self, client, path):
        host, port = client.base_url.host, client.base_url.port
        with socket.create_connection((host, port), timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 100000000\r\n\r\n".encode())
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
        # The rest is not waited for.
        assert answer.startswith(b"HTTP/1.1 413 ")

    def test_so_is_one_that_does_not_say_its_length(self, client):
        pieces = (b" " * 100 for _ in range(1000))
        response = client.post("/generate", content=pieces, headers={"content-type": "application/json"})
        assert response.status_code == 413

    @pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 900, b'{"inputs": NaN}', b""])
    def test_what_is_no_json_is_refused(self, client, body):
        headers = {"content-type": "application/json"}
        assert client.post("/generate", content=body, headers=headers).status_code == 400
        error = client.post("/v1/completions", content=body, headers=headers)
        assert (error.status_code, error.json()["error"]["type"]) == (400, "invalid_request_error")

    def test_what_is_no_http_fills_no_log(self, client, capfd):
        host, port = client.base_url.host, client.base_url.port
        for sent in (b"hello\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"):
            with socket.create_connection((host, port), timeout=10) as connection:
                connection.sendall(sent)
                assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
        upgrade = {"upgrade": "websocket", "connection": "Upgrade"}
        assert client.get("/health", headers=upgrade).status_code == 200
        assert capfd.readouterr() == ("", "")

    def test_a_body_of_two_lengths_is_refused(self, client):
        host, port = client.base_url.host, client.base_url.port
        head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        with socket.create_connection((host, port), timeout=10) as connection:
            connection.sendall(f"{head}0\r\n\r\nGET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1

    def test_an_error_does_not_repeat_a_body(self):
        with serving(CannedBackend()) as roomy:
            answer = roomy.post("/v1/completions", json={"prompt": "a", "model": "x" * 100_000})
        assert (answer.status_code, len(answer.content) < 3000) == (404, True)

    def test_another_type_is_refused(self, client):
        response = client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
        assert response.status_code == 415


class TestPrompts:
    def test_of_a_long_prompt_the_end_is_taken_where_that_is_asked_for(self, backend):
        with serving(backend) as client:
            parameters = {"max_new_tokens": 1, "details": True}
            body = {"inputs": "x " * 100_000, "parameters": parameters}
            refused = client.post("/generate", json=body)
            assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")
            parameters["truncate"] = 5
            frame = client.post("/generate_stream", json=body).text.split("\n\n")[0]
        assert json.loads(frame.removeprefix("data:"))["details"]["input_length"] == 5


class TestWaiting:
    def test_beyond_the_limit_there_is_429(self, backend):
        with serving(backend, max_waiting=1) as client:
            streams = [client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) for _ in range(3)]
            try:
                for stream in streams:
                    assert stream.__enter__().status_code == 200
                refused = client.post("/v1/completions", json=SHORT)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert refused.json()["error"]["code"] == "overloaded"
                body = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
                refused = client.post("/generate", json=body)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert refused.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
                frames = client.post("/generate_stream", json=body)
                assert frames.status_code == 200
                assert frames.text == 'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n'
                assert client.get("/health").status_code == 200
            finally:
                for stream in streams:
                    stream.__exit__(None, None, None)
            assert wait_until(lambda: running(client) == 0)
            assert client.post("/v1/completions", json=SHORT).status_code == 200
        assert is_idle(backend)

    def test_each_prompt_of_a_list_counts(self, backend):
        with serving(backend, max_waiting=1) as client:
            assert client.post("/v1/completions", json={**SHORT, "prompt": ["a"] * 3}).status_code == 200
            assert client.post("/v1/completions", json={**SHORT, "prompt": ["a"] * 4}).status_code == 429
            assert running(client) == 0


class TestClientsThatLeave:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate", "/generate_stream"])
    def test_a_client_that_leaves_frees_its_slot(self, backend, path, stream):
        bodies = {
            "/v1/completions": {**LONG, "stream": stream},
            "/v1/chat/completions": {
                "messages": [{"role": "user", "content": "x"}], "ignore_eos": True, "temperature": 0, "stream": stream
            },
            "/generate": {"inputs": "x", "parameters": {"logprobs": True, "max_new_tokens": 2900}},
            "/generate_stream": {"inputs": "x", "parameters": {"max_new_tokens": 2900}},
        }  # fmt: skip
        with serving(backend) as client:
            body = json.dumps(bodies[path]).encode()
            host, port = client.base_url.host, client.base_url.port
            before = backend.engine.num_target_forwards
            with socket.create_connection((host, port), timeout=10) as connection:
                head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                assert wait_until(lambda: backend.engine.num_target_forwards > before + 3)
            assert is_idle(backend)
            assert wait_until(lambda: running(client) == 0)

    def test_a_reader_that_does_not_read_costs_nobody_else(self, backend):
        with serving(backend, request_timeout=30.0) as client:
            body = json.dumps({**LONG, "stream": True}).encode()
            host, port = client.base_url.host, client.base_url.port
            with socket.create_connection((host, port), timeout=10) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                # Half a request, too.
                with socket.create_connection((host, port), timeout=10) as half:
                    half.sendall(b"POST /generate HTTP/1.1\r\nHost: x")
                    assert client.post("/v1/completions", json=SHORT).status_code == 200
            assert is_idle(backend)

    def test_connections_that_ask_nothing_are_closed(self, monkeypatch):
        monkeypatch.setattr(connections, "_SECONDS", 0.1)
        with serving(CannedBackend()) as client:
            host, port = client.base_url.host, client.base_url.port
            for sent in (b"", b"POST /generate HTTP/1.1\r\nHost: x"):
                with socket.create_connection((host, port), timeout=10) as connection:
                    connection.sendall(sent)
                    assert connection.recv(1) == b""
            with socket.create_connection((host, port), timeout=10) as connection:
                connection.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
                assert connection.recv(1) == b""

    def test_what_runs_is_not_closed_however_long_it_takes(self, backend, monkeypatch):
        monkeypatch.setattr(connections, "_SECONDS", 0.1)
        with serving(backend) as client:
            for stream in (False, True):
                body = {**LONG, "max_tokens": 300, "stream": stream}
                # On a connection of its own: one that is kept may be closed by now.
                answer = httpx.post(client.base_url.join("/v1/completions"), json=body, timeout=60)
                assert answer.status_code == 200
            assert answer.text.endswith("data: [DONE]\n\n")

    def test_the_rest_of_an_answer_that_nobody_reads_is_thrown_away(self, monkeypatch):
        monkeypatch.setattr(connections, "_SECONDS", 0.1)
        with Server(ServerSettings(port=0)).start(cast("LocalBackend", CannedBackend())) as server:
            url = httpx.URL(server.url)
            # Its answer has some 5 MB, of which the sockets hold less.
            body = json.dumps({"inputs": "x" * 100_000}).encode()
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect((url.host, url.port))
                head = f"POST /tokenize HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                connection.recv(1)
                running: Any = server._uvicorn
                assert wait_until(lambda: not running.server_state.connections)


class TestManyClients:
    @pytest.mark.slow
    def test_of_many_that_leave_at_any_time_nothing_is_left(self, backend):
        with Server(ServerSettings(port=0, max_waiting=64)).start(backend) as server:
            told = asyncio.run(run_round(server.url, 500, 64, disconnect=0.5, seed=0))
            assert asyncio.run(is_empty(server.url))
        assert told.errors == []
        assert told.ends.keys() == {"whole", "left"}
        assert is_idle(backend)

    def test_what_is_lost_is_told(self, backend, capsys):
        with serving(backend, request_timeout=0.001) as client:
            assert asyncio.run(serve_load([str(client.base_url), "--requests", "3", "--rounds", "1"])) == 1
        shown = capsys.readouterr().out
        assert "round 1: 0 whole, 0 left, 0 refused, 3 lost" in shown
        assert "took longer than the server lets one take" in shown


class TestTime:
    def test_what_takes_too_long_is_ended(self, backend):
        with serving(backend, request_timeout=0.05) as client:
            response = client.post("/v1/completions", json=LONG)
            assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
            assert response.headers["x-should-retry"] == "false"
            events = client.post("/v1/completions", json={**LONG, "stream": True}).text.split("\n\n")
            assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "timeout"
            assert events[-2:] == ["data: [DONE]", ""]
            body = {"inputs": "x", "parameters": {"max_new_tokens": 2900}}
            response = client.post("/generate", json=body)
            assert (response.status_code, response.json()["error_type"]) == (424, "generation")
            frames = client.post("/generate_stream", json=body).text.split("\n\n")
            assert json.loads(frames[-2].removeprefix("data:"))["error_type"] == "generation"
        assert is_idle(backend)


class TestTheEnd:
    def test_running_requests_end_and_no_more_are_taken(self, backend, monkeypatch):
        server = Server(ServerSettings(port=0, drain_timeout=60))
        told: list[int] = []
        monkeypatch.setattr(server, "run", partial(server.run, on_wait=told.append))
        server.start(backend)
        body = {**LONG, "max_tokens": 400, "stream": True}
        with httpx.Client(base_url=server.url, timeout=60) as client:
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                ending = threading.Thread(target=server.stop)
                ending.start()

                def is_refused():
                    try:
                        return httpx.get(f"{server.url}/health").status_code != 200
                    except httpx.TransportError:
                        return True

                assert wait_until(is_refused)
                texts = [line for line in lines if line]
            ending.join(60)
        assert texts[-1] == "data: [DONE]"
        last = json.loads(texts[-2].removeprefix("data: "))
        assert last["specdec"]["finish_reason"] == "length"
        assert not ending.is_alive()
        # A look at its health may have run beside it.
        assert told in ([1], [2])

    def test_what_does_not_end_in_time_is_ended(self, backend, capfd):
        server = Server(ServerSettings(port=0, drain_timeout=1)).start(backend)
        with (
            httpx.Client(base_url=server.url, timeout=60) as client,
            pytest.raises(httpx.TransportError),
            client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            server.stop()
            list(lines)
        assert is_idle(backend)
        assert "Traceback" not in capfd.readouterr().err

    def test_of_two_that_are_made_at_once_one_is_told(self):
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        first, second = Server(ServerSettings(port=port)), Server(ServerSettings(port=port))
        with first.start(cast("LocalBackend", CannedBackend())), pytest.raises(ValueError, match=r"port \d+ is taken"):
            second.run(cast("LocalBackend", CannedBackend()))

    def test_a_port_that_is_taken_is_told(self):
        with serving(CannedBackend()) as client, pytest.raises(ValueError, match=r"port \d+ is taken"):
            Server(ServerSettings(port=client.base_url.port or 0))

    def test_so_is_one_that_another_server_takes_meanwhile(self, backend):
        first = Server(ServerSettings(port=0))
        second = Server(ServerSettings(port=int(first.url.rpartition(":")[2])))
        with first.start(backend), pytest.raises(ValueError, match=r"port \d+ is taken"):
            second.run(backend)

    def test_an_engine_that_has_ended_is_told(self):
        backend = make_chat_backend(num_slots=1)
        with serving(backend) as client:
            assert client.get("/health").status_code == 200
            backend.close()
            assert client.post("/v1/completions", json=SHORT).status_code == 503
            answer = client.get("/health")
            assert answer.status_code == 503
            assert answer.json() == {"error": "unhealthy", "error_type": "healthcheck"}
