"""TGIBackend against the stand-in for TGI, through each of the two clients: texts, limits, errors, and nothing left."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from langchain_specdec import ChatSpeculative, SpeculativeLLM, TGIBackend
from langchain_specdec.completions.events import FinishEvent, Token
from langchain_specdec.completions.prompt_images import PromptImage
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.errors import (
    AuthenticationError,
    BackendUnavailableError,
    EngineClosedError,
    GenerationError,
    InvalidParameterError,
    OverloadedError,
    PromptTooLongError,
    RequestTimeoutError,
)
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.clients import LIMITS, TEXT, ask, assert_in_time, text_of
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread
from tests.support.chat_templates import chat_tokenizer

pytestmark = [pytest.mark.server, pytest.mark.transformers]


# Texts


def test_a_completion_has_text_reason_and_counts(backend):
    (completion,) = backend.complete([ask()])
    assert completion.text == TEXT
    assert completion.finish.finish_reason == "eos_token"
    assert completion.finish.prompt_tokens == 5
    assert completion.finish.completion_tokens == len(TEXT.encode()) + 1
    assert backend.model_name == "fake"


def test_speculation_is_not_made_up(backend):
    (completion,) = backend.complete([ask()])
    info = completion.info()
    speculation = info["speculation"]
    assert speculation["drafted_tokens"] is speculation["tokens_per_step"] is speculation["acceptance_rate"] is None
    assert "does not report" in speculation["note"]
    assert speculation["decode_seconds"] >= 0
    assert info["cached_tokens"] is None
    assert {token.drafted for token in completion.tokens} == {None}


def test_streams_give_each_token_and_one_end(backend):
    *events, finish = backend.stream(ask())
    assert isinstance(finish, FinishEvent)
    assert "".join(event.text for event in events) == TEXT
    assert [len(event.tokens) for event in events] == [1] * finish.completion_tokens


async def test_streams_can_be_read_in_an_event_loop(backend):
    events = [event async for event in backend.stream(ask())]
    assert "".join(event.text for event in events[:-1]) == TEXT
    completions = await backend.acomplete([ask()] * 3)
    assert [completion.text for completion in completions] == [TEXT] * 3


@pytest.mark.parametrize("limit", range(1, 8))
def test_an_incomplete_character_ends_as_in_a_whole_decode(backend, limit):
    (completion,) = backend.complete([ask(max_new_tokens=limit)])
    assert completion.text == TEXT.encode()[:limit].decode(errors="replace")
    assert (completion.finish.finish_reason, completion.finish.completion_tokens) == ("length", limit)


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("aus", "stop_sequence"),
        ("e a", "stop_sequence"),
        ("ü", "stop_sequence"),
        ("!", "stop_sequence"),
        ("no", "eos_token"),
    ],
)
def test_stop_strings_are_no_part_of_the_text(backend, stop, reason):
    (completion,) = backend.complete([ask(stop=[stop])])
    expected = TEXT.partition(stop)[0]
    assert completion.text == expected == "".join(e.text for e in list(backend.stream(ask(stop=[stop])))[:-1])
    assert completion.finish.finish_reason == reason
    if reason == "stop_sequence":
        assert completion.finish.completion_tokens == len((expected + stop).encode())


def test_more_stop_strings_than_the_server_takes_all_count(server, backend):
    (completion,) = backend.complete([ask(stop=["q", "w", "x", "y", "Hafen"])])
    assert completion.text == TEXT.partition("Hafen")[0]
    assert completion.finish.completion_tokens == len(TEXT.partition("!")[0].encode())
    asked = [request["body"] for request in server.standin.requests if "body" in request]
    assert asked[-1]["parameters"]["stop"] == ["q", "w", "x", "y"]
    assert_in_time(lambda: server.standin.num_running == 0, "the server goes on")


@pytest.mark.parametrize(("has_stops", "text"), [(False, "Grüße aus d"), (True, "Grüß")])
def test_a_server_is_not_told_of_stop_strings_that_count_behind_a_thought(server, backend, has_stops, text):
    """It would look for them in the thought, too; here they are found behind it."""
    thoughts = Thoughts(("<think>",), " aus", is_open=True, has_stops=has_stops)
    (completion,) = backend.complete([replace(ask(stop=["e"]), thoughts=thoughts)])
    assert (completion.text, completion.finish.finish_reason) == (text, "stop_sequence")
    asked = [sent["body"]["parameters"] for sent in server.standin.requests if "body" in sent]
    assert bool(asked[-1].get("stop")) == has_stops
    assert_in_time(lambda: server.standin.num_running == 0, "the server goes on")


class Pairs(FakeModel):
    """Two letters per token."""

    PAIRS = ("Th", "e ", "li", "gh", "th", "ou", "se", ".")

    async def steps(self, prompt, params):
        for token in [*range(len(self.PAIRS)), self.EOS][: params.max_new_tokens]:
            await asyncio.sleep(0.01)
            yield [Token(token, "", None, -0.5)]

    def decode(self, ids):
        return "".join(self.PAIRS[token] for token in ids if token < len(self.PAIRS))


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"),
    [("e l", "Th", 3), ("g", "The li", 4), ("light", "The ", 5), ("se", "The lighthou", 7)],
)
def test_a_stop_string_inside_a_token_ends_the_text(make_backend, client, stop, text, num_tokens):
    """The server looks at the ends of tokens only and would go on, so the connection is closed."""
    with ServerThread(Pairs(), LIMITS) as server:
        backend = make_backend(server.url, client=client)
        (completion,) = backend.complete([ask("abcdefgh", stop=[stop])])
        assert (completion.text, completion.finish.finish_reason) == (text, "stop_sequence")
        assert completion.finish.completion_tokens == num_tokens
        assert_in_time(lambda: server.standin.num_running == 0, "the server goes on")
        assert server.standin.figure("tgi_request_success") == (stop == "se")
        backend.close()


@pytest.mark.parametrize(("limit", "text"), [(2, "Gr"), (3, "Gr"), (4, "Grü"), (5, "Grü"), (60, TEXT)])
def test_what_was_streamed_stands_where_the_end_has_no_text(server, backend, limit, text):
    server.set_faults("empty-end")
    (completion,) = backend.complete([ask(max_new_tokens=limit)])
    assert (completion.text, completion.finish.completion_tokens) == (text, min(limit, 28))


def test_bytes_that_travel_alone_make_whole_characters(server, backend):
    server.set_faults("split-bytes")
    assert text_of(backend) == TEXT


# Parameters


def test_greedy_requests_ask_for_nothing_that_samples(server, backend):
    backend.complete([ask(top_k=5, top_p=0.5, seed=3)])
    sent = server.standin.requests[-1]["body"]["parameters"]
    given = {name: value for name, value in sent.items() if value not in (None, False, [])}
    assert given == {"max_new_tokens": 60, "details": True}
    assert not sent.get("do_sample")


def test_sampled_requests_ask_for_what_is_set(server, backend):
    (completion,) = backend.complete([ask(temperature=0.5, top_k=5, top_p=0.9, seed=3, repetition_penalty=1.2)])
    sent = server.standin.requests[-1]["body"]["parameters"]
    expected = {"do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.2}
    assert expected.items() <= sent.items()
    assert completion.finish.seed == 3
    backend.complete([ask(temperature=1.0, top_k=0, top_p=1.0)])
    sent = server.standin.requests[-1]["body"]["parameters"]
    assert (sent["do_sample"], sent.get("top_k"), sent.get("top_p")) == (True, None, None)


def test_a_seed_is_drawn_told_and_sent(server, backend):
    finishes = [backend.complete([ask(temperature=0.5)])[0].finish for _ in range(2)]
    sent = [r["body"]["parameters"]["seed"] for r in server.standin.requests if "parameters" in r.get("body", {})]
    assert [finish.seed for finish in finishes] == sent
    assert sent[0] != sent[1]


def test_log_probabilities(backend):
    (completion,) = backend.complete([ask(logprobs=1, max_new_tokens=3)])
    assert completion.info()["logprobs"][0] == {
        "token_id": 71, "text": "G", "logprob": -0.5, "top_logprobs": [{"token_id": 71, "logprob": -0.5}],
    }  # fmt: skip
    (completion,) = backend.complete([ask(logprobs=0, max_new_tokens=3)])
    assert completion.info()["logprobs"][0]["top_logprobs"] == []
    assert "logprobs" not in backend.complete([ask(max_new_tokens=3)])[0].info()
    with pytest.raises(InvalidParameterError, match=r"top_n_tokens.*<= 5"):
        backend.complete([ask(logprobs=6)])


REFUSED: dict[str, dict[str, Any]] = {
    "min_p": {"min_p": 0.1},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": -0.5},
    "logit_bias": {"logit_bias": {1: 1.0}},
    "ignore_eos": {"ignore_eos": True},
    "logprobs": {"logprobs": 1, "temperature": 0.5},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_tgi_cannot_do_is_refused_before_anything_is_sent(server, backend, name):
    for start in (backend.stream, lambda request: backend.complete([ask(), request])):
        with pytest.raises(InvalidParameterError, match=f"{name} cannot be honoured by a TGI server"):
            start(ask(**REFUSED[name]))
    assert server.standin.requests == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "empty"), (None, "must be a string"), ([1, 2], "must be a string"), ("\ud800", "not valid Unicode")],
)
def test_prompts_that_cannot_be_sent_are_refused(server, backend, prompt, message):
    with pytest.raises(InvalidParameterError, match=message):
        backend.stream(ask(prompt))
    assert server.standin.requests == []


def test_images_are_refused_before_anything_is_sent(server, backend):
    tokenizer = chat_tokenizer()
    chat = ChatSpeculative(backend=backend, tokenizer=tokenizer)
    block = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}
    with pytest.raises(InvalidParameterError, match=f"the model can be given no images: {backend.why_no_images}"):
        chat.invoke([HumanMessage([block])])
    with pytest.raises(InvalidParameterError, match="The prompt has images, and TGI is sent text only"):
        backend.complete([replace(ask(), images=[PromptImage(0, 1, -1, {})])])
    assert server.standin.requests == []


def test_stop_strings_must_be_text(backend):
    with pytest.raises(InvalidParameterError, match="A stop string is not valid Unicode"):
        backend.stream(ask(stop=["\udfff"]))


@pytest.mark.parametrize("limit", [1000, 1500])
def test_a_prompt_that_does_not_fit_is_refused(backend, limit):
    """Of outputs over 1024 tokens, the server checks the first 1024 only, and ends the text early."""
    with pytest.raises(PromptTooLongError, match=r"(1500|1000).*2048|2048.*(1500|1000)"):
        backend.complete([ask("x" * 1200, max_new_tokens=limit)])


def test_a_prompt_over_the_input_limit_is_refused(backend):
    with pytest.raises(PromptTooLongError, match="2000"):
        backend.complete([ask("x" * 2001, max_new_tokens=1)])


def test_tokens_are_counted_by_the_server(server, backend):
    assert backend.token_ids("hé") == [104, 195, 169]
    with SpeculativeLLM(backend=backend) as llm:
        assert llm.get_num_tokens("héllo") == 6
        server.set_faults("no-tokenize")
        with pytest.raises(GenerationError, match="tokenizer error"):
            llm.get_num_tokens("héllo")


# Errors


def assert_works_again(server, backend):
    server.set_faults()
    assert text_of(backend) == TEXT
    assert_in_time(lambda: server.standin.num_running == 0, "the server goes on, or the connection was not closed")


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("drop:after=3", BackendUnavailableError, "broke the connection"),
        ("cut:after=3", BackendUnavailableError, "ended before the answer did"),
        ("cut", BackendUnavailableError, "ended before the answer did"),
        ("drop", BackendUnavailableError, "broke the connection"),
        ("crash:after=2:times=1", BackendUnavailableError, "broke the connection"),
        ("generation", GenerationError, "CUDA out of memory"),
        ("generation:after=2", GenerationError, "CUDA out of memory"),
        ("dead-shard", BackendUnavailableError, "process that runs its model has ended.*max_retries=6"),
        ("dead-shard:after=2", BackendUnavailableError, "process that runs its model has ended"),
        ("incomplete:after=2", GenerationError, "Incomplete generation"),
        ("garbage:after=1", GenerationError, "not TGI's"),
        ("overloaded", OverloadedError, "more requests than it takes"),
        ("bad-gateway", BackendUnavailableError, "502"),
        ("unavailable", BackendUnavailableError, "503"),
        ("plain-text", InvalidParameterError, "refuses the request"),
        ("no-info", BackendUnavailableError, "no TGI server"),
    ],
)
def test_a_fault_raises_its_error_and_the_next_request_works(server, backend, fault, kind, message):
    server.set_faults(fault)
    with pytest.raises(kind, match=message) as caught:
        backend.complete([ask()])
    assert "html" not in str(caught.value).lower()
    assert_works_again(server, backend)


def test_silence_ends_with_a_time_out(server, client, make_backend):
    backend = make_backend(server.url, client=client, read_timeout=0.3)
    server.set_faults("silence:after=3")
    stream = backend.stream(ask())
    assert [next(stream).text for _ in range(3)] == ["G", "r", ""]
    with pytest.raises(RequestTimeoutError, match=r"sent nothing for 0\.3 seconds"):
        next(stream)
    assert_works_again(server, backend)


def test_a_slow_stream_may_take_longer_than_the_time_out(server, client, make_backend):
    backend = make_backend(server.url, client=client, read_timeout=2.0)
    server.set_faults("slow:seconds=0.25")
    assert text_of(backend, max_new_tokens=12) == TEXT.encode()[:12].decode()


@pytest.mark.parametrize("fault", ["overloaded", "unavailable", "drop", "cut", "generation", "dead-shard"])
def test_what_has_not_begun_is_tried_again(server, backend, fault):
    server.set_faults(f"{fault}:times=2")
    assert text_of(backend) == TEXT
    server.set_faults(f"{fault}:times=3")
    with pytest.raises((OverloadedError, BackendUnavailableError, GenerationError)):
        backend.complete([ask()])


@pytest.mark.parametrize(("fault", "num_sent"), [("generation", 3), ("dead-shard", 6)])
def test_a_model_that_fails_is_asked_three_times_at_most(server, client, make_backend, fault, num_sent):
    """The request may be why; not so where the model's process is gone."""
    backend = make_backend(server.url, client=client, max_retries=5)
    server.set_faults(fault)
    with pytest.raises((BackendUnavailableError, GenerationError)):
        backend.complete([ask()])
    assert len([r for r in server.standin.requests if "parameters" in r.get("body", {})]) == num_sent


@pytest.mark.parametrize("fault", ["drop:after=1:times=1", "incomplete:times=1", "plain-text:times=1"])
def test_what_has_begun_or_failed_for_good_is_not(server, backend, fault):
    server.set_faults(fault)
    with pytest.raises((GenerationError, BackendUnavailableError, InvalidParameterError)):
        backend.complete([ask()])


def test_no_server_at_all(client, make_backend):
    backend = make_backend("http://127.0.0.1:9", client=client)
    for work in (lambda: backend.complete([ask()]), lambda: backend.token_ids("x")):
        with pytest.raises(BackendUnavailableError, match=r"127\.0\.0\.1:9 cannot be reached"):
            work()
    assert backend.model_name == "http://127.0.0.1:9"


def test_a_server_that_comes_up_later_is_found(server, client, make_backend):
    port = int(server.url.rpartition(":")[2])
    backend = make_backend(server.url, client=client, max_retries=0)
    assert text_of(backend) == TEXT
    server.close()
    with pytest.raises(BackendUnavailableError):
        backend.complete([ask()])
    with ServerThread(FakeModel(), Limits(max_total_tokens=500), port=port):
        assert text_of(backend) == TEXT
        assert backend.max_length == 500
        backend.close()


def test_keys(client, make_backend):
    with ServerThread(FakeModel(), LIMITS, api_key="sesame") as server:
        for key in (None, "wrong"):
            backend = make_backend(server.url, client=client, api_key=key)
            with pytest.raises(AuthenticationError, match=r"401.*api_key") as caught:
                backend.complete([ask()])
            with pytest.raises(AuthenticationError, match=r"401.*api_key"):
                backend.token_ids("x")
            assert "wrong" not in str(caught.value)
        backend = make_backend(server.url, client=client, api_key="sesame")
        assert text_of(backend) == TEXT
        assert "sesame" not in repr(backend) + str(vars(SpeculativeLLM(backend=backend))) + str(backend.identity)
        backend.close()


def test_no_hugging_face_token_leaves_this_machine(server, client, make_backend, monkeypatch, tmp_path):
    from huggingface_hub import constants, get_token

    (tmp_path / "token").write_text("hf_fromthefile")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for token in ("hf_fromtheenvironment", None):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        else:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        assert get_token() == (token or "hf_fromthefile")
        backend = make_backend(server.url, client=client)
        backend.complete([ask()])
        backend.token_ids("x")
    assert len(server.standin.requests) >= 4
    for request in server.standin.requests:
        assert "authorization" not in {name.lower() for name in request["headers"]}
        assert "hf_from" not in str(request["headers"])


def test_a_netrc_file_changes_nothing(server, client, make_backend, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    backend = make_backend(server.url, client=client)
    backend.complete([ask()])
    backend.token_ids("x")
    assert not any("Authorization" in request["headers"] for request in server.standin.requests)


# Lifecycles and many at once


@pytest.mark.parametrize("num_read", [0, 1, 5])
def test_closing_a_stream_stops_the_server(server, backend, num_read):
    server.set_faults("slow:seconds=0.02")
    stream = backend.stream(ask())
    for _ in range(num_read):
        next(stream)
    assert_in_time(lambda: server.standin.num_running == 1, "the request did not begin")
    stream.close()
    assert_in_time(lambda: server.standin.num_running == 0, "the server goes on")
    assert server.standin.figure("tgi_request_success") == 0


async def test_cancelling_a_task_stops_the_server(server, backend):
    server.set_faults("slow:seconds=0.05")
    task = asyncio.create_task(backend.acomplete([ask()] * 3))
    await asyncio.to_thread(assert_in_time, lambda: server.standin.num_running == 3, "they did not begin")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(assert_in_time, lambda: server.standin.num_running == 0, "the server goes on")
    server.set_faults()
    assert (await backend.acomplete([ask()]))[0].text == TEXT


def test_closing_the_backend_ends_what_runs_and_what_waits(server, client, make_backend):
    backend = make_backend(server.url, client=client, max_concurrency=1)
    server.set_faults("silence:after=1")
    running, waiting = backend.stream(ask()), backend.stream(ask())
    next(running)
    started = time.monotonic()
    backend.close()
    assert time.monotonic() - started < 3
    for stream in (running, waiting):
        with pytest.raises(EngineClosedError, match="closed"):
            next(stream)
    with pytest.raises(EngineClosedError, match="closed"):
        backend.stream(ask())
    backend.close()


def test_a_forgotten_backend_ends_its_thread(server, client, make_backend):
    make_backend(server.url, client=client)  # for the watch
    backend = TGIBackend(server.url, client=client)
    assert text_of(backend) == TEXT
    del backend
    assert_in_time(lambda: "specdec-remote" not in {t.name for t in threading.enumerate()}, "its thread goes on")


@pytest.mark.parametrize("limit", [1, 3])
def test_requests_wait_for_their_turn(client, make_backend, limit):
    with ServerThread(FakeModel(), Limits(max_concurrent_requests=limit, max_total_tokens=500)) as server:
        backend = make_backend(server.url, client=client, max_retries=0)
        # Slow enough for requests to overlap on a busy machine.
        server.set_faults("slow:seconds=0.005")
        texts = [completion.text for completion in backend.complete([ask()] * 12)]
        assert texts == [TEXT] * 12
        assert server.standin.max_running == limit
        backend.close()


def test_max_concurrency_lowers_the_limit(server, client, make_backend):
    backend = make_backend(server.url, client=client, max_concurrency=2)
    server.set_faults("slow:seconds=0.005")
    backend.complete([ask()] * 6)
    assert server.standin.max_running == 2


@pytest.mark.parametrize("max_retries", [0, 2])
def test_many_requests_with_a_crash_in_between(server, client, make_backend, max_retries):
    """Each is whole or raises; none is cut, none is lost, and afterwards all is well."""
    backend = make_backend(server.url, client=client, max_retries=max_retries)
    limit, expected = 12, TEXT.encode()[:12].decode()
    server.set_faults("slow:seconds=0.005", "crash:after=3:times=1:skip=60")
    streams = [backend.stream(ask(max_new_tokens=limit)) for _ in range(200)]
    outcomes: list[str | BackendUnavailableError] = []

    def read(stream):
        try:
            outcomes.append("".join(event.text for event in list(stream)[:-1]))
        except BackendUnavailableError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 200
    assert {outcome for outcome in outcomes if isinstance(outcome, str)} == {expected}
    assert sum(isinstance(outcome, str) for outcome in outcomes) >= 60
    assert max_retries or any(isinstance(outcome, Exception) for outcome in outcomes)
    assert_works_again(server, backend)


def test_a_batch_in_which_one_fails_raises(server, backend):
    server.set_faults("generation:after=2:times=1")
    with pytest.raises(GenerationError):
        backend.complete([ask()] * 5)
    assert_in_time(lambda: server.standin.num_running == 0, "the others go on")


def test_copies_share_the_connection(backend):
    assert copy.copy(backend) is backend is copy.deepcopy(backend)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(backend)


def test_identity_tells_servers_apart_and_guesses_nothing(server, client, make_backend):
    one, two = make_backend(server.url, client=client), make_backend(server.url, client=client)
    assert one.identity != two.identity
    for backend in (one, two):
        backend.complete([ask()])
    assert one.identity == two.identity
    assert one.identity["model"] == "fake"
