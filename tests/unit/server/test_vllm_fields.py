"""VLLM's fields of `/v1/completions` and its `/tokenize`: what they ask for, and what is refused of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from langchain_specdec import LocalBackend, SamplingParams
from langchain_specdec.completions.completion import CompletionRequest
from tests.standin.models import FakeModel
from tests.support.served import CannedBackend, ServedScript, serving
from tests.support.tiny_models import byte_tokenizer, tiny_model

pytestmark = pytest.mark.server
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def canned() -> Iterator[httpx.Client]:
    with serving(CannedBackend(width=3)) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """Of a model that follows grammars."""
    backend = LocalBackend(tiny_model(), byte_tokenizer(), num_slots=2, max_length=200)
    # Its thread runs from here on.
    backend.complete([CompletionRequest("a", SamplingParams(max_new_tokens=1))])
    with serving(backend) as client:
        yield client
    backend.close()


def choices_of(response):
    events = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-2]]
    return [choice for event in events for choice in event["choices"]]


def test_tokens_are_told(canned):
    body = {"prompt": ["ab", "c"], "max_tokens": 7, "return_token_ids": True}
    written = list(FakeModel.ANSWER.encode()[:7])
    whole = canned.post(PATH, json=body).json()["choices"]
    assert [choice["prompt_token_ids"] for choice in whole] == [[97, 98], [99]]
    assert [choice["token_ids"] for choice in whole] == [written, written]
    pieces = choices_of(canned.post(PATH, json={**body, "stream": True}))
    for index, prompt in enumerate([[97, 98], [99]]):
        own = [choice for choice in pieces if choice["index"] == index]
        assert [choice.get("prompt_token_ids") for choice in own] == [prompt, *[None] * (len(own) - 1)]
        # A step is a piece, also where its text is held back.
        assert [choice["token_ids"] for choice in own] == [written[:1], written[1:4], written[4:7], []]


def test_a_piece_may_be_a_token(canned):
    body = {"prompt": "ab", "max_tokens": 7, "return_token_ids": True, "stream": True, "stream_interval": 1}
    pieces = choices_of(canned.post(PATH, json=body))
    assert [len(choice["token_ids"]) for choice in pieces] == [1] * 7 + [0]


def test_tokens_are_not_told_unasked(canned):
    assert "token_ids" not in canned.post(PATH, json={"prompt": "ab"}).json()["choices"][0]


def test_special_tokens_may_be_shown():
    with serving(ServedScript("Good<|im_start|> day")) as client:
        hidden = client.post(PATH, json={"prompt": "x", "skip_special_tokens": True}).json()
        shown = client.post(PATH, json={"prompt": "x", "skip_special_tokens": False}).json()
        assert client.post(PATH, json={"prompt": "x", "spaces_between_special_tokens": False}).json()
    assert hidden["choices"][0]["text"] == "Good day"
    assert shown["choices"][0]["text"] == "Good<|im_start|> day"


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        ({"regex": "a{3}"}, ["aaa"]),
        ({"choice": ["a.b", "é |\n-", "😀"]}, ["a.b", "é |\n-", "😀"]),
        ({"json": {"enum": [17]}}, ["17"]),
        ({"json": '{"enum": ["x"]}'}, ['"x"']),
    ],
)
def test_forms_are_held(client, form, texts):
    found = set()
    for seed in range(12):
        body = {"prompt": "ab", "max_tokens": 40, "seed": seed, "temperature": 3.0, "structured_outputs": form}
        choice = client.post(PATH, json=body).json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        found.add(choice["text"])
    assert found <= set(texts)


def test_any_object_may_be_asked_for(client):
    body = {"prompt": "ab", "max_tokens": 90, "temperature": 0, "structured_outputs": {"json_object": True}}
    assert isinstance(json.loads(client.post(PATH, json=body).json()["choices"][0]["text"]), dict)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"grammar": "start: 'a'"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "("}}, None),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, None),
        ({"min_tokens": 3}, "min_tokens"),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
        ({"stream_interval": 3}, "stream_interval"),
        ({"stop_token_ids": [3]}, "stop_token_ids"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"specdec": {"no_such": 1}}, None),
    ],
)
def test_what_is_not_known_is_refused(client, body, param):
    answer = client.post(PATH, json={"prompt": "a", **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_tokens_of_a_text(client):
    ids = list(byte_tokenizer()("aé", add_special_tokens=False).input_ids)
    for more in ({}, {"add_special_tokens": False}, {"model": "tgi"}):
        answer = client.post("/tokenize", json={"prompt": "aé", **more}).json()
        assert answer == {"count": 3, "max_model_len": 200, "tokens": ids, "token_strs": None}
    assert [token["id"] for token in client.post("/tokenize", json={"inputs": "aé"}).json()] == ids


@pytest.mark.parametrize(
    ("body", "status"),
    [({"prompt": 5}, 400), ({"prompt": "a", "messages": []}, 400), ({"prompt": "a", "model": "x"}, 404)],
)
def test_a_text_that_is_none_has_no_tokens(client, body, status):
    answer = client.post("/tokenize", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
