"""SpeculativeLLM on a real model: the text of plain decoding, for prompts of many kinds, however it is asked."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from langchain_specdec import LocalBackend, SpeculativeLLM
from langchain_specdec.models.embedded import is_available
from tests.support.backends import Counter, is_idle

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(not is_available(), reason="the embedded model is not installed"),
]

PASSAGE = "The harbour of Lindau opened in 1856. Its lighthouse is 33 metres high, and its lion is 6 metres high."
QUESTIONS = {
    "copying": f"Repeat this text word by word, twice: {PASSAGE}",
    "list": "List the days of the week, one per line.",
    "code": "Write a Python function that returns the sum of a list of numbers.",
    "story": "Tell me a story about a fox that learns to swim.",
    "answer": f"{PASSAGE} How high is the lighthouse?",
    "arithmetic": "What is 12 + 30? Show each step.",
}
PARAMS = {"greedy": {}, "sampled": {"temperature": 0.8, "seed": 7}}
FIELDS: dict[str, Any] = {"max_new_tokens": 16}


def chat_format(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


PROMPTS = {name: chat_format(question) for name, question in QUESTIONS.items()}


@pytest.fixture(scope="module")
def llm():
    """The model as a newcomer gets it."""
    with SpeculativeLLM.from_model_id("embedded", num_slots=6, max_length=512, **FIELDS) as llm:
        llm.invoke("Hello", max_new_tokens=1)
        yield llm


@pytest.fixture(scope="module")
def plain(llm):
    """The same weights without speculation; the two never run at the same time."""
    model, tokenizer = llm.backend.engine.runner.model, llm.backend.tokenizer
    backend = LocalBackend(model, tokenizer, drafter="none", num_slots=6, max_length=512)
    with SpeculativeLLM(backend=backend, **FIELDS) as plain:
        plain.invoke("Hello", max_new_tokens=1)
        yield plain


@pytest.fixture(scope="module")
def expected(plain):
    """What plain decoding writes, one prompt at a time."""
    return {
        kind: {name: plain.invoke(prompt, **params) for name, prompt in PROMPTS.items()}
        for kind, params in PARAMS.items()
    }


def test_the_texts_make_sense(expected):
    greedy = expected["greedy"]
    assert "1856" in greedy["copying"]
    assert "Monday" in greedy["list"]
    assert "def " in greedy["code"]
    assert "33" in greedy["answer"]
    assert all(greedy[name] != expected["sampled"][name] for name in ("story", "code"))


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("name", PROMPTS)
def test_speculation_keeps_the_text(llm, expected, name, kind):
    generation = llm.generate([PROMPTS[name]], **PARAMS[kind]).generations[0][0]
    assert generation.text == expected[kind][name]
    if name == "copying":
        assert generation.generation_info is not None
        assert generation.generation_info["speculation"]["drafted_tokens"] > 0


@pytest.mark.parametrize("kind", PARAMS)
def test_batches_keep_the_text(llm, expected, kind):
    assert llm.batch(list(PROMPTS.values()), **PARAMS[kind]) == list(expected[kind].values())


def test_a_plain_batch_keeps_the_text(plain, expected):
    assert plain.batch(list(PROMPTS.values()), **PARAMS["sampled"]) == list(expected["sampled"].values())


def test_copying_takes_fewer_steps_than_tokens(llm, expected):
    backend = LocalBackend(
        llm.backend.engine.runner.model, llm.backend.tokenizer, num_slots=1, max_length=256, draft_length=10
    )
    with SpeculativeLLM(backend=backend, **FIELDS) as always_drafting:
        generation = always_drafting.generate([PROMPTS["copying"]]).generations[0][0]
    assert generation.text == expected["greedy"]["copying"]
    assert generation.generation_info is not None
    assert generation.generation_info["speculation"]["tokens_per_step"] > 1.5


def test_stop_strings_end_the_text_where_they_begin(llm, expected):
    text = expected["greedy"]["copying"]
    stop = text[12:22]  # spans tokens
    for result in (
        llm.invoke(PROMPTS["copying"], stop=[stop]),
        "".join(llm.stream(PROMPTS["copying"], stop=[stop])),
        llm.bind(stop=["no such text", stop]).batch([PROMPTS["copying"]])[0],
    ):
        assert result == text[: text.index(stop)]


def test_a_chain_streams(llm, expected):
    chain = PromptTemplate.from_template(chat_format("{question}")) | llm | StrOutputParser()
    counter = Counter()
    pieces = list(chain.stream({"question": QUESTIONS["list"]}, {"callbacks": [counter]}))
    info = counter.ends[0].generations[0][0].generation_info
    assert info["completion_tokens"] == 16
    assert info["prompt_tokens"] == llm.get_num_tokens(PROMPTS["list"])
    assert "".join(pieces) == expected["greedy"]["list"]
    # How many there are depends on what could be drafted from earlier answers.
    assert len([piece for piece in pieces if piece]) > 1


async def test_a_chat_answer_ends_by_itself(llm):
    pieces = [chunk async for chunk in llm._astream(chat_format("Say yes."), max_new_tokens=60)]
    assert pieces[-1].generation_info["finish_reason"] == "eos_token"
    assert "<|im_end|>" not in "".join(piece.text for piece in pieces)


def test_a_stream_that_is_left_frees_its_slot(llm):
    next(llm.stream(PROMPTS["story"], max_new_tokens=200))
    assert is_idle(llm.backend)
