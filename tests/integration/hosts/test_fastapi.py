"""FastAPI under uvicorn: the program of the documentation, its clients, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.hosts.programs import Program, environment, free_port, running

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

pytestmark = [pytest.mark.process, pytest.mark.server, pytest.mark.slow]

# Every client would read the certificates of all authorities first.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
LONG = 3500
SHORT = 24


def uvicorn_of(port: int, *options: str) -> list[str]:
    """The command of the documentation, with the endpoints of the tests."""
    app = "tests.support.hosts.web_app:app"
    bounds = ["--timeout-graceful-shutdown", "1", "--no-access-log"]
    return ["-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port), *bounds, *options]


def client_of(url: str, timeout: float = 60.0) -> Any:
    return httpx.AsyncClient(base_url=url, timeout=timeout, verify=NO_TLS)


def is_up(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/figures", timeout=5.0, verify=NO_TLS).is_success)
    except httpx.TransportError:
        return False


def figures(url: str) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/figures", timeout=10.0, verify=NO_TLS).json())


def wait_until_idle(server: Program, url: str, seconds: float = 15.0) -> dict[str, Any]:
    """Wait until no slot is taken. How many steps that took tells whether work was stopped or ended by itself."""
    server.wait_for(lambda: (now := figures(url))["running"] == now["waiting"] == 0, seconds)
    return figures(url)


@pytest.fixture(scope="module")
def server(tiny_folder, tmp_path_factory) -> Iterator[Program]:
    port = free_port()
    log = tmp_path_factory.mktemp("uvicorn") / "log"
    with running(uvicorn_of(port), log, environment(tiny_folder)) as server:
        server.url = f"http://127.0.0.1:{port}"
        server.wait_for(lambda: is_up(server.url))
        yield server


def question(text: str, tokens: int = SHORT) -> dict[str, Any]:
    return {"text": text, "max_tokens": tokens}


async def events(response) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


async def streamed(client, path: str, text: str, tokens: int = SHORT) -> str:
    pieces = []
    async with client.stream("POST", path, json=question(text, tokens)) as response:
        async for name, data in events(response):
            if name == "piece":
                pieces.append(data["text"])
    assert name == "done"
    return "".join(pieces)


async def asked(client, path: str, text: str) -> str:
    response = await client.post(path, json=question(text))
    assert response.status_code == 200, response.text
    return str(response.json()["text"] if path == "/chat" else response.text)


ENDPOINTS = {"/chat": asked, "/chat/stream": streamed, "/sync": asked, "/sync/stream": streamed, "/unwatched": asked}


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_every_kind_of_endpoint_answers_as_the_model_does(server, plain, path):
    async with client_of(server.url) as client:
        assert await ENDPOINTS[path](client, path, "The sea") == plain("The sea", SHORT)


async def test_twenty_clients_at_once_on_two_slots(server, plain):
    texts = [f"Client {number}" for number in range(20)]
    paths = [list(ENDPOINTS)[number % len(ENDPOINTS)] for number in range(20)]
    async with client_of(server.url) as client:
        answers = await asyncio.gather(
            *(ENDPOINTS[path](client, path, text) for path, text in zip(paths, texts, strict=True))
        )
    assert answers == [plain(text, SHORT) for text in texts]
    wait_until_idle(server, server.url)


@pytest.mark.parametrize("path", ["/chat/stream", "/sync/stream"])
async def test_a_client_that_leaves_a_stream_frees_its_slot(server, plain, path):
    begun = figures(server.url)["forwards"]
    leaving = client_of(server.url)
    async with leaving, leaving.stream("POST", path, json=question("Long", LONG)) as response:
        async for _ in events(response):
            break
        assert figures(server.url)["running"] == 1
    assert wait_until_idle(server, server.url)["forwards"] - begun < LONG / 2, "the work went on"
    async with client_of(server.url) as client:
        assert await asked(client, "/chat", "Next") == plain("Next", SHORT)


async def test_a_client_that_does_not_wait_for_its_answer_frees_its_slot(server):
    begun = figures(server.url)["forwards"]
    async with client_of(server.url, timeout=0.05) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/chat", json=question("Long", LONG))
    assert wait_until_idle(server, server.url)["forwards"] - begun < LONG / 2, "the work went on"


async def test_clients_that_leave_while_they_wait_for_a_slot(server, plain):
    async with client_of(server.url) as client:
        tasks = [asyncio.create_task(streamed(client, "/chat/stream", f"Long {number}", LONG)) for number in range(6)]
        await asyncio.to_thread(server.wait_for, lambda: figures(server.url)["waiting"] >= 4, 10.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        wait_until_idle(server, server.url)
        assert await asked(client, "/chat", "Next") == plain("Next", SHORT)


async def test_what_is_wrong_is_told_the_client_and_costs_nobody_else(server, plain):
    async with client_of(server.url) as client:
        good = asyncio.create_task(streamed(client, "/chat/stream", "Good", 200))
        refused = await client.post("/chat", json=question("x" * 8000))
        assert refused.status_code == 422
        assert "tokens" in refused.json()["detail"]
        async with client.stream("POST", "/chat/stream", json=question("x" * 8000)) as response:
            told = [event async for event in events(response)]
        assert [name for name, _ in told] == ["error"]
        assert told[0][1]["detail"] == refused.json()["detail"]
        assert await good == plain("Good", 200)


async def test_nothing_grows_with_the_number_of_requests(server):
    async def round_of_requests() -> dict[str, Any]:
        async with client_of(server.url) as client:
            for _ in range(2):
                tasks = [call(client, path, "Again") for path, call in ENDPOINTS.items()]
                await asyncio.gather(*tasks)
                async with client.stream("POST", "/chat/stream", json=question("Long", LONG)) as response:
                    async for _ in events(response):
                        break
        return wait_until_idle(server, server.url)

    await round_of_requests()
    before = await round_of_requests()
    for _ in range(2):
        after = await round_of_requests()
    assert after["files"] <= before["files"] + 3
    assert after["mb"] <= before["mb"] + 40
    assert after["threads"] <= before["threads"] + 3


@contextlib.contextmanager
def an_open_stream(url: str, path: str = "/chat/stream") -> Iterator[None]:
    """A stream of which one line was read."""
    client = httpx.Client(base_url=url, timeout=60.0, verify=NO_TLS)
    with client, client.stream("POST", path, json=question("Long", LONG)) as response:
        lines = response.iter_lines()
        next(lines)
        yield


def test_it_ends_at_once_in_the_middle_of_streams(server):
    """The last test of this server."""
    with an_open_stream(server.url), an_open_stream(server.url, "/sync/stream"):
        assert figures(server.url)["running"] == 2
        server.stop()
    assert "Application shutdown complete" in server.output
    assert "Traceback" not in server.output, server.output


def test_two_workers_hold_a_model_each(tiny_folder, plain, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(uvicorn_of(port, "--workers", "2"), tmp_path / "log", environment(tiny_folder)) as server:
        server.wait_for(lambda: server.output.count("Application startup complete") == 2)
        pids = set()

        def ask(number: int) -> None:
            with httpx.Client(base_url=url, timeout=60.0, verify=NO_TLS) as client:
                answer = client.post("/chat", json=question(f"Client {number}"))
                assert answer.json()["text"] == plain(f"Client {number}", SHORT)
                pids.add(client.get("/figures").json()["pid"])

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(16)))

        def have_both_answered() -> bool:
            pids.add(figures(url)["pid"])
            return len(pids) == 2

        server.wait_for(have_both_answered, 20.0)
        with an_open_stream(url):
            server.stop()
        assert "Traceback" not in server.output, server.output
