"""Completions of a real TGI that drafts by n-grams, over both clients: its contract, its metrics, closed streams."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress

import pytest

from langchain_specdec import Grammar, SamplingParams, SpeculativeLLM
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import TokenEvent
from langchain_specdec.errors import InvalidParameterError, OverloadedError, PromptTooLongError, SpecDecError
from tests.standin.clients import CLIENTS
from tests.support.real_tgi import MARKS, ROUNDING, in_time

pytestmark = MARKS

COUNTING = "1, 2, 3, 4, 5, 6,"
STORY = "Once upon a time, in a village by the sea,"
# What n-grams foretell.
LAUGHTER = "ha ha ha ha ha ha ha ha ha ha ha"


def answer(llm, prompt=COUNTING, **params):
    """Text of an answer, and what is told of it."""
    ((generation,),) = llm.generate([prompt], **params).generations
    return generation.text, generation.generation_info


def is_idle(server):
    metrics = server.metrics()
    return metrics.batch_size == metrics.queue_size == 0


# What is asked for


async def test_every_way_of_asking_gives_the_same_text(llm):
    text = llm.invoke(COUNTING)
    assert text.strip()
    assert "".join(llm.stream(COUNTING)) == text
    assert await llm.ainvoke(COUNTING) == text
    assert "".join([piece async for piece in llm.astream(COUNTING)]) == text
    assert len(llm.batch([COUNTING, STORY, "x"])) == 3
    assert all(await llm.abatch([COUNTING, STORY]))


def test_greedy_texts_are_those_of_the_model_in_this_process(llm, expect_same_text):
    expect_same_text(llm.backend)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_max_new_tokens_is_exact(llm, count):
    text, info = answer(llm, max_new_tokens=count)
    assert (info["completion_tokens"], info["finish_reason"]) == (count, "length")
    request = CompletionRequest(COUNTING, SamplingParams(max_new_tokens=count))
    events = list(llm.backend.stream(request))
    assert "".join(event.text for event in events[:-1]) == text
    assert sum(len(event.tokens) for event in events[:-1]) == count


def test_max_new_tokens_is_exact_where_the_server_answers_in_pieces(server):
    if server.info().max_total_tokens < 1200:
        pytest.skip("the server takes fewer tokens")
    with SpeculativeLLM.from_tgi(server.base_url) as llm:
        _, info = answer(llm, LAUGHTER, max_new_tokens=1100)
    assert info["completion_tokens"] <= 1100
    assert info["finish_reason"] == "length" or info["completion_tokens"] < 1100


@pytest.mark.parametrize("at", [5, 12, 30])
def test_texts_end_at_stop_strings(llm, at):
    whole = llm.invoke(STORY)
    stop = whole[at : at + 3]
    text, info = answer(llm, STORY, stop=[stop])
    assert (text, info["finish_reason"]) == (whole[: whole.index(stop)], "stop_sequence")
    many = ["\x01", "\x02", "\x03", "\x04", "\x05", stop]
    assert len(many) > 4, "more than the server takes"
    assert answer(llm, STORY, stop=many)[0] == text


def test_a_seed_repeats_the_text_of_a_request_that_runs_alone(llm):
    params = {"temperature": 1.0, "max_new_tokens": 16}
    text, info = answer(llm, STORY, seed=5, **params)
    assert info["seed"] == 5
    assert answer(llm, STORY, seed=5, **params)[0] == text
    assert answer(llm, STORY, seed=6, **params)[0] != text
    drawn, info = answer(llm, STORY, **params)
    assert answer(llm, STORY, seed=info["seed"], **params)[0] == drawn


def test_log_probabilities_are_the_models_own(llm, local):
    request = CompletionRequest(STORY, SamplingParams(max_new_tokens=8, logprobs=3))
    (theirs,), (mine,) = llm.backend.complete([request]), local.complete([request])
    for one, other in zip(mine.tokens, theirs.tokens, strict=True):
        if one.id != other.id:
            break
        assert other.logprob == pytest.approx(one.logprob, abs=ROUNDING)
        assert other.logprob == pytest.approx(max(other.top_logprobs.values()))
        assert len(other.top_logprobs) >= 3


def test_tokens_are_counted_and_the_model_has_its_name(llm, server, local):
    assert llm.backend.model_name == server.info().model_id
    for text in ("Hello world", "Grüße, 東京 🚢", "x", "  two\n\nlines "):
        assert llm.get_num_tokens(text) == len(local.tokenizer(text, add_special_tokens=False).input_ids)


# What cannot be had


def expect_alive(llm, server):
    assert llm.invoke(COUNTING, max_new_tokens=4).strip()
    assert server.is_ready


@pytest.mark.parametrize("limit", [4, 1200])
def test_a_prompt_that_is_too_long_is_told_of(llm, server, limit):
    with pytest.raises(PromptTooLongError):
        llm.invoke("word " * 2000, max_new_tokens=limit)
    expect_alive(llm, server)


def test_a_huge_top_k_leaves_the_server_alive(llm, server):
    with suppress(InvalidParameterError):
        assert llm.invoke(STORY, temperature=1.0, top_k=10**6)
    expect_alive(llm, server)


@pytest.mark.parametrize("regex", ["(unclosed", "[z-a]", "a{2,1}", r"\p{Klingon}"])
def test_a_bad_regular_expression_is_the_callers_mistake(llm, server, regex):
    with pytest.raises(InvalidParameterError):
        llm.invoke(STORY, grammar=Grammar(regex=regex))
    expect_alive(llm, server)


def test_an_overloaded_server_says_so_and_is_asked_again(server):
    limit = server.config.max_concurrent_requests
    outcomes = []

    def ask(client, retries):
        with SpeculativeLLM.from_tgi(server.base_url, client=client, max_retries=retries) as llm:
            outcomes.extend(llm.batch([COUNTING] * limit, return_exceptions=True, max_new_tokens=48))

    for retries, expected in ((0, (str, OverloadedError)), (10, str)):
        outcomes.clear()
        clients = [getattr(client, "values", (client,))[0] for client in CLIENTS]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ask, clients, (retries, retries)))
        assert len(outcomes) == 2 * limit
        assert all(isinstance(outcome, expected) for outcome in outcomes), outcomes
        assert retries or any(isinstance(outcome, OverloadedError) for outcome in outcomes)


# What the server counts


def test_metrics_count_the_tokens_that_were_streamed(llm, server):
    prompts = [COUNTING, STORY, LAUGHTER]
    in_time(lambda: is_idle(server), "earlier requests end")
    before = server.metrics()
    streamed = 0
    for prompt in prompts:
        for event in llm.backend.stream(CompletionRequest(prompt, SamplingParams(max_new_tokens=40))):
            streamed += len(event.tokens) if isinstance(event, TokenEvent) else 0
    in_time(lambda: server.metrics().num_succeeded - before.num_succeeded == len(prompts), "all are counted")
    report = server.speculation(before)
    assert (report.num_tokens, report.num_requests) == (streamed, len(prompts))
    assert report.num_tokens == report.num_passes + report.num_skipped
    assert report.is_active
    assert report.tokens_per_step > 1
    assert 0 < report.min_acceptance_rate <= 1


# Streams that are closed

CLOSES = 20


def stream_of(llm):
    # A stream that is not closed goes on for many seconds.
    return llm.stream(STORY, max_new_tokens=1000, temperature=1.0)


def expect_end(server, before):
    in_time(lambda: is_idle(server), "every generation ends", seconds=10)
    metrics = server.metrics()
    assert metrics.num_succeeded == before.num_succeeded, "a closed stream ran to its end"


def test_closed_streams_end_on_the_server(llm, server):
    before = server.metrics()
    for number in range(CLOSES):
        with closing(stream_of(llm)) as stream:
            assert len(list(itertools.islice(stream, 1 + number % 5))) == 1 + number % 5
    expect_end(server, before)


def test_streams_closed_by_other_threads_end_on_the_server(llm, server):
    before = server.metrics()
    request = CompletionRequest(STORY, SamplingParams(max_new_tokens=1000, temperature=1.0))
    for number in range(CLOSES):
        stream = llm.backend.stream(request)
        timer = threading.Timer(0.05 * (number % 8), stream.close)
        timer.start()
        with suppress(SpecDecError):
            for _ in stream:
                pass
        timer.join()
    expect_end(server, before)


async def test_cancelled_tasks_end_on_the_server(llm, server):
    before = server.metrics()

    async def read(count):
        async with aclosing(llm.astream(STORY, max_new_tokens=1000, temperature=1.0)) as stream:
            async for _ in stream:
                count -= 1
                if count == 0:
                    return
        pytest.fail("the stream ended by itself")

    for number in range(CLOSES):
        if number % 2:
            await read(1 + number % 5)
            continue
        task = asyncio.create_task(read(10**6))
        await asyncio.sleep(0.05 * (number % 8))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
    await asyncio.to_thread(expect_end, server, before)
