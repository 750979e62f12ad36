"""What a connection to TGI does when it is left, what it learns from the server, and what an own server's end does."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from transformers import AutoTokenizer

from langchain_specdec import ChatSpeculative, Grammar, SpeculativeLLM
from langchain_specdec.backends.remote import facts, owned_server, retries
from langchain_specdec.backends.remote.failures import Failure, is_loopback
from langchain_specdec.backends.tgi import speculation_warner
from langchain_specdec.errors import (
    BackendUnavailableError,
    GenerationError,
    InvalidParameterError,
    ModelLoadError,
    RequestTimeoutError,
    SpecDecError,
    SpeculatingServerWarning,
)
from tests.standin.clients import LIMITS, TEXT, ask, assert_in_time, text_of
from tests.standin.models import FakeModel
from tests.standin.raw_server import RawServer, answer
from tests.standin.server import ServerThread
from tests.support.tiny_models import byte_tokenizer
from tgi_launcher.errors import Reason
from tgi_launcher.state import ServerExit, State

pytestmark = [pytest.mark.server, pytest.mark.transformers]

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


# Closing and cancelling


class Endless(FakeModel):
    """Three tokens in each forward pass, without end; notes what runs, and what came to its end."""

    ANSWER = "abc" * 500

    def __init__(self) -> None:
        super().__init__(speculate=2)
        self.num_running = 0

    async def steps(self, prompt, params):
        self.num_running += 1
        try:
            async for tokens in super().steps(prompt, params):
                await asyncio.sleep(0.003)
                yield tokens
        finally:
            self.num_running -= 1


def close_after_some(llm: SpeculativeLLM, rng: random.Random) -> None:
    stream = llm.stream("x")
    for _ in range(rng.randrange(6)):
        next(stream)
    time.sleep(rng.uniform(0, 0.005))
    stream.close()  # type: ignore[attr-defined]


def break_off(llm: SpeculativeLLM, rng: random.Random) -> None:
    last = rng.randrange(6)
    for number, _ in enumerate(llm.stream("x")):
        if number == last:
            break


def close_from_another_thread(llm: SpeculativeLLM, rng: random.Random) -> None:
    stream = llm.backend.stream(ask(max_new_tokens=1500))
    closer = threading.Timer(rng.uniform(0, 0.02), stream.close)
    closer.start()
    list(stream)
    closer.join()


def cancel_a_task(llm: SpeculativeLLM, rng: random.Random) -> None:
    async def run() -> None:
        async def read() -> None:
            async for _ in llm.astream("x"):
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(rng.uniform(0, 0.02))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


@pytest.mark.parametrize("way", [close_after_some, break_off, close_from_another_thread, cancel_a_task])
def test_no_stream_that_was_left_runs_on(client, make_backend, way):
    """Two drafted tokens arrive in one packet with theirs: the reader is cancelled while more is there to be read."""
    rng = random.Random(client)
    model = Endless()
    with ServerThread(model, LIMITS) as server:
        server.set_faults("one-packet")
        llm = SpeculativeLLM(backend=make_backend(server.url, client=client, read_timeout=20.0), max_new_tokens=1500)
        for _ in range(50):
            way(llm, rng)
        assert_in_time(lambda: model.num_running == server.standin.num_running == 0, "one runs on")
        assert server.standin.figure("tgi_request_success") == 0
        llm.close()


# What is learned from /info


def test_info_obeys_the_time_out(server, client, make_backend):
    server.set_faults("slow-info:seconds=3")
    with pytest.raises(RequestTimeoutError, match=r"/info within 0\.2 seconds"):
        make_backend(server.url, client=client, read_timeout=0.2).complete([ask()])


def test_all_that_wait_for_info_share_one_question(server, client, make_backend):
    server.set_faults("slow-info:seconds=3")
    backend = make_backend(server.url, client=client, read_timeout=0.5)
    streams = backend.start([ask()] * 20)
    errors = []
    for stream in streams:
        with pytest.raises(RequestTimeoutError) as caught:
            list(stream)
        errors.append(caught.value)
    assert server.standin.counts["info"] == 1
    assert len({id(error) for error in errors}) == 20
    server.set_faults()
    assert text_of(backend) == TEXT


def test_the_name_of_the_model_is_asked_for_once(server, backend):
    assert [backend.model_name for _ in range(3)] == ["fake"] * 3
    assert server.standin.counts["info"] == 1
    llm = SpeculativeLLM(backend=backend)
    assert llm._get_ls_params()["ls_model_name"] == "fake"
    assert llm.invoke("x", max_tokens=1) == "G"
    assert server.standin.counts["info"] == 1


async def test_an_event_loop_does_not_wait_for_the_name(server, backend):
    server.set_faults("slow-info:seconds=0.3")
    assert backend.model_name == server.url
    await asyncio.to_thread(assert_in_time, lambda: backend.identity["model"] == "fake", "it was not asked for")
    assert backend.model_name == "fake"
    assert server.standin.counts["info"] == 1


def test_a_server_that_does_not_answer_is_left_alone_for_a_while(server, client, make_backend, monkeypatch):
    monkeypatch.setattr(facts, "_KNOWN_SECONDS", 0.2)
    server.set_faults("slow-info:seconds=1")
    backend = make_backend(server.url, client=client, read_timeout=0.1)
    assert [backend.model_name for _ in range(3)] == [server.url] * 3
    # On a busy machine the time may be over before the question is out.
    assert server.standin.counts["info"] <= 1
    monkeypatch.setattr(facts, "_ASK_AGAIN_SECONDS", 0.0)
    down = make_backend("http://127.0.0.1:9", client=client)
    assert [down.model_name for _ in range(3)] == ["http://127.0.0.1:9"] * 3
    down.close()
    assert down.model_name == "http://127.0.0.1:9"


# Servers of other kinds

NONE = answer("404 page not found", "404 Not Found")
OTHERS: dict[str, dict[str, Any]] = {
    "ollama": {"/info": NONE, "/tokenize": NONE},
    "vLLM": {
        "/info": answer({"detail": "Not Found"}, "404 Not Found"),
        "/tokenize": answer({"object": "error", "message": "Field required: prompt", "code": 400}, "400 Bad Request"),
    },
    "llama.cpp": {"/info": NONE, "/tokenize": answer({"tokens": [1, 2]})},
    "embeddings": {
        "/info": answer({"model_id": "m", "max_concurrent_requests": 8}),
        "/tokenize": answer([[{"id": 1}]]),
    },
    "web": {"/info": answer("<html>Hello</html>"), "/tokenize": answer("", "405 Method Not Allowed")},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_server_of_another_kind_counts_no_tokens_and_is_named(client, make_backend, kind):
    with RawServer(OTHERS[kind]) as server:
        backend = make_backend(server.url, client=client)
        with pytest.raises(BackendUnavailableError, match=r"no TGI server|not a TGI server"):
            SpeculativeLLM(backend=backend).get_num_tokens("Hello")
        if kind != "embeddings":
            with pytest.raises(BackendUnavailableError, match=r"no TGI server|not a TGI server"):
                ChatSpeculative(backend=backend).get_num_tokens_from_messages([HumanMessage("Hello")])
        backend.close()


# The tokenizer of the server's model


@pytest.fixture
def folder(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def served(folder):
    """A server that was started with a folder of this machine."""
    model = FakeModel()
    model.model_id = str(folder)
    with ServerThread(model, LIMITS) as server:
        yield server


def sent(server):
    return [r["body"]["inputs"] for r in server.standin.requests if "parameters" in r.get("body", {})]


def test_a_chat_takes_a_tokenizer_by_its_folder(server, client, folder):
    with ChatSpeculative.from_tgi(server.url, client=client, tokenizer=str(folder), max_tokens=60) as chat:
        assert (server.standin.counts, server.standin.requests) == ({}, [])
        assert chat.invoke("Hi").content == TEXT
        assert chat.backend.tokenizer is not None
    assert sent(server) == ["<user>Hi"]


def test_a_chat_learns_its_template_from_the_server(served, client):
    with ChatSpeculative.from_tgi(served.url, client=client, max_tokens=60) as chat:
        assert (served.standin.counts, served.standin.requests) == ({}, []), "something was sent at once"
        assert chat.get_num_tokens_from_messages([HumanMessage("Hi")]) == len("<user>Hi")
        assert [chat.invoke("Hi").content for _ in range(2)] == [TEXT] * 2
        assert served.standin.counts["info"] == 1
    assert sent(served) == ["<user>Hi"] * 2


async def test_a_chat_does_so_in_an_event_loop_without_blocking_it(served, client):
    served.set_faults("slow-info:seconds=0.5")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    with ChatSpeculative.from_tgi(served.url, client=client, max_tokens=60) as chat:
        ticking = asyncio.create_task(tick())
        pieces = [piece.text async for piece in chat.astream("Hi")]
        assert ticks > 5
        assert "".join(pieces) == TEXT
        assert (await chat.ainvoke("Hi")).content == TEXT
        ticking.cancel()


def test_a_tokenizer_that_cannot_be_had_says_what_to_give(client, make_backend):
    model = FakeModel()
    model.model_id = "/data/model"  # as in a container
    with ServerThread(model, LIMITS) as server:
        chat = ChatSpeculative(backend=make_backend(server.url, client=client))
        with pytest.raises(ModelLoadError, match=r"'/data/model'.*cannot be loaded.*tokenizer=") as caught:
            chat.invoke("Hi")
        assert caught.value.__cause__ is caught.value.__context__ is None
        chat.close()


def test_a_tokenizer_of_the_hub_is_that_of_the_servers_revision(client, make_backend, monkeypatch, folder):
    asked = []

    def load(name, **options):
        asked.append((name, options))
        return real(str(folder))

    real = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    info = {"model_id": "some/model", "model_sha": "abc123", "max_concurrent_requests": 8}
    with RawServer({"/info": answer(info)}) as server:
        chat = ChatSpeculative(backend=make_backend(server.url, client=client))
        assert [chat.get_num_tokens_from_messages([HumanMessage("Hi")]) for _ in range(2)] == [len("<user>Hi")] * 2
        chat.close()
    assert asked == [("some/model", {"trust_remote_code": False, "revision": "abc123"})]


def test_a_server_of_another_machine_names_no_folder_of_this(served, client, monkeypatch):
    monkeypatch.setattr("langchain_specdec.backends.remote.prompt_tokenizer.is_loopback", lambda url: False)
    words = "does not choose what is opened here"
    with ChatSpeculative.from_tgi(served.url, client=client) as chat, pytest.raises(ModelLoadError, match=words):
        chat.invoke("Hi")


def test_no_code_of_a_tokenizer_is_run(served, folder, client, tmp_path):
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for tokenizer in (None, str(folder)):
        with (
            pytest.raises(ModelLoadError),
            ChatSpeculative.from_tgi(served.url, client=client, tokenizer=tokenizer) as chat,
        ):
            chat.invoke("Hi")
    assert not (tmp_path / "ran").exists()


def test_a_chat_with_a_server_that_is_down_says_so(client, make_backend):
    chat = ChatSpeculative(backend=make_backend("http://127.0.0.1:9", client=client))
    with pytest.raises(BackendUnavailableError, match="cannot be reached"):
        chat.invoke("Hi")


def test_another_model_at_the_same_address_has_its_own_template(served, client, tmp_path, folder, make_backend):
    backend = make_backend(served.url, client=client, max_retries=0)
    chat = ChatSpeculative(backend=backend, max_new_tokens=60)
    chat.invoke("Hi")
    other = byte_tokenizer()
    other.chat_template = TEMPLATE.replace("<", "[").replace(">", "]")
    other.save_pretrained(tmp_path / "other")
    port = int(served.url.rpartition(":")[2])
    served.close()
    with pytest.raises(BackendUnavailableError):
        chat.invoke("Hi")
    model = FakeModel()
    model.model_id = str(tmp_path / "other")
    with ServerThread(model, LIMITS, port=port) as server:
        assert backend.model_name == model.model_id or text_of(backend) == TEXT
        chat.invoke("Hi")
        assert sent(server)[-1] == "[user]Hi"
        backend.close()


def test_a_tokenizer_field_that_is_not_loaded_is_refused(server, make_backend):
    with pytest.raises(InvalidParameterError, match="AutoTokenizer"):
        ChatSpeculative(backend=make_backend(server.url), tokenizer="some/id")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        *((f"http://{host}:80", True) for host in ("127.0.0.1", "127.9.9.9", "localhost", "[::1]")),
        *((f"http://{host}:80", False) for host in ("127.evil.org", "10.0.0.1", "localhost.evil.org", "[::2]")),
    ],
)
def test_addresses_of_this_machine(url, expected):
    assert is_loopback(url) is expected


# A server that speculates, and answers of a given form

REGEX = Grammar(regex="[a-z]+")


def warned(backend, times=1):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            # The model of the stand-in takes no grammars.
            with pytest.raises(SpecDecError):
                backend.complete([ask(grammar=REGEX)])
    return [str(w.message) for w in caught if issubclass(w.category, SpeculatingServerWarning)]


@pytest.fixture
def look_again(monkeypatch):
    monkeypatch.setattr(speculation_warner, "_LOOK_AGAIN_SECONDS", 0.0)


@pytest.mark.usefixtures("look_again")
def test_a_server_that_is_seen_to_speculate_is_warned_of_once(server, backend):
    assert warned(backend) == [], "no draft was right so far"
    backend.complete([ask()])
    (message,) = warned(backend, times=3)
    assert server.url in message
    for choice in ("speculate=0", "second server", "in this process"):
        assert choice in message


@pytest.mark.usefixtures("look_again")
def test_a_server_without_speculation_is_not_warned_of(client, make_backend):
    with ServerThread(FakeModel(speculate=0), LIMITS) as server:
        backend = make_backend(server.url, client=client)
        backend.complete([ask()])
        assert warned(backend) == []
        backend.close()


@pytest.mark.usefixtures("look_again")
def test_metrics_that_fail_fail_no_request(server, backend):
    backend.complete([ask()])
    server.set_faults("no-metrics")
    assert warned(backend) == []
    assert server.standin.counts["metrics"] == 1
    server.set_faults()
    assert len(warned(backend)) == 1


def test_the_warning_comes_before_the_request_is_sent(server, backend):
    backend.complete([ask()])
    server.standin.requests.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SpeculatingServerWarning):
            backend.complete([ask(grammar=REGEX)])
    assert server.standin.requests == []
    assert text_of(backend) == TEXT


def test_requests_without_a_grammar_ask_for_no_metrics(server, backend):
    backend.complete([ask()] * 3)
    assert server.standin.counts["metrics"] == 0


# A server of one's own


class OwnServer:
    """What `TGIServer` tells of itself."""

    def __init__(self, speculate: int = 0) -> None:
        self.config: Any = SimpleNamespace(num_speculative_tokens=speculate)
        self.state = State.READY
        self.last_exit: ServerExit | None = None

    def end(self, restart_in: float | None = None) -> None:
        self.last_exit = ServerExit(Reason.KILLED, "The model's process was killed by signal 9.", 1, (), restart_in)
        self.state = State.FAILED if restart_in is None else State.RESTARTING

    def stop(self) -> None:
        self.state = State.STOPPED


@pytest.fixture
def own():
    return OwnServer()


def later(seconds, *actions):
    def act() -> None:
        for action in actions:
            action()

    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def test_a_server_launched_to_speculate_is_warned_of_before_any_draft(server, client, make_backend):
    backend = make_backend(server.url, client=client, server=OwnServer(speculate=3))
    (message,) = warned(backend, times=2)
    assert "started with speculate=3" in message
    assert server.standin.counts["metrics"] == 0


@pytest.mark.parametrize("fault", ["dead-shard", "dead-shard:after=2"])
def test_the_error_of_an_own_server_tells_why_it_ended(server, client, make_backend, own, fault):
    backend = make_backend(server.url, client=client, server=own)
    server.set_faults(fault)
    timer = later(0.5, own.end)
    with pytest.raises(BackendUnavailableError, match=r"has ended: The model's process was killed by signal 9\.$"):
        backend.complete([ask()])
    timer.join()
    # It stays so.
    server.close()
    for use in (lambda: backend.complete([ask()]), lambda: backend.token_ids("x")):
        with pytest.raises(BackendUnavailableError, match="killed by signal 9"):
            use()
    chat = ChatSpeculative(backend=backend)
    with pytest.raises(BackendUnavailableError, match="killed by signal 9"):
        chat.invoke("Hi")


def test_a_request_waits_for_the_restart_of_an_own_server(server, client, make_backend, own):
    backend = make_backend(server.url, client=client, server=own, max_retries=1, read_timeout=20.0)
    server.set_faults("dead-shard")
    ended = later(0.3, lambda: own.end(restart_in=1.0))
    again = later(1.5, server.set_faults, lambda: setattr(own, "state", State.READY))
    assert text_of(backend) == TEXT
    ended.join()
    again.join()


def test_all_requests_of_an_own_server_share_its_restart(server, client, make_backend, own):
    backend = make_backend(server.url, client=client, server=own, max_retries=1, read_timeout=20.0)
    server.set_faults("dead-shard")
    streams = backend.start([ask()] * 30)
    ended = later(0.5, lambda: own.end(restart_in=1.0))
    again = later(1.5, server.set_faults, lambda: setattr(own, "state", State.READY))
    assert ["".join(event.text for event in list(stream)[:-1]) for stream in streams] == [TEXT] * 30
    ended.join()
    again.join()
    assert server.standin.counts["health"] < 10


def test_what_has_begun_is_not_sent_again_after_a_restart(server, client, make_backend, own):
    backend = make_backend(server.url, client=client, server=own)
    server.set_faults("dead-shard:after=2")
    ended = later(0.2, lambda: own.end(restart_in=1.0))
    with pytest.raises(BackendUnavailableError, match=r"killed by signal 9\. It is started again\."):
        backend.complete([ask()])
    ended.join()


def test_an_own_server_that_is_well_is_not_waited_for(server, client, make_backend, own, monkeypatch):
    monkeypatch.setattr(owned_server, "_NOTICE_SECONDS", 3600.0)
    backend = make_backend(server.url, client=client, server=own)
    for fault in ("generation", "drop:after=2"):
        server.set_faults(fault)
        with pytest.raises((GenerationError, BackendUnavailableError)) as caught:
            backend.complete([ask()])
        assert "has ended" not in str(caught.value)


def test_an_earlier_end_explains_nothing(server, client, make_backend, own):
    own.end(restart_in=1.0)
    own.state = State.READY
    backend = make_backend(server.url, client=client, server=own)
    server.set_faults("generation")
    with pytest.raises(GenerationError) as caught:
        backend.complete([ask()])
    assert "killed" not in str(caught.value)


async def test_an_end_explains_one_failure_of_a_request(own, monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_DELAY", 0.0)

    async def is_healthy() -> bool:
        return True

    attempts = retries.Retries(3, 5.0, owned_server.OwnedServerWatch(own, is_healthy, 5.0))
    own.end(restart_in=0.1)
    own.state = State.READY
    await attempts.wait_or_raise(Failure(BackendUnavailableError("The connection broke."), is_transient=True))
    with pytest.raises(GenerationError) as caught:
        await attempts.wait_or_raise(Failure(GenerationError("It failed.")))
    assert str(caught.value) == "It failed."
    # The next end explains the next.
    own.end()
    with pytest.raises(BackendUnavailableError, match="killed by signal 9"):
        await attempts.wait_or_raise(Failure(GenerationError("It failed."), is_transient=True))


class Unwell:
    """The health of a server that is not well, and does not end."""

    def __init__(self) -> None:
        self.num_looks = 0

    async def is_healthy(self) -> bool:
        self.num_looks += 1
        return False


async def test_a_server_that_stays_unwell_is_waited_for_once(own, monkeypatch):
    monkeypatch.setattr(owned_server, "_NOTICE_SECONDS", 0.5)
    monkeypatch.setattr(owned_server, "_LOOK_SECONDS", 0.0)
    unwell = Unwell()
    watch = owned_server.OwnedServerWatch(own, unwell.is_healthy, 5.0)
    failure = Failure(GenerationError("It failed."))
    assert await watch.explain(failure, None) == (failure, None)
    assert unwell.num_looks > 1
    before = unwell.num_looks
    for _ in range(3):
        assert await watch.explain(failure, None) == (failure, None)
    assert unwell.num_looks - before == 3
    own.end()
    explained, end = await watch.explain(failure, None)
    assert end is own.last_exit
    assert "killed by signal 9" in str(explained)


async def test_no_server_is_waited_for_longer_than_a_token(own, monkeypatch):
    monkeypatch.setattr(owned_server, "_NOTICE_SECONDS", 3600.0)
    watch = owned_server.OwnedServerWatch(own, Unwell().is_healthy, 0.2)
    failure = Failure(GenerationError("It failed."))
    assert await asyncio.wait_for(watch.explain(failure, None), 20.0) == (failure, None)


def test_counting_waits_for_the_restart_of_an_own_server(server, client, make_backend, own):
    backend = make_backend(server.url, client=client, server=own, max_retries=1, read_timeout=20.0)
    server.close()
    own.end(restart_in=1.0)
    port = int(server.url.rpartition(":")[2])
    again = []

    def start() -> None:
        again.append(ServerThread(FakeModel(), LIMITS, port=port))
        own.state = State.READY

    # On a busy machine a client takes a while to be made.
    timer = later(1.5, start)
    try:
        assert len(backend.token_ids("Hello")) == 5
    finally:
        timer.join()
        backend.close()
        again[0].close()
