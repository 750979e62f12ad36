"""What TGI answers, byte for byte: the stand-in gives it, and so does `specdec serve`.

`tgi_answers.json` holds requests and the answers to them, written down from TGI's contract (compact JSON, one frame a
token, errors of its router and of its web framework) with a model that gives the same bytes to everybody. Both servers
have to give these, so that they and the clients tried against them do not err together. `tgi_faults.json` holds what
TGI answers where something is wrong with it or in front of it, and what only TGI does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from langchain_specdec.completions.events import Token
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread
from tests.support.served import CannedBackend, serving

pytestmark = pytest.mark.server


def read(name: str) -> list[dict[str, Any]]:
    return json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


CASES, FAULTS = read("tgi_answers.json"), read("tgi_faults.json")
LIMITS = Limits(max_input_tokens=2047, max_total_tokens=2048, max_best_of=1)


def asked(client: httpx.Client, case: dict[str, Any]) -> httpx.Response:
    content = case["body"].encode() if "body" in case else None
    return client.request(case["method"], case["path"], headers=case.get("headers"), content=content)


def assert_told(response: httpx.Response, case: dict[str, Any]) -> None:
    assert response.status_code == case["status"]
    assert response.content.decode() == case["answer"]
    assert response.headers.get("content-type", "") == case["content_type"]


@pytest.fixture(scope="module", params=[1, 3], ids=["plain", "speculating"])
def clients(request: pytest.FixtureRequest) -> Iterator[dict[str | None, httpx.Client]]:
    """Clients of `specdec serve` by its key."""
    width = request.param
    with serving(CannedBackend(width)) as free, serving(CannedBackend(width), api_key="Key") as keyed:
        yield {None: free, "Key": keyed}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_serve_answers_as_tgi_does(clients, case):
    assert_told(asked(clients[case.get("api_key")], case), case)


@pytest.fixture(scope="module")
def standins() -> Iterator[dict[str | None, httpx.Client]]:
    """Clients of the stand-in by its key."""
    model = FakeModel(takes_grammars=True)
    with (
        ServerThread(model, LIMITS) as free,
        ServerThread(model, LIMITS, api_key="Key") as keyed,
        httpx.Client(base_url=free.url) as of_free,
        httpx.Client(base_url=keyed.url) as of_keyed,
    ):
        yield {None: of_free, "Key": of_keyed}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_stand_in_answers_as_tgi_does(standins, case):
    assert_told(asked(standins[case.get("api_key")], case), case)


class Pieces(FakeModel):
    """Tokens of several letters."""

    def __init__(self, pieces: Sequence[str]) -> None:
        super().__init__()
        self.pieces = pieces

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[token] for token in ids if token < len(self.pieces))

    async def steps(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Sequence[Token], None]:
        for token in [*range(len(self.pieces)), self.EOS][: params.max_new_tokens]:
            yield [Token(token, "", None, -0.5)]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case["name"])
def test_the_stand_in_fails_as_tgi_does(case):
    takes_grammars = case.get("takes_grammars", True)
    model = Pieces(case["pieces"]) if "pieces" in case else FakeModel(speculate=2, takes_grammars=takes_grammars)
    with ServerThread(model, LIMITS) as server, httpx.Client(base_url=server.url) as client:
        server.set_faults(*case.get("faults", ()))
        response = asked(client, case)
    assert_told(response, case)


def test_a_whole_answer_tells_its_counts_in_headers(clients):
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 4}}
    headers = clients[None].post("/generate", json=body).headers
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"], headers["x-compute-characters"]) == (
        "5",
        "4",
        "5",
    )
    times = [f"x-{name}-time" for name in ("total", "validation", "queue", "inference")]
    assert all(headers[name].isdecimal() for name in (*times, "x-time-per-token"))


def test_info_has_the_fields_of_tgi(clients):
    info = clients[None].get("/info").json()
    (told,) = [case["answer"] for case in FAULTS if case["path"] == "/info" and case["status"] == 200]
    assert list(info) == list(json.loads(told))
    assert (info["model_id"], info["max_total_tokens"], info["router"]) == ("fake", 2048, "specdec")


def test_tokens_tell_where_they_stand(clients):
    found = clients[None].post("/tokenize", json={"inputs": "aü"}).json()
    assert [(token["id"], token["text"], token["start"], token["stop"]) for token in found] == [
        (97, "a", 0, 1),
        (195, "ü", 1, 2),
        (188, "ü", 1, 2),
    ]
    refused = clients[None].post("/chat_tokenize", json={"messages": []})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "template_error")


def test_details_tell_of_speculation_where_that_is_asked_for(clients):
    parameters = {"max_new_tokens": 4, "details": True, "speculation_details": True}
    details = clients[None].post("/generate", json={"inputs": "x", "parameters": parameters}).json()["details"]
    assert details["speculation"]["num_steps"] in (2, 4)
    frames = clients[None].post("/generate_stream", json={"inputs": "x", "parameters": parameters}).text.splitlines()
    assert json.loads(frames[-2].removeprefix("data:"))["details"]["speculation"] == details["speculation"]
