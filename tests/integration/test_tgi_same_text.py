"""One model, in this process and behind a server: the same text, stops and counts, however it is asked."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from langchain_specdec import LocalBackend, SpeculativeLLM
from langchain_specdec.models.embedded import is_available
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.clients import CLIENTS, no_leaks
from tests.standin.models import EngineModel
from tests.standin.server import ServerThread

pytestmark = [
    pytest.mark.server,
    pytest.mark.embedded,
    pytest.mark.skipif(not is_available(), reason="the embedded model is not installed"),
]

QUESTIONS = [
    "List the days of the week, one per line.",
    "What is the capital of France?",
    "Say yes.",
    "Write a haiku about the sea.",
    "Count from 1 to 20.",
    "Translate 'good morning' into German, French and Spanish.",
    "Write a Python function that adds two numbers.",
    "Answer with three emojis: 😀 🚀 🌊",
    "Repeat: the lighthouse is 33 metres high, the lion is 6 metres high.",
    "Write the Greek alphabet in Greek letters.",
]
TEXTS = [
    "The harbour of Lindau opened in 1856. The harbour of Lindau opened in",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Once upon a time, in a village by the sea,",
    "1, 2, 3, 4, 5, 6,",
    "Наступило утро, и",
    "東京は日本の",
    "🙂🙂🙂🙂",
    '{"name": "Ada", "born": 1815}\n{"name": "Alan", "born": 1912}\n{"name":',
    "To be, or not to be, that is",
    "x",
]
PROMPTS = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS] + TEXTS
FIELDS: dict[str, Any] = {"max_new_tokens": 12}
STOPS = {
    "a word": [" the"],
    "inside a token": ["er", "an"],
    "a line": ["\n"],
    "many": ["q", "z", "7", ". ", "e, ", "ing", "o"],
}
STOP_CLIENTS = ["text-generation", "huggingface-hub", "huggingface-hub", "text-generation"]
# Ten prompts for each kind, every prompt for two kinds.
STOPPED = {kind: PROMPTS[number % 2 :: 2] for number, kind in enumerate(STOPS)}


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread for the model: server and clients, in this process too, have the rest of the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def local():
    # Uncompiled: compiling costs more than it saves on texts so short.
    options: dict[str, Any] = {"num_slots": len(PROMPTS), "max_length": 256, "compile": "off"}
    with SpeculativeLLM.from_model_id("embedded", drafter="none", **options, **FIELDS) as local:
        local.invoke("Hello", max_new_tokens=1)
        yield local


@pytest.fixture(scope="module")
def server(local):
    """The same weights behind a server that drafts two tokens at a time. The two never run at the same time.

    Ten requests run at a time. A slot for each prompt keeps what was read of it, so that only the first way of asking
    has to read them all.
    """
    backend = LocalBackend(
        local.backend.model, local.backend.tokenizer, drafter="prompt_lookup", max_draft_tokens=2, draft_length=2,
        num_slots=len(PROMPTS), max_length=256, compile="off",
    )  # fmt: skip
    limits = Limits(max_concurrent_requests=10, max_input_tokens=255, max_total_tokens=256)
    with ServerThread(EngineModel("embedded", backend=backend), limits) as server:
        SpeculativeLLM.from_tgi(server.url).invoke("Hello", max_new_tokens=1)
        yield server
    backend.close()


@pytest.fixture(params=CLIENTS)
def remote(request, server):
    with SpeculativeLLM.from_tgi(server.url, client=request.param, max_retries=0, **FIELDS) as remote:
        yield remote


@pytest.fixture
def either(request, server):
    """A model over the client of that name, or over the other where it is not installed."""
    client = request.param if find_spec("text_generation") else "huggingface-hub"
    with SpeculativeLLM.from_tgi(server.url, client=client, max_retries=0, **FIELDS) as either:
        yield either


def by(client):
    """The ways of asking beside batches, all prompts each; they share what is above the clients, so one does."""
    return pytest.mark.parametrize("either", [client], indirect=True)


def facts(generation):
    names = ("finish_reason", "prompt_tokens", "completion_tokens")
    return (generation.text, *(generation.generation_info[name] for name in names))


def facts_of(llm, prompts, **params):
    return [facts(generation) for (generation,) in llm.generate(prompts, **params).generations]


@pytest.fixture(scope="module")
def expected(local):
    return facts_of(local, PROMPTS)


def test_the_texts_are_worth_comparing(expected):
    assert len({text for text, *_ in expected}) == len(PROMPTS) == 20
    assert {reason for _, reason, *_ in expected} == {"length", "eos_token"}
    assert any(not text.isascii() for text, *_ in expected)


def test_batches(remote, server, expected):
    assert facts_of(remote, PROMPTS) == expected
    assert server.standin.max_running <= 10
    # Several tokens came out of some forward passes.
    assert server.standin.figure("tgi_request_skipped_tokens_sum") > 10


def at_once(function):
    """A function of each prompt, each in a thread of its own."""
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        return list(threads.map(function, PROMPTS))


@by("text-generation")
def test_single_calls(either, expected):
    assert at_once(lambda prompt: facts_of(either, [prompt])[0]) == expected
    # And with nothing else running.
    assert [facts_of(either, [prompt])[0] for prompt in PROMPTS[::7]] == expected[::7]


def streamed(chunks):
    """Text, reason and counts of a stream, and at most how many tokens its chunks say they have."""
    *others, last = chunks
    info = last.generation_info
    counts = (info["finish_reason"], info["prompt_tokens"], info["completion_tokens"])
    assert sum(len(chunk.tokens) for chunk in others) <= info["completion_tokens"]
    return ("".join(chunk.text for chunk in others), *counts)


@by("huggingface-hub")
def test_streams(either, expected):
    assert at_once(lambda prompt: streamed(either._stream(prompt))) == expected


@by("huggingface-hub")
async def test_in_an_event_loop(either, expected):
    result = await either.agenerate(PROMPTS)
    assert [facts(generation) for (generation,) in result.generations] == expected


@by("text-generation")
async def test_streams_in_an_event_loop(either, expected):
    async def read(prompt):
        return streamed([chunk async for chunk in either._astream(prompt)])

    assert await asyncio.gather(*map(read, PROMPTS)) == expected


@pytest.mark.parametrize(("either", "kind"), zip(STOP_CLIENTS, STOPS, strict=True), indirect=["either"])
def test_stop_strings(either, local, kind):
    stopped = facts_of(local, STOPPED[kind], stop=STOPS[kind])
    assert sum(reason == "stop_sequence" for _, reason, *_ in stopped) >= 2
    assert facts_of(either, STOPPED[kind], stop=STOPS[kind]) == stopped


def test_log_probabilities(remote, local):
    def of(llm):
        info = llm.generate([PROMPTS[1]], logprobs=2, max_new_tokens=6).generations[0][0].generation_info
        return [(t["token_id"], t["logprob"], t["top_logprobs"]) for t in info["logprobs"]]

    for ours, theirs in zip(of(remote), of(local), strict=True):
        assert ours[0] == theirs[0]
        assert ours[1] == pytest.approx(theirs[1], abs=1e-3)
        assert [token for token, _ in ours[2]] == [token for token, _ in theirs[2]]


def test_seeds_make_sampled_text_repeatable(remote):
    few = {"temperature": 0.9, "max_new_tokens": 8}
    texts = [remote.invoke(PROMPTS[3], top_p=0.95, top_k=50, seed=seed, **few) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    first = remote.generate([PROMPTS[3]], **few).generations[0][0]
    assert remote.invoke(PROMPTS[3], seed=first.generation_info["seed"], **few) == first.text


def test_repetition_penalty(remote, local):
    prompts = PROMPTS[10:14]
    assert facts_of(remote, prompts, repetition_penalty=1.3) == facts_of(local, prompts, repetition_penalty=1.3)


def test_tokens_are_counted_alike(remote, local):
    for text in (*PROMPTS, "e\u0301"):
        assert remote.get_token_ids(text) == local.get_token_ids(text)


def test_leaving_streams_frees_the_engine(server):
    with no_leaks(), SpeculativeLLM.from_tgi(server.url, max_new_tokens=200) as remote:
        for _ in range(3):
            next(remote.stream(PROMPTS[12]))
        assert remote.invoke(PROMPTS[2]) != ""
