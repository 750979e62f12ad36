"""What TGI answers, byte for byte: the stand-in gives it, and so does `specdec serve`.

`tgi_answers.json` holds requests and the answers to them, written down from TGI's contract (compact JSON, one frame a
token, errors of its router and of its web framework) with a model that gives the same bytes to everybody. Both servers
have to give these, so that they and the clients tried against them do not err together. `tgi_faults.json` holds what
TGI answers where something is wrong with it or in front of it, and what only TGI does.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.standin.generation import Limits
from tests.standin.models import FakeModel, GeneratedToken
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


@pytest.fixture(scope="module", params=[1, 3], ids=["plain", "speculating"])
def clients(request: pytest.FixtureRequest) -> Iterator[dict[str | None, httpx.Client]]:
    """Clients of `specdec serve` by its key."""
    width = request.param
    with serving(CannedBackend(width)) as free, serving(CannedBackend(width), api_key="Key") as keyed:
        yield {None: free, "Key": keyed}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_serve_answers_as_tgi_does(clients, case):
    response = asked(clients[case.get("api_key")], case)
    assert response.status_code == case["status"]
    assert response.content.decode() == case["answer"]
    assert response.headers.get("content-type", "") == case["content_type"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_stand_in_answers_as_tgi_does(case):
    model = FakeModel(takes_grammars=True)
    with (
        ServerThread(model, LIMITS, api_key=case.get("api_key")) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        response = asked(client, case)
    assert response.status_code == case["status"]
    if case["content_type"] == "application/json":
        # Its JSON has spaces.
        assert response.json() == json.loads(case["answer"])
    else:
        assert response.text == case["answer"]


class Fake(FakeModel):
    """Takes grammars, and has tokens of several letters where a case has them."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__(speculate=2, takes_grammars=case.get("takes_grammars", True))
        self.pieces = case.get("pieces")

    def make_grammar(self, *, schema: Any = None, regex: str | None = None) -> Any:
        try:
            re.compile(regex or "")
        except re.error as error:
            raise ValueError(error) from error
        return schema or regex

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        if self.pieces is None:
            return super().decode(ids, skip_special_tokens=skip_special_tokens)
        text = "".join(self.pieces[token] for token in ids if token < len(self.pieces))
        return text if skip_special_tokens or self.EOS not in ids else text + "</s>"

    async def steps(self, prompt: Sequence[int], sampling: Any) -> AsyncIterator[list[GeneratedToken]]:
        if self.pieces is None:
            async for step in super().steps(prompt, sampling):
                yield step
        else:
            for token in [*range(len(self.pieces)), self.EOS][: sampling.max_new_tokens]:
                yield [GeneratedToken(token, -0.5)]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case["name"])
def test_the_stand_in_fails_as_tgi_does(case):
    with ServerThread(Fake(case), LIMITS) as server, httpx.Client(base_url=server.url) as client:
        server.set_faults(*case.get("faults", ()))
        response = asked(client, case)
    assert response.status_code == case["status"]
    if case["content_type"] == "application/json":
        assert response.json() == json.loads(case["answer"])
    else:
        assert response.text == case["answer"]


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
    assert list(info) == [
        *("model_id", "model_sha", "model_pipeline_tag", "max_concurrent_requests", "max_best_of"),
        *("max_stop_sequences", "max_input_tokens", "max_total_tokens", "validation_workers", "max_client_batch_size"),
        *("router", "version", "sha", "docker_label"),
    ]
    with ServerThread(FakeModel(), LIMITS) as server:
        assert sorted(info) == sorted(httpx.get(f"{server.url}/info").json())
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
