"""OpenAIBackend against the shapes of each kind of server: texts, ends, counts, drafts, refusals, and nothing left."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from langchain_specdec import Grammar, OpenAIBackend, SamplingParams, SpeculativeLLM
from langchain_specdec.backends.openai.specdec import SpecdecDialect
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent
from langchain_specdec.completions.room import prompt_too_long
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
from tests.standin.clients import TEXT, ask, assert_in_time, no_leaks, quick_retries, text_of
from tests.standin.openai_server import LIMIT, OpenAIStandIn, serving
from tests.support.tiny_models import EOS, byte_tokenizer

pytestmark = [pytest.mark.server, pytest.mark.transformers]
__all__ = ["quick_retries"]

# What this package's own server answers is tested on it, in tests/unit/server/test_same_text.py.
KINDS = ["vllm", "sglang", "plain"]
TELLING = ["vllm", "sglang"]
Made = Callable[..., OpenAIBackend]


@pytest.fixture
def make_backend(quick_retries: None) -> Iterator[Made]:
    made: list[OpenAIBackend] = []

    def make(url: str, **options: Any) -> OpenAIBackend:
        made.append(OpenAIBackend(url, **{"read_timeout": 5.0, **options}))
        return made[-1]

    yield make
    for backend in made:
        backend.close()
    assert_in_time(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("specdec-remote")], "a thread is left"
    )


@pytest.fixture(params=KINDS)
def standin(request: pytest.FixtureRequest, place: dict[str, Any]) -> OpenAIStandIn:
    place["standin"] = OpenAIStandIn(request.param)
    return place["standin"]  # type: ignore[no-any-return]


@pytest.fixture
def url(standin: OpenAIStandIn, place: dict[str, Any]) -> str:
    return str(place["url"])


@pytest.fixture(params=[False, True], ids=["", "tokenizer"])
def backend(url: str, make_backend: Made, request: pytest.FixtureRequest) -> OpenAIBackend:
    return make_backend(url, tokenizer=byte_tokenizer() if request.param else None)


def is_counted(standin: OpenAIStandIn) -> bool:
    return standin.kind in ("vllm", "sglang")


# Texts


def test_a_completion_has_text_reason_and_counts(standin, backend):
    (completion,) = backend.complete([ask()])
    assert completion.text == TEXT
    finish = completion.finish
    assert (finish.finish_reason, finish.prompt_tokens) == ("eos_token", 5)
    assert finish.completion_tokens == len(TEXT.encode()) + 1
    assert finish.cached_tokens == 1
    assert backend.model_name == "canned"
    if is_counted(standin):
        assert [token.id for token in completion.tokens] == [*standin.ids(TEXT), EOS]


def test_streams_give_the_text_and_one_end(backend):
    *events, finish = backend.stream(ask())
    assert isinstance(finish, FinishEvent)
    assert "".join(event.text for event in events) == TEXT


async def test_streams_can_be_read_in_an_event_loop(backend):
    events = [event async for event in backend.stream(ask())]
    assert "".join(event.text for event in events[:-1]) == TEXT
    completions = await backend.acomplete([ask()] * 3)
    assert [completion.text for completion in completions] == [TEXT] * 3


@pytest.mark.parametrize("limit", range(1, 8))
def test_an_incomplete_character_ends_as_in_a_whole_decode(standin, backend, limit):
    (completion,) = backend.complete([ask(max_new_tokens=limit)])
    # vLLM itself leaves it out.
    errors = "ignore" if standin.kind == "vllm" and backend.tokenizer is None else "replace"
    assert completion.text == TEXT.encode()[:limit].decode(errors=errors)
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
def test_stop_strings_are_no_part_of_the_text(standin, backend, stop, reason):
    (completion,) = backend.complete([ask(stop=[stop])])
    expected = TEXT.partition(stop)[0]
    assert completion.text == expected == "".join(e.text for e in list(backend.stream(ask(stop=[stop])))[:-1])
    assert completion.finish.finish_reason == reason
    if is_counted(standin) and backend.tokenizer is not None and reason == "stop_sequence":
        assert completion.finish.completion_tokens == len((expected + stop).encode())
    assert ("stop" in standin.asked[-1]) == (standin.kind != "plain")


@pytest.mark.parametrize("standin", ["plain"], indirect=True)
def test_an_answer_that_is_cut_before_its_counts_has_those_that_are_known(backend):
    finish = backend.complete([ask(stop=["aus"])])[0].finish
    assert finish.prompt_tokens == (5 if backend.tokenizer is not None else 0)
    assert finish.cached_tokens is None


@pytest.mark.parametrize("standin", ["vllm"], indirect=True)
def test_tokens_beyond_the_limit_were_not_accepted(standin, backend):
    said = backend.complete([ask(max_new_tokens=1)])[0].info()["speculation"]
    assert (said["accepted_tokens"], said["num_steps"]) == (0, 1)


def test_tokens_of_a_text_that_is_all_stop_string_are_counted(standin, backend):
    standin.text = "ab" + TEXT
    completion = backend.complete([ask(stop=("ab",))])[0]
    assert (completion.text, completion.finish.finish_reason) == ("", "stop_sequence")
    assert completion.finish.completion_tokens > 0


def test_the_first_of_several_stop_strings_counts(backend):
    assert text_of(backend, stop=["!", "Hafen", "aus", "q", "w"]) == TEXT.partition("aus")[0]


@pytest.mark.parametrize(("has_stops", "text"), [(False, "Grüße aus d"), (True, "Grüß")])
def test_a_server_is_not_told_of_stop_strings_that_count_behind_a_thought(standin, backend, has_stops, text):
    thoughts = Thoughts(("<think>",), " aus", is_open=True, has_stops=has_stops)
    (completion,) = backend.complete([replace(ask(stop=["e"]), thoughts=thoughts)])
    assert (completion.text, completion.finish.finish_reason) == (text, "stop_sequence")
    assert bool(standin.asked[-1].get("stop")) == (has_stops and standin.kind != "plain")
    assert_in_time(lambda: standin.num_running == 0, "the server goes on")


def test_a_check_of_its_own_ends_a_text(standin, backend):
    def make():
        seen = []

        def is_at_end(text):
            seen.append(text)
            return "aus" in "".join(seen)

        return is_at_end

    standin.pause = 0.01
    (completion,) = backend.complete([replace(ask(), make_end_check=make)])
    assert completion.text.startswith(TEXT.partition("aus")[0])
    assert len(completion.text) <= len(TEXT.partition("aus")[0]) + standin.width + 2
    assert completion.finish.finish_reason == "stop_sequence"
    assert_in_time(lambda: standin.num_running == 0, "the server goes on")


@pytest.mark.parametrize("standin", ["vllm", "sglang"], indirect=True)
def test_special_tokens_are_shown_where_they_are_marks(standin, url, make_backend, monkeypatch):
    backend = make_backend(url, tokenizer=byte_tokenizer())
    special = 257  # <bos>
    monkeypatch.setattr(standin, "ids", lambda text: [*byte_tokenizer()(text[:1]).input_ids, special])
    (completion,) = backend.complete([replace(ask(), shown_specials={special: "<mark>"})])
    assert completion.text.endswith("<mark>")
    assert backend.complete([ask()])[0].text == completion.text.removesuffix("<mark>")


@pytest.mark.parametrize("standin", ["plain"], indirect=True)
def test_marks_that_a_server_does_not_tell_are_refused(backend):
    with pytest.raises(InvalidParameterError, match="marks its calls or thoughts by special tokens"):
        backend.complete([replace(ask(), shown_specials={257: "<mark>"})])


# Drafts


@pytest.mark.parametrize("standin", TELLING, indirect=True)
def test_acceptance_is_reported(standin, backend):
    (completion,) = backend.complete([ask()])
    said = completion.info()["speculation"]
    num_tokens = len(TEXT.encode()) + 1
    steps = -(-num_tokens // 3)
    assert (said["drafted_tokens"], said["accepted_tokens"]) == (2 * steps, num_tokens - steps)
    assert said["num_steps"] == steps
    assert said["tokens_per_step"] == round(num_tokens / steps, 4)
    if standin.kind == "vllm":
        assert said["drafted_per_position"] == [steps, steps]
        assert sum(said["accepted_per_position"]) == num_tokens - steps


def test_what_is_not_reported_is_not_made_up(standin, backend):
    standin.tells_drafts = False
    said = backend.complete([ask()])[0].info()["speculation"]
    assert said["drafted_tokens"] is said["tokens_per_step"] is None
    assert "does not report" in said["note"]
    assert said["decode_seconds"] >= 0


# What is sent, and what is refused


def test_greedy_is_greedy_and_seeds_are_sent(standin, backend):
    standin_seed = {} if standin.kind == "sglang" else {"seed": 5}
    text_of(backend, top_k=5, min_p=0.1, top_p=0.5)
    greedy = standin.asked[-1]
    assert greedy["temperature"] == 0.0
    assert not {"seed", "top_k", "top_p", "min_p"} & greedy.keys()
    text_of(backend, temperature=0.7, top_p=0.5, **standin_seed)
    sampled = standin.asked[-1]
    assert (sampled["temperature"], sampled["top_p"]) == (0.7, 0.5)
    assert sampled["seed"] == 5 or standin.kind == "sglang"


REFUSED: dict[str, list[dict[str, Any]]] = {
    "vllm": [{"seed": 2**63}],
    "sglang": [
        {"adapter": "a"},
        {"repetition_penalty": 1.2},
        {"logprobs": 2},
        {"logprobs": 0, "temperature": 0.5},
        {"seed": 3, "temperature": 0.5},
    ],
    "plain": [
        {"top_k": 3, "temperature": 0.5},
        {"min_p": 0.1, "temperature": 0.5},
        {"ignore_eos": True},
        {"repetition_penalty": 1.2},
        {"logprobs": 0},
        {"temperature": 3.0},
        {"grammar": Grammar(regex="a+")},
    ],
}


@pytest.mark.parametrize(("standin", "wrong"), [(k, w) for k in KINDS for w in REFUSED[k]], indirect=["standin"])
def test_what_a_server_cannot_honour_is_refused_before_it_is_sent(standin, url, make_backend, wrong):
    backend = make_backend(url)
    for _ in range(2):  # before the server is known, and after
        with pytest.raises(InvalidParameterError, match=r"Leave it out|leave seed out|cannot be held|at most"):
            backend.complete([ask(**wrong)])
    assert standin.asked == []


@pytest.mark.parametrize(
    ("standin", "grammar", "sent"),
    [
        ("vllm", Grammar(regex="a+"), {"structured_outputs": {"regex": "a+"}}),
        ("sglang", Grammar(regex="a+"), {"regex": "a+"}),
        ("vllm", Grammar(schema={"type": "string"}), {"structured_outputs": {"json": {"type": "string"}}}),
        ("sglang", Grammar(schema={"type": "string"}), {"json_schema": '{"type": "string"}'}),
        (
            "plain",
            Grammar(schema={"type": "string"}),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": {"type": "string"}},
                }
            },
        ),
    ],
    indirect=["standin"],
)
def test_grammars_are_asked_for_in_a_servers_words_and_checked(standin, backend, grammar, sent):
    standin.text = "aaa" if grammar.regex else '"a"'
    (completion,) = backend.complete([ask(grammar=grammar)])
    assert completion.text == standin.text
    assert completion.finish.grammar_error is None
    assert sent.items() <= standin.asked[-1].items()
    standin.text = "no"
    broken = backend.complete([ask(grammar=grammar)])[0].finish.grammar_error
    assert "broke its grammar" in broken


@pytest.mark.parametrize("standin", ["vllm"], indirect=True)
def test_log_probabilities_are_by_token(standin, backend):
    (completion,) = backend.complete([ask(logprobs=2, max_new_tokens=2)])
    assert [token.logprob for token in completion.tokens] == [-0.5, -0.5]
    assert completion.tokens[0].top_logprobs == {completion.tokens[0].id: -0.5, 7: -1.5}


@pytest.mark.parametrize("standin", TELLING, indirect=True)
def test_a_prompt_of_tokens_is_sent_as_it_is(standin, backend):
    assert backend.complete([CompletionRequest([1, 2, 3], SamplingParams())])[0].text == TEXT
    assert standin.asked[-1]["prompt"] == [1, 2, 3]
    assert backend.takes_token_ids
    with pytest.raises(PromptTooLongError, match=f"the context of the server is {LIMIT}"):
        backend.complete([CompletionRequest([1] * LIMIT, SamplingParams())])


@pytest.mark.parametrize("standin", ["plain"], indirect=True)
def test_a_plain_server_takes_text_only(backend):
    with pytest.raises(InvalidParameterError, match="A prompt of tokens cannot be sent"):
        backend.complete([CompletionRequest([1, 2, 3], SamplingParams())])


@pytest.mark.parametrize("standin", ["vllm", "sglang"], indirect=True)
def test_tokens_are_counted_by_the_server(standin, url, make_backend):
    assert make_backend(url).token_ids("Grü") == standin.ids("Grü")


@pytest.mark.parametrize("standin", ["plain"], indirect=True)
def test_tokens_that_a_server_does_not_count_need_a_tokenizer(standin, url, make_backend):
    with pytest.raises(InvalidParameterError, match="tokenizer="):
        make_backend(url).token_ids("a")
    assert make_backend(url, tokenizer=byte_tokenizer()).token_ids("Grü") == standin.ids("Grü")


def test_an_empty_prompt_is_refused(backend):
    with pytest.raises(InvalidParameterError, match="The prompt is empty"):
        backend.complete([ask("")])


# Which model


def test_a_server_of_several_models_is_asked_for_one(standin, url, make_backend):
    standin.models += [{**standin.models[0], "id": "other"}, {**standin.models[0], "id": "lora", "parent": "canned"}]
    with pytest.raises(InvalidParameterError, match=r"several models: 'canned', 'other', 'lora'. Name one"):
        text_of(make_backend(url))
    assert text_of(make_backend(f"{url}/v1/", model="other")) == TEXT
    assert standin.asked[-1]["model"] == "other"
    with pytest.raises(InvalidParameterError, match=r"no model 'none'\. It has 'canned', 'other'"):
        text_of(make_backend(url, model="none"))


@pytest.mark.parametrize("standin", ["vllm"], indirect=True)
def test_an_adapter_is_a_model_to_the_server(standin, url, make_backend):
    backend = make_backend(url)
    assert backend.adapter_names is None
    with pytest.raises(InvalidParameterError, match=r"one of the server's adapters, got 'lora'\. It has none"):
        text_of(backend, adapter="lora")
    standin.models.append({**standin.models[0], "id": "lora", "parent": "canned"})
    backend = make_backend(url)
    assert text_of(backend, adapter="lora") == TEXT
    assert standin.asked[-1]["model"] == "lora"
    assert text_of(backend) == TEXT
    assert standin.asked[-1]["model"] == "canned"
    assert backend.adapter_names == ("lora",)


# Errors


@pytest.mark.parametrize(
    ("status", "error"), [(429, OverloadedError), (503, BackendUnavailableError), (400, InvalidParameterError)]
)
def test_refusals_are_told_and_tried_again_where_that_helps(standin, url, make_backend, status, error):
    said = {"error": {"message": "not now", "type": "x", "param": None, "code": status}}
    standin.errors = [(status, said)]
    if status == 400:
        with pytest.raises(error, match="refuses the request: not now"):
            text_of(make_backend(url))
        return
    assert text_of(make_backend(url)) == TEXT
    standin.errors = [(status, said)] * 2
    with pytest.raises(error, match="not now"):
        text_of(make_backend(url, max_retries=1))
    assert len(standin.asked) == 4


@pytest.mark.parametrize("standin", ["vllm"], indirect=True)
@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 2048 tokens. However, you requested 3000 output tokens",
        "request (6001 tokens) exceeds the available context size (2048 tokens), try increasing it",
    ],
)
def test_a_prompt_that_is_too_long_is_told(standin, url, make_backend, words):
    standin.errors = [(400, {"error": {"message": words, "code": 400}})]
    with pytest.raises(PromptTooLongError, match="shorten the prompt"):
        text_of(make_backend(url))


def test_the_code_of_a_prompt_that_is_too_long_is_read(standin, url, make_backend):
    standin.errors = [(400, {"error": {"message": "no", "code": "context_length_exceeded"}})]
    with pytest.raises(PromptTooLongError, match="shorten the prompt"):
        text_of(make_backend(url))


def test_advice_of_our_own_server_is_not_repeated(standin, url, make_backend):
    said = str(prompt_too_long(60, 5, 64, "max_length", None))
    standin.errors = [(400, {"error": {"message": said, "code": "context_length_exceeded"}})]
    with pytest.raises(PromptTooLongError, match=f"refuses the request: {re.escape(said)}$"):
        text_of(make_backend(url))


def test_an_answer_without_counts_is_whole_where_nobody_has_to_tell_them(standin, url, make_backend):
    standin.last = None
    if standin.kind != "plain":
        with pytest.raises(BackendUnavailableError, match="before the answer did"):
            text_of(make_backend(url))
        return
    for tokenizer in (None, byte_tokenizer()):
        completion = make_backend(url, tokenizer=tokenizer).complete([ask()])[0]
        assert (completion.text, completion.finish.finish_reason) == (TEXT, "eos_token")


@pytest.mark.parametrize(
    "last",
    [
        {"usage": {"prompt_tokens": -5, "completion_tokens": 3}},
        {"usage": {"prompt_tokens": 5, "completion_tokens": 10**30}},
        {"usage": {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": "x"}}},
    ],
)
def test_counts_of_another_form_fail_their_request(standin, url, make_backend, last):
    standin.last = last
    with pytest.raises(GenerationError, match="not in its form"):
        make_backend(url).complete([ask()])


@pytest.mark.parametrize(
    "told",
    [
        {"finish_reason": "tired", "speculation": {}},
        {"finish_reason": "length", "speculation": {"num_steps": "many"}},
        {"finish_reason": "length", "speculation": {"accepted_per_position": 5}},
        {"finish_reason": "length", "speculation": 5},
    ],
)
def test_counts_of_specdec_in_another_form_are_not_read(told):
    with pytest.raises((ValueError, AttributeError)):
        SpecdecDialect().reader(SamplingParams()).read({"choices": [], "specdec": told})


def test_half_a_surrogate_pair_is_no_text(standin, url, make_backend):
    if standin.kind != "plain":
        return  # the text of these is decoded here
    standin.cut_after, standin.frame_error = [0], {"choices": [{"index": 0, "text": "a\ud83db"}]}
    with make_backend(url).stream(ask()) as stream:
        assert next(iter(stream)).text == "a\ufffdb"


def test_a_wrong_key_is_told_and_not_repeated(standin, url, make_backend):
    standin.key = "right"
    with pytest.raises(AuthenticationError) as caught:
        text_of(make_backend(url, api_key="sesame"))
    assert "sesame" not in str(caught.value)
    assert text_of(make_backend(url, api_key="right")) == TEXT


def test_an_answer_that_breaks_off_is_tried_again_before_its_first_token_only(standin, url, make_backend):
    standin.cut_after = [0]
    assert text_of(make_backend(url)) == TEXT
    standin.cut_after = [2, 2]
    with pytest.raises(BackendUnavailableError, match="broke the connection"):
        text_of(make_backend(url))
    assert len(standin.asked) == 3


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "out of memory", "code": 500}},
        {"object": "error", "message": "out of memory", "code": 500},
    ],
)
def test_an_error_in_a_stream_is_raised(standin, url, make_backend, said):
    standin.cut_after, standin.frame_error = [2], said
    with pytest.raises(GenerationError, match="out of memory"):
        text_of(make_backend(url))


@pytest.mark.parametrize(
    "frame",
    [
        {"choices": [{}]},
        {"choices": 5},
        {"x": 1},
        {"choices": [{"text": 5, "token_ids": ["a"], "finish_reason": None}]},
    ],
)
def test_a_frame_of_another_form_fails_its_request(standin, url, make_backend, frame):
    standin.cut_after, standin.frame_error = [1], frame
    with pytest.raises(GenerationError, match=r"not in its form|not in OpenAI's form"):
        text_of(make_backend(url))


def test_a_server_that_says_nothing_is_given_up(standin, url, make_backend):
    standin.pause = 5.0
    with pytest.raises(RequestTimeoutError, match=r"sent nothing for 0.3 seconds"):
        text_of(make_backend(url, read_timeout=0.3))
    assert_in_time(lambda: standin.num_running == 0, "the server goes on")


def test_no_server_is_told(make_backend):
    with pytest.raises(BackendUnavailableError, match="cannot be reached"):
        text_of(make_backend("http://127.0.0.1:9", max_retries=0))


def test_a_server_of_another_kind_is_told(make_backend):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    with serving(app) as url, pytest.raises(BackendUnavailableError, match="does not speak OpenAI's protocol"):
        text_of(make_backend(url))


# Ends


def test_a_closed_stream_ends_the_request(standin, backend):
    standin.pause = 0.02
    stream = backend.stream(ask())
    next(stream)
    stream.close()
    assert_in_time(lambda: standin.num_running == 0, "the server goes on")


async def test_a_cancelled_task_ends_its_requests(standin, backend):
    standin.pause = 0.05
    task = asyncio.ensure_future(backend.acomplete([ask()] * 3))
    await asyncio.to_thread(assert_in_time, lambda: standin.num_running == 3, "they do not run")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(assert_in_time, lambda: standin.num_running == 0, "they run on")


def test_closing_breaks_what_runs(standin, backend):
    standin.pause = 0.05
    stream = backend.stream(ask())
    next(stream)
    backend.close()
    with pytest.raises(EngineClosedError):
        list(stream)
    with pytest.raises(EngineClosedError):
        backend.complete([ask()])


def test_no_more_run_at_a_time_than_asked_for(standin, url, make_backend):
    standin.pause = 0.01
    backend = make_backend(url, max_concurrency=2)
    most = 0
    streams = backend.start([ask()] * 6)
    for stream in streams:
        for _ in stream:
            most = max(most, standin.num_running)
    assert 1 <= most <= 2


def test_nothing_is_left(standin, quick_retries):
    with no_leaks(), serving(standin.app) as url, SpeculativeLLM.from_server(url, max_new_tokens=60) as llm:
        assert llm.invoke("Hello") == TEXT
        assert llm.batch(["a", "b"]) == [TEXT, TEXT]
        assert "".join(llm.stream("a", stop=["aus"])) == TEXT.partition("aus")[0]


def test_it_is_copied_as_itself_and_not_pickled(backend):
    assert copy.deepcopy(backend) is backend
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(backend)


def test_a_forgotten_backend_goes_with_its_last_reference(url):
    gc.collect()
    gc.disable()
    try:
        backend = OpenAIBackend(url)
        text_of(backend)
        gone = weakref.ref(backend)
        del backend
        assert_in_time(lambda: gone() is None, "it is still there")
    finally:
        gc.enable()
