"""A prompt of 32,000 tokens with default options: what it takes of memory, and of seven short texts beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from langchain_specdec import LocalBackend, SpeculativeLLM
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import TokenEvent
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.models.memory import give_back_freed
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from langchain_specdec.sampling.params import SamplingParams
from tests.support.backends import engine_of, is_idle
from tests.support.tiny_models import byte_tokenizer, read, tiny_model, token_ids, wait_until

_STATM = Path("/proc/self/statm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.transformers,
    pytest.mark.skipif(native_library() is None, reason="there is no native decoder on this machine"),
    pytest.mark.skipif(not _STATM.exists(), reason="memory is given back on Linux"),
]
LENGTH, NUM_NEW, CHUNK, NUM_SLOTS = 32_000, 24, 512, 8
# Text that repeats itself as documents do: each sentence with numbers of its own. A character is a token.
PROMPT = "".join(
    f"In year {year} harbour {year * year % 97} took in {year * 7919 % 10007} ships. " for year in range(1000)
)[:LENGTH]
SHORT = [f"Question {i}: how high is lighthouse {i * i}?" for i in range(7)]
# They go on for longer than the prompt takes, whatever is accepted of their drafts.
GOING_ON = [
    SamplingParams(max_new_tokens=32_000, ignore_eos=True, temperature=1.0 if i % 2 else 0.0, seed=i) for i in range(7)
]
ASKED = SamplingParams(max_new_tokens=NUM_NEW, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "long"
    # Large heads: keys and values are to be seen beside whatever else a process does with memory.
    heads: dict[str, Any] = {"head_dim": 64, "num_attention_heads": 1, "num_key_value_heads": 1}
    tiny_model(max_position_embeddings=32_768, **heads).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lasting_llm(folder: Path) -> Iterator[SpeculativeLLM]:
    with SpeculativeLLM.from_model_id(str(folder), max_new_tokens=NUM_NEW) as llm:
        llm.invoke("Hello")
        yield llm


@pytest.fixture
def llm(lasting_llm: SpeculativeLLM) -> Iterator[SpeculativeLLM]:
    """A random Llama with default options, of whose slots nothing can be gone on from."""
    backend = engine_backend(lasting_llm)
    backend.reset()
    lasting_llm.invoke("Hello", max_new_tokens=1)
    assert held(lasting_llm) < 100
    yield lasting_llm
    assert is_idle(backend)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[int]:
    """What plain decoding writes after the prompt, alone."""
    backend = LocalBackend(folder, drafter="none")
    try:
        return token_ids(read(backend.start([CompletionRequest(PROMPT, ASKED)])[0])[0])
    finally:
        backend.close()


def engine_backend(llm: SpeculativeLLM) -> LocalBackend:
    assert isinstance(llm.backend, LocalBackend)
    return llm.backend


def held(llm: SpeculativeLLM) -> float:
    """Tokens that the slots hold, by the cache's own account."""
    runner = engine_of(llm).runner
    assert isinstance(runner, NativeRunner)
    return runner.cache.num_bytes / runner.bytes_per_token


def resident() -> int:
    """Bytes of memory that this process has."""
    give_back_freed()
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Deliveries:
    """Prompt tokens that were read by each delivery of tokens to a stream, noted in the engine's thread.

    Attributes:
        read: They, by delivery.
        num_tokens: Tokens that were delivered.
    """

    def __init__(self, stream: CompletionStream, num_read: Callable[[], int]) -> None:
        self.read: list[int] = []
        self.num_tokens = 0
        put = stream.put

        def noted(event: Any) -> None:
            if isinstance(event, TokenEvent):
                self.read.append(num_read())
                self.num_tokens += len(event.tokens)
            put(event)

        stream.put = noted  # type: ignore[method-assign]


def start(llm: SpeculativeLLM, prompt: str, params: SamplingParams) -> CompletionStream:
    return llm.backend.start([CompletionRequest(prompt, params)])[0]


@contextmanager
def short_texts(llm: SpeculativeLLM) -> Iterator[list[Deliveries]]:
    """Seven short texts that go on meanwhile, each of which has its first token."""
    engine = engine_of(llm)
    requests = [CompletionRequest(prompt, params) for prompt, params in zip(SHORT, GOING_ON, strict=True)]
    with ExitStack() as stack:
        streams = [stack.enter_context(stream) for stream in llm.backend.start(requests)]
        deliveries = [Deliveries(stream, lambda: engine.num_prefill_tokens) for stream in streams]
        assert wait_until(lambda: all(delivery.read for delivery in deliveries))
        yield deliveries


def test_it_takes_memory_by_its_tokens_and_short_texts_have_it_back(llm: SpeculativeLLM) -> None:
    engine = engine_of(llm)
    runner = engine.runner
    assert isinstance(runner, NativeRunner)
    assert (runner.max_length, runner.cache.num_slots) == (32_768, NUM_SLOTS)
    room = runner.bytes_per_token * NUM_SLOTS * runner.max_length
    before = resident()
    assert len(llm.invoke(PROMPT, ignore_eos=True)) > 0
    taken = resident() - before
    assert LENGTH <= held(llm) <= LENGTH + NUM_NEW + runner.max_width
    own = runner.bytes_per_token * LENGTH
    # An eighth of the room, and what the index of the prompt leaves behind.
    assert own * 0.9 < taken < room / 2
    # It rests, in case that a prompt goes on from it, until others take the slots.
    llm.generate([f"{i}, and so on" for i in range(NUM_SLOTS)])
    assert held(llm) < NUM_SLOTS * 100
    assert resident() - before < taken - own * 0.9


def test_seven_short_texts_go_on_while_it_is_read_and_its_text_is_that_of_plain_decoding(
    llm: SpeculativeLLM, expected: list[int]
) -> None:
    engine = engine_of(llm)
    with short_texts(llm) as deliveries:
        before = engine.num_prefill_tokens
        long = start(llm, PROMPT, ASKED)
        own = Deliveries(long, lambda: engine.num_prefill_tokens)
        tokens, end = read(long)
    assert token_ids(tokens) == expected
    assert (end.prompt_tokens, end.cached_tokens) == (LENGTH, 0)
    assert own.read[0] - before == LENGTH - 1
    for delivery in deliveries:
        meanwhile = [before, *(count for count in delivery.read if before < count <= own.read[0])]
        assert len(set(meanwhile)) > (LENGTH - 1) / CHUNK
        # A chunk at most between two deliveries.
        assert max(after - earlier for earlier, after in pairwise(meanwhile)) <= CHUNK


def test_a_cancel_ends_its_reading_and_its_slot_is_free_for_others(llm: SpeculativeLLM) -> None:
    engine = engine_of(llm)
    with short_texts(llm) as deliveries:
        before = engine.num_prefill_tokens
        with start(llm, PROMPT, ASKED):
            assert wait_until(lambda: engine.num_prefill_tokens > before + 5000, 60.0)
        assert wait_until(lambda: engine.num_running == len(SHORT))
        num_read = engine.num_prefill_tokens
        assert num_read < before + LENGTH - 1
        counts = [len(delivery.read) for delivery in deliveries]
        assert wait_until(lambda: all(len(d.read) > count + 3 for d, count in zip(deliveries, counts, strict=True)))
        assert engine.num_prefill_tokens == num_read
        # What it leaves in the slot is given back for the one that takes it.
        assert len(read(start(llm, "Another one", ASKED))[0]) == NUM_NEW
    assert is_idle(engine_backend(llm))
    texts = sum(delivery.num_tokens + len(prompt) for delivery, prompt in zip(deliveries, SHORT, strict=True))
    assert held(llm) <= texts + 100 + NUM_SLOTS * engine.runner.max_width


def test_what_was_read_before_a_cancel_is_gone_on_from(llm: SpeculativeLLM, expected: list[int]) -> None:
    engine = engine_of(llm)
    before = engine.num_prefill_tokens
    with start(llm, PROMPT, ASKED):
        assert wait_until(lambda: engine.num_prefill_tokens > before + 5000, 60.0)
    assert is_idle(engine_backend(llm))
    tokens, end = read(start(llm, PROMPT, ASKED))
    assert token_ids(tokens) == expected
    assert end.cached_tokens is not None
    assert 5000 < end.cached_tokens < LENGTH - 1


def test_a_short_text_that_comes_while_it_is_read_does_not_wait_for_its_end(llm: SpeculativeLLM) -> None:
    engine = engine_of(llm)
    before = engine.num_prefill_tokens
    with start(llm, PROMPT, ASKED) as long:
        assert wait_until(lambda: engine.num_prefill_tokens > before + 2000)
        begun = engine.num_prefill_tokens
        short = start(llm, SHORT[0], ASKED)
        delivery = Deliveries(short, lambda: engine.num_prefill_tokens)
        assert len(read(short)[0]) == NUM_NEW
        # Its own, the chunk that is being read, and two more while it is told of.
        assert delivery.read[0] - begun <= len(SHORT[0]) + 3 * CHUNK
        assert engine.num_prefill_tokens - before < LENGTH
        assert not long._events
