"""SpeculativeLLM over a TGI server, and what can be wrong before one is asked."""

from __future__ import annotations

import builtins
import sys
import threading

import huggingface_hub
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from pydantic import SecretStr, ValidationError

from langchain_specdec import ChatSpeculative, SpeculativeLLM, TGIBackend
from langchain_specdec.errors import (
    BackendUnavailableError,
    EngineClosedError,
    InvalidParameterError,
    MissingDependencyError,
    ModelLoadError,
)
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.clients import CLIENTS, TEXT, assert_in_time, close_shared_session, no_leaks
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread
from tests.support.backends import Counter
from tests.support.tiny_models import byte_tokenizer

pytestmark = [pytest.mark.server, pytest.mark.transformers]

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server():
    with ServerThread(FakeModel(speculate=2), Limits(max_input_tokens=2000, max_total_tokens=2048)) as server:
        yield server


@pytest.fixture(params=CLIENTS)
def llm(request, server):
    server.set_faults()
    with SpeculativeLLM.from_tgi(server.url, client=request.param, max_new_tokens=60) as llm:
        yield llm


# The face


def test_it_invokes_streams_and_batches(llm):
    assert llm.invoke("Hello") == TEXT
    assert "".join(llm.stream("Hello")) == TEXT
    assert llm.batch(["a", "b", "c"]) == [TEXT] * 3
    assert llm.batch(["a", "b"], stop=["ü"]) == ["Gr", "Gr"]
    assert llm.invoke("Hello", max_tokens=3) == TEXT[:2] + "\ufffd"


def test_a_forked_child_has_to_make_one_of_its_own(llm):
    backend = llm.backend
    backend._loop._pid -= 1  # As after a fork: the thread did not come along.
    for use in (llm.invoke, llm.get_num_tokens, lambda text: next(llm.stream(text))):
        with pytest.raises(EngineClosedError, match="process"):
            use("Hello")
    llm.close()  # leaves the parent's alone
    backend._loop._pid += 1
    assert llm.invoke("Hello") == TEXT


async def test_it_does_so_in_an_event_loop(llm):
    assert await llm.ainvoke("Hello") == TEXT
    assert "".join([piece async for piece in llm.astream("Hello")]) == TEXT
    assert await llm.abatch(["a", "b", "c"]) == [TEXT] * 3


def test_results_have_what_local_ones_have(llm):
    result = llm.generate(["Hello", "Hi"])
    info = result.generations[0][0].generation_info
    counts = {"prompt_tokens", "completion_tokens", "cached_tokens"}
    assert {*counts, "finish_reason", "seed", "speculation", "time_to_first_token"} == set(info)
    assert (info["finish_reason"], info["prompt_tokens"], info["completion_tokens"]) == ("eos_token", 5, 28)
    assert result.llm_output == {
        "token_usage": {"prompt_tokens": 7, "completion_tokens": 56, "total_tokens": 63},
        "model_name": "fake",
    }


def test_a_chain_streams_and_reports(llm):
    counter = Counter()
    chain = PromptTemplate.from_template("Say: {text}") | llm | StrOutputParser()
    assert "".join(chain.stream({"text": "x"}, {"callbacks": [counter]})) == TEXT
    assert "".join(counter.tokens) == TEXT
    assert counter.ends[0].generations[0][0].generation_info["completion_tokens"] == 28


def test_one_failing_input_of_a_batch_fails_alone(llm, server):
    server.set_faults("generation:after=2:times=1")
    outcomes = llm.batch(["a", "b", "c"], return_exceptions=True)
    assert sum(isinstance(outcome, Exception) for outcome in outcomes) == 1
    assert [outcome for outcome in outcomes if isinstance(outcome, str)] == [TEXT] * 2


@pytest.mark.parametrize("after", [1, 5, 1000])
def test_a_server_that_overshoots_is_cut_and_counted_exactly(llm, server, after):
    server.set_faults(f"overshoot:after={after}")
    expected = TEXT.encode()
    for limit, stop in ((1, []), (7, []), (len(expected) - 1, []), (7, ["e"]), (7, [TEXT[5:9]])):
        result = llm.generate(["Hello"], max_tokens=limit, stop=stop)
        generation = result.generations[0][0]
        # Only the end of an answer tells of half a character.
        text, reason = expected[:limit].decode(errors="ignore"), "length"
        if stop and stop[0] in text:
            text, reason = text.partition(stop[0])[0], "stop_sequence"
        count = len(text.encode()) + 1 if reason == "stop_sequence" else limit
        assert generation.text == text == "".join(llm.stream("Hello", max_tokens=limit, stop=stop))
        info = generation.generation_info
        assert (info["finish_reason"], info["completion_tokens"], info["prompt_tokens"]) == (reason, count, 5)
        assert result.llm_output["token_usage"] == {
            "prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count,
        }  # fmt: skip
    # Where the answer ends by itself at the limit, that is why it ends.
    result = llm.generate(["Hello"], max_tokens=len(expected) + 1)
    assert (result.generations[0][0].text, result.llm_output["token_usage"]["completion_tokens"]) == (TEXT, 28)
    assert_in_time(lambda: server.standin.num_running == 0, "the server goes on")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_chat_that_overshoots_is_cut_and_counted_exactly(server, client):
    server.set_faults("overshoot:after=9")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with ChatSpeculative.from_tgi(server.url, client=client, tokenizer=tokenizer, max_tokens=6) as chat:
        answer = chat.invoke("Hello")
        streamed = [*chat.stream("Hello")]
        whole = streamed[0]
        for chunk in streamed[1:]:
            whole += chunk
    for message in (answer, whole):
        assert message.text == TEXT.encode()[:6].decode()
        assert message.response_metadata["finish_reason"] == "length"
        usage = message.usage_metadata
        assert usage is not None
        assert usage["output_tokens"] == 6
        assert usage["total_tokens"] == usage["input_tokens"] + 6


def test_a_cache_answers_once_the_model_is_known(llm, server):
    llm.cache = InMemoryCache()
    llm.invoke("first")  # tells the model's name
    asked = len(server.standin.requests)
    answers = [llm.invoke("again"), llm.invoke("again"), llm.invoke("again", stop=["ü"])]
    assert answers == [TEXT, TEXT, "Gr"]
    generations = [r for r in server.standin.requests[asked:] if r["path"] != "/tokenize"]
    assert len(generations) == 2


def test_traces_name_the_model(llm):
    llm.invoke("Hello")
    assert llm._get_ls_params()["ls_model_name"] == "fake"
    assert llm._identifying_params["backend"] == "tgi"


def test_parameters_that_tgi_lacks_are_refused_per_call_too(llm):
    for name in ("min_p", "presence_penalty", "frequency_penalty"):
        with pytest.raises(InvalidParameterError, match=name):
            llm.invoke("Hello", **{name: 0.5})


def test_leaving_a_stream_leaves_nothing(llm, server):
    server.set_faults("slow:seconds=0.02")
    stream = llm.stream("Hello")
    next(stream)
    stream.close()
    server.set_faults()
    assert llm.invoke("Hello") == TEXT


def test_everything_is_closed(server):
    with no_leaks(), SpeculativeLLM.from_tgi(server.url, client="huggingface-hub") as llm:
        llm.invoke("Hello", max_tokens=3)
        llm.batch(["a"] * 5, max_tokens=3)
        close_shared_session()


# Before a server is asked


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "must be a string"),
        ("", "root address"),
        ("127.0.0.1:8080", "root address"),
        ("ftp://host", "root address"),
        ("http://", "root address"),
        ("http://host:port", "root address"),
        ("http://host:99999", "root address"),
        ("http://host/?a=b", "root address"),
        ("http://host/generate", "give 'http://host' without /generate"),
        ("http://host:80/v1/", "give 'http://host:80' without /v1"),
        ("http://host/generate_stream", "without /generate_stream"),
        ("http://host/tgi/v1/chat/completions", "give 'http://host/tgi' without"),
        ("http://user:geheim@host", "must not hold a user"),
    ],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises(InvalidParameterError, match=message) as caught:
        TGIBackend(url)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://host", "https://host:8443/tgi/", " http://127.0.0.1:80 ", "http://[::1]:8080"])
def test_addresses_that_are_some(url):
    backend = TGIBackend(url)
    assert backend.base_url == url.strip().rstrip("/")
    assert backend.model_name == backend.base_url


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read_timeout": 0}, "read_timeout must be"),
        ({"read_timeout": float("inf")}, "read_timeout must be"),
        ({"read_timeout": True}, "read_timeout must be"),
        ({"read_timeout": "10"}, "read_timeout must be"),
        ({"max_retries": -1}, "max_retries must be"),
        ({"max_retries": 1.5}, "max_retries must be"),
        ({"max_concurrency": 0}, "max_concurrency must be"),
        ({"client": "curl"}, "'auto', 'text-generation', 'huggingface-hub', got 'curl'"),
        ({"api_key": ""}, "api_key must be"),
        ({"api_key": "a\nb"}, "api_key must be"),
        ({"api_key": 3}, "api_key must be"),
        ({"tokenizer": 3}, "tokenizer must be"),
        ({"temprature": 0.5}, "Unknown parameter 'temprature'. Did you mean 'temperature'.*read_timeout"),
        ({"drafter": "none"}, "Unknown parameter 'drafter'"),
        ({"server": object()}, "Unknown parameter 'server'"),
        ({"temperature": -1}, "temperature must be"),
        ({"max_tokens": 3, "max_new_tokens": 3}, "one parameter"),
    ],
)
@pytest.mark.parametrize("make", [SpeculativeLLM.from_tgi, SpeculativeLLM.launch_tgi], ids=["from", "launch"])
def test_options_out_of_range_are_refused(make, options, message, monkeypatch):
    monkeypatch.setattr("tgi_launcher.TGIServer.start", lambda self: pytest.fail("a server was started"))
    with pytest.raises(InvalidParameterError, match=message):
        make(NOWHERE, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculate": -1}, "speculate: Input should be"),
        ({"port": 0}, "port: Input should be"),
        ({"restart": "always"}, "restart must be 'never' or 'on-failure'"),
        ({"max_input_tokens": 10, "max_total_tokens": 10}, "max_input_tokens"),
        ({"num_slots": 3}, "Unknown parameter 'num_slots'.*max_total_tokens"),
    ],
)
def test_options_that_the_server_would_refuse(options, message):
    with pytest.raises(InvalidParameterError, match=message):
        SpeculativeLLM.launch_tgi("fake", **options)


def test_other_fields_are_checked_before_a_server_is_started(monkeypatch):
    monkeypatch.setattr("tgi_launcher.TGIServer.start", lambda self: pytest.fail("a server was started"))
    for make in (SpeculativeLLM.from_tgi, SpeculativeLLM.launch_tgi):
        with pytest.raises(ValidationError, match="streaming"):
            make(NOWHERE, streaming="please")  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["hf_abcdefgh", SecretStr("hf_abcdefgh")])
def test_a_hugging_face_token_is_only_for_hugging_face(key):
    for url in (NOWHERE, "https://huggingface.co.example.org", "https://nothf.co"):
        with pytest.raises(InvalidParameterError, match="is a Hugging Face token") as caught:
            TGIBackend(url, api_key=key)
        assert "abcdefgh" not in str(caught.value)
    for url in (
        "https://abc.us-east-1.aws.endpoints.huggingface.cloud",
        "https://api-inference.huggingface.co/models/x",
    ):
        TGIBackend(url, api_key=key)


def test_making_a_backend_sends_nothing_and_starts_nothing(server):
    server.standin.requests.clear()
    before = threading.active_count()
    backend = TGIBackend(server.url)
    assert (backend.identity["base_url"], backend.max_length, backend.tokenizer) == (server.url, None, None)
    assert threading.active_count() == before
    assert server.standin.requests == []
    assert repr(backend).startswith(f"TGIBackend('{server.url}', client='")
    backend.close()


def test_a_client_that_is_missing_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, namespace=None, local=None, names=(), level=0):
        # huggingface_hub has a module of that name, which it imports by `from .text_generation`.
        if name.partition(".")[0] == "text_generation" and level == 0:
            raise ImportError(name)
        return real(name, namespace, local, names, level)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "text_generation", raising=False)
    with pytest.raises(MissingDependencyError, match="pip install"):
        TGIBackend(NOWHERE, client="text-generation")
    monkeypatch.setattr("langchain_specdec.backends.tgi.client.find_spec", lambda name: None)
    assert TGIBackend(NOWHERE).client == "huggingface-hub"


@pytest.mark.parametrize("client", CLIENTS)
def test_offline_mode_stops_only_one_client_and_says_so(make_backend, monkeypatch, server, client):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    close_shared_session()
    backend = make_backend(server.url, client=client)
    # Before 1.0, the asynchronous client of huggingface_hub takes no notice of it either.
    if client == "text-generation" or not hasattr(huggingface_hub, "get_async_session"):
        assert SpeculativeLLM(backend=backend).invoke("Hello", max_tokens=1) == "G"
        return
    with pytest.raises(BackendUnavailableError, match=r"HF_HUB_OFFLINE.*client='text-generation'"):
        SpeculativeLLM(backend=backend).invoke("Hello")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_proxy_in_the_way_is_named(make_backend, monkeypatch, client):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(BackendUnavailableError, match="NO_PROXY"):
        make_backend(NOWHERE, client=client).token_ids("x")


def test_the_text_generation_client_goes_past_proxies_to_this_machine(make_backend, monkeypatch, server):
    pytest.importorskip("text_generation")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    backend = make_backend(server.url, client="text-generation")
    assert SpeculativeLLM(backend=backend).invoke("Hello", max_tokens=1) == "G"


# A tokenizer of one's own


def test_a_tokenizer_counts_without_the_server(server):
    with SpeculativeLLM.from_tgi(server.url, tokenizer=byte_tokenizer()) as llm:
        server.standin.requests.clear()
        assert llm.get_num_tokens("hello") == 5
        assert server.standin.requests == []
        assert isinstance(llm.backend, TGIBackend)
        assert llm.backend.tokenizer is not None
        info = llm.generate(["hello"], max_tokens=2).generations[0][0].generation_info
        assert info is not None
        assert info["prompt_tokens"] == 5


def test_a_tokenizer_that_does_not_exist(tmp_path):
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        TGIBackend(NOWHERE, tokenizer=str(tmp_path))


def test_the_token_that_begins_a_text_is_not_sent_twice(server):
    class Beginning:
        bos_token, bos_token_id = "<s>", 1

        def __call__(self, text, **options):
            ids = [1] + [1] * text.startswith("<s>") + list(text.removeprefix("<s>").encode())
            return type("Encoding", (), {"input_ids": ids})

    with SpeculativeLLM.from_tgi(server.url, tokenizer=Beginning()) as llm:
        for prompt in ("<s>[INST] hi", "hi <s>"):
            llm.invoke(prompt, max_tokens=1)
    sent = [r["body"]["inputs"] for r in server.standin.requests if r["path"] == "/"]
    assert sent[-2:] == ["[INST] hi", "hi <s>"]
