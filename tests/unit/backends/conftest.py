"""What tests of backends over servers share: stand-ins, each of TGI's clients, and a backend over both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from langchain_specdec import TGIBackend
from tests.standin.clients import CLIENTS, LIMITS, make_backend, quick_retries  # noqa: F401 - they are fixtures
from tests.standin.models import FakeModel
from tests.standin.openai_server import serving
from tests.standin.server import ServerThread


@pytest.fixture
def server() -> Iterator[ServerThread]:
    with ServerThread(FakeModel(speculate=2), LIMITS) as server:
        yield server


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(server: ServerThread, client: str, make_backend: Callable[..., TGIBackend]) -> TGIBackend:  # noqa: F811
    return make_backend(server.url, client=client)


@pytest.fixture(scope="module")
def place() -> Iterator[dict[str, Any]]:
    """One server for all tests, each of which puts another stand-in in its place."""
    holder: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await holder["standin"].app(scope, receive, send)

    with serving(app) as holder["url"]:
        yield holder
