"""TGIBackend against servers that are broken or hostile: requests end in bounded time and memory, and say why."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import traceback
from collections.abc import Mapping
from typing import Any

import pytest

from langchain_specdec import SamplingParams
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishEvent, TokenEvent
from langchain_specdec.errors import (
    AuthenticationError,
    BackendUnavailableError,
    GenerationError,
    InvalidParameterError,
    OverloadedError,
    RequestTimeoutError,
    SpecDecError,
)
from tests.standin.clients import assert_in_time
from tests.standin.raw_server import EVENTS, INFO, RawServer, answer, endless, frame, raw, trickle

pytestmark = [pytest.mark.server, pytest.mark.transformers]

KEY = 'sk-"<live>&\\-0123456789'
GZIPPED = {"Content_Encoding": "gzip"}


@pytest.fixture
def ask(client, make_backend):
    """Asks a server for a completion of 5 tokens and returns the error, or its events."""

    def ask(server, read_timeout=20.0, **params):
        backend = make_backend(server.url, client=client, max_retries=0, api_key=KEY, read_timeout=read_timeout)
        request = CompletionRequest("Hello", SamplingParams(**{"max_new_tokens": 5, **params}))
        try:
            return list(backend.stream(request))
        except SpecDecError as error:
            return error

    return ask


def all_of(error: BaseException) -> str:
    """All that a log or a report may show of an error, and of those behind it."""
    shown: list[Any] = []
    pending: list[BaseException | None] = [error]
    while pending:
        if (one := pending.pop()) is not None:
            shown += [repr(one), str(one), one.args, vars(one), *traceback.format_exception(one)]
            pending += [one.__cause__, one.__context__]
    return "\n".join(map(str, shown))


# The limit on new tokens


def test_a_server_that_goes_on_is_cut_at_the_limit(ask):
    with RawServer({"/": endless(frame(), EVENTS)}) as server:
        events = ask(server, stop=["aaX"])
        assert len([event for event in events if isinstance(event, TokenEvent)]) == 5
        end = events[-1]
        assert isinstance(end, FinishEvent)
        assert (end.finish_reason, end.completion_tokens, end.prompt_tokens) == ("length", 5, 2)
        assert "".join(event.text for event in events[:-1]) == "aaaaa"
        assert_in_time(lambda: server.num_open == 0, "the server still generates")


def test_a_server_that_falls_silent_at_the_limit_is_not_waited_for(ask):
    async def five(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + 5 * frame())
        while True:
            writer.write(b": still here\n\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    with RawServer({"/": five}) as server:
        assert ask(server)[-1].finish_reason == "length"
        assert_in_time(lambda: server.num_open == 0, "the connection is still open")


# Short answers


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("info", "kind", "words"),
    [
        (trickle(b" ", OK + b"Content-Length: 100000\r\n\r\n"), RequestTimeoutError, "/info within 0.3 seconds"),
        (trickle(b"X", OK + b"X: "), RequestTimeoutError, "/info within 0.3 seconds"),
        (trickle(b"1\r\n \r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"), RequestTimeoutError, "within 0.3 seconds"),
        (endless(b" " * 65536, OK + b"Connection: close\r\n\r\n"), BackendUnavailableError, "more than 1048576 bytes"),
        (answer(gzip.compress(b" " * 2**24), **GZIPPED), BackendUnavailableError, "compressed"),
        (answer(gzip.compress(b" " * 2**24), "500 Oh", **GZIPPED), BackendUnavailableError, "compressed"),
        (answer("", "302 Found", Location="http://127.0.0.1:9/x"), BackendUnavailableError, "redirects requests to"),
        (answer("", "308 Oh", Location="http://127.0.0.1:9/x"), BackendUnavailableError, "HTTP 308"),
        (answer("", "204 No Content"), GenerationError, "HTTP 204"),
        (answer("[" * 100_000), BackendUnavailableError, "not a TGI server"),
        (answer("<html>"), BackendUnavailableError, "not a TGI server"),
        (answer([INFO]), BackendUnavailableError, "not a TGI server"),
        (answer({**INFO, "max_concurrent_requests": "9"}), BackendUnavailableError, "integer"),
        (answer({"model_id": "m"}), BackendUnavailableError, "max_concurrent_requests: Field required"),
        (answer({**INFO, "model_id": ""}), BackendUnavailableError, "model_id"),
        (answer({**INFO, "model_id": None}), BackendUnavailableError, "model_id"),
        *(
            (answer({**INFO, name: value}), BackendUnavailableError, name)
            for name in ("max_concurrent_requests", "max_total_tokens", "max_stop_sequences")
            for value in (-1, "12", 1.5, True, [1])
        ),
        (answer({**INFO, "max_concurrent_requests": 0}), BackendUnavailableError, "greater than or equal to 1"),
        (answer({**INFO, "max_concurrent_requests": None}), BackendUnavailableError, "max_concurrent_requests"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), BackendUnavailableError, "not valid HTTP"),
        (raw(b"HTTP/1.1 abc\r\n\r\n"), BackendUnavailableError, "not valid HTTP"),
        (raw(OK + b"Content-Length: 100\r\n\r\n{"), BackendUnavailableError, "broke the connection"),
        (raw(b""), BackendUnavailableError, "broke the connection"),
    ],
)
def test_an_info_that_is_not_tgis_is_refused_in_time(ask, info, kind, words):
    with RawServer({"/info": info}) as server:
        error = ask(server, read_timeout=0.3 if kind is RequestTimeoutError else 20.0)
        assert type(error) is kind
        assert words in str(error)
        assert len(str(error)) < 1000
        assert_in_time(lambda: server.num_open == 0, "the connection is still open")


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [
        (trickle(b" ", OK + b"Connection: close\r\n\r\n"), RequestTimeoutError),
        (endless(b" " * 65536, OK + b"Connection: close\r\n\r\n"), BackendUnavailableError),
        (answer([{"id": "1"}]), BackendUnavailableError),
        (answer([{"id": -1}]), BackendUnavailableError),
        (answer({"id": 1}), BackendUnavailableError),
        (answer("[" * 100_000), BackendUnavailableError),
        (answer({"error": "no"}, "422 Oh"), InvalidParameterError),
        (answer("", "307 Oh", Location="/"), BackendUnavailableError),
    ],
)
def test_tokens_are_counted_in_bounded_time_and_memory(client, make_backend, tokens, kind):
    with RawServer({"/tokenize": tokens}) as server:
        backend = make_backend(
            server.url, client=client, max_retries=0, read_timeout=0.4 if kind is RequestTimeoutError else 20.0
        )
        with pytest.raises(kind):
            backend.token_ids("Hello")


def test_counting_after_the_end_says_so(client, make_backend):
    backend = make_backend("http://127.0.0.1:9", client=client)
    backend.close()
    with pytest.raises(SpecDecError, match="closed"):
        backend.token_ids("Hello")


# Frames


@pytest.mark.parametrize(
    "data",
    [
        frame(token="five"),
        frame(token=-1),
        frame(token=None),
        frame(text=None),
        frame(text=["a"]),
        frame(end="tired"),
        frame(token=5, top_tokens=[{"id": "x", "text": "", "logprob": 0.0, "special": False}]),
        b"data: " + b"[" * 2000 + b"\n\n",
        b"data: 5\n\n",
        b'data: {"token": 5}\n\n',
        b"data: \xff\xfe\n\n",
    ],
)
def test_a_frame_that_is_not_tgis_fails_its_request(ask, data):
    with RawServer({"/": raw(EVENTS + data)}) as server:
        error = ask(server)
        assert type(error) is GenerationError
        assert "not TGI's" in str(error)
        assert_in_time(lambda: server.num_open == 0, "the connection is still open")


def test_a_token_that_a_grammar_rules_out_has_no_probability(ask):
    top = [{"id": 5, "text": "a", "logprob": -0.5, "special": False}]
    top.append({"id": 6, "text": "b", "logprob": None, "special": False})
    with RawServer({"/": raw(EVENTS + frame(end="length", top_tokens=top))}) as server:
        events = ask(server, logprobs=2)
    assert events[0].tokens[0].top_logprobs == {5: -0.5, 6: float("-inf")}


# Statuses


@pytest.mark.parametrize("error_type", [None, "odd", "generation"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidParameterError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, BackendUnavailableError),
        (413, InvalidParameterError),
        (422, InvalidParameterError),
        (424, GenerationError),
        (429, OverloadedError),
        (500, GenerationError),
        (502, BackendUnavailableError),
        (503, BackendUnavailableError),
        (504, BackendUnavailableError),
    ],
)
def test_a_status_counts_whatever_the_answer_says(ask, status, kind, error_type):
    body = {"error": f"reason of {status}", **({"error_type": error_type} if error_type else {})}
    with RawServer({"/": answer(body, f"{status} Oh")}) as server:
        error = ask(server)
        assert type(error) is kind
        assert status == 404 or f"reason of {status}" in str(error)


@pytest.mark.parametrize("body", ["", "plain text", "<html><h1>Oh</h1></html>", "[1]", '{"message": "x"}', "[" * 9999])
@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthenticationError), (403, AuthenticationError), (429, OverloadedError)]
)
def test_a_status_counts_without_tgis_json_too(ask, status, kind, body):
    with RawServer({"/": answer(body, f"{status} Oh")}) as server:
        assert type(ask(server)) is kind


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not valid HTTP"),
        (EVENTS.replace(b"Connection: close", b"Transfer-Encoding: chunked") + b"zz\r\n", "not valid HTTP"),
        (EVENTS.replace(b"Connection: close", b"Transfer-Encoding: chunked") + b"ff\r\ndata", "broke the connection"),
        (EVENTS.replace(b"Connection: close", b"Content-Length: 99") + b"data", "broke the connection"),
        (b"", "broke the connection"),
    ],
)
def test_broken_http_is_named_as_what_it_is(ask, data, words):
    with RawServer({"/": raw(data)}) as server:
        error = ask(server)
        assert type(error) is BackendUnavailableError
        assert words in str(error)
        assert "400" not in str(error).replace(server.url, "")


def test_a_connection_reset_in_the_middle_is_named(ask):
    async def reset(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + frame())
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()

    with RawServer({"/": reset}) as server:
        error = ask(server)
        assert type(error) is BackendUnavailableError


# The key


ECHOES = [
    answer({"error": f"bad header Bearer {KEY}", "error_type": "validation"}, "422 Oh"),
    answer({"error": f"{'x' * 490}{KEY}"}, "401 Oh"),
    answer(f"you sent {json.dumps(KEY)}", "403 Oh", Content_Type="text/plain"),
    answer({"error": KEY}, "500 Oh"),
    answer({"error": KEY}, "429 Oh"),
    answer("", "307 Oh", Location=f"http://127.0.0.1:9/?key={KEY.encode().hex()}"),
    raw(EVENTS + b"data: " + json.dumps({"error": KEY, "error_type": "generation"}).encode() + b"\n\n"),
    raw(EVENTS + frame(text=[KEY])),
    raw(EVENTS + frame(end=KEY)),
    raw(f"HTTP/1.1 {KEY}\r\n\r\n".encode()),
    raw(EVENTS.replace(b"Connection: close", b"Transfer-Encoding: chunked") + KEY.encode() + b"\r\n"),
    raw(b""),
]


_HTTP_MODULES = ("httpx", "httpcore", "aiohttp", "huggingface_hub", "text_generation", "multidict", "yarl")


def secrets_behind(error: BaseException) -> list[str]:
    """Where the key is found from an error, as by a debugger: in causes, contexts, attributes and frames' variables.

    The objects of this package hold it to work with, so of those only what they show is looked at.
    """
    found: list[str] = []
    seen: set[int] = set()
    pending: list[tuple[str, Any]] = [("error", error)]
    while pending:
        where, value = pending.pop()
        if id(value) in seen or where.count(".") > 25:
            continue
        seen.add(id(value))
        if isinstance(value, (str, bytes)):
            if b"0123456789" in (value if isinstance(value, bytes) else value.encode("utf-8", "replace")):
                found.append(where)
            continue
        if "0123456789" in repr(value):
            found.append(f"{where} (shown)")
        if isinstance(value, BaseException):
            names = ("__cause__", "__context__", "args", "__dict__", "__notes__")
            pending += [(f"{where}.{name}", getattr(value, name, None)) for name in names]
            trace = value.__traceback__
            while trace is not None:
                place = f"{where}.{trace.tb_frame.f_code.co_name}"
                is_test = trace.tb_frame.f_code.co_filename == __file__
                pending += [] if is_test else [(f"{place}.{k}", v) for k, v in trace.tb_frame.f_locals.items()]
                trace = trace.tb_next
        elif isinstance(value, Mapping):
            pending += [(f"{where}.{key}", inner) for key, inner in list(value.items())]
        elif isinstance(value, (list, tuple, set)):
            pending += [(f"{where}.{index}", inner) for index, inner in enumerate(value)]
        elif type(value).__module__.startswith(_HTTP_MODULES):
            slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
            pending += [(f"{where}.{name}", getattr(value, name, None)) for name in [*slots, "__dict__"]]
    return found


def test_the_search_finds_what_a_client_keeps():
    from huggingface_hub import AsyncInferenceClient

    async def ask(url):
        client = AsyncInferenceClient(url, token="unused", headers={"authorization": KEY})
        try:
            await client.text_generation("Hello")
        finally:
            await client.close()

    with RawServer({"/": answer({"error": "no"}, "401 Oh")}) as server:
        with pytest.raises(Exception, match="401") as caught:
            asyncio.run(ask(server.url))
        assert secrets_behind(caught.value)
        with pytest.raises(InvalidParameterError) as hidden:
            raise InvalidParameterError("Hidden.") from caught.value
        assert secrets_behind(hidden.value)


@pytest.mark.parametrize("path", ["/", "/info", "/tokenize"])
@pytest.mark.parametrize(
    "handler",
    [
        answer({"error": "no"}, "401 Oh"),
        answer({"error": "no", "error_type": "validation"}, "422 Oh"),
        answer({"error": "no", "error_type": "generation"}, "424 Oh"),
        answer({"error": "no"}, "429 Oh"),
        answer("<html>", "502 Oh"),
        answer("<html>"),
        answer("", "307 Oh", Location="http://127.0.0.1:9/x"),
        answer(gzip.compress(b" " * 2**16), **GZIPPED),
        endless(b" " * 65536, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"),
        trickle(b" ", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"),
        raw(EVENTS + b'data: {"error": "no", "error_type": "generation"}\n\n'),
        raw(EVENTS + frame(text=["a"])),
        raw(EVENTS + frame()),
        raw(b"HTTP/1.1 abc\r\n\r\n"),
        raw(b""),
    ],
)
def test_no_header_is_reachable_from_an_error(client, make_backend, handler, path):
    with RawServer({path: handler}) as server:
        backend = make_backend(server.url, client=client, max_retries=0, api_key=KEY, read_timeout=0.5)
        request = CompletionRequest("Hello", SamplingParams(max_new_tokens=5))
        errors: list[BaseException] = []
        for act in (lambda: list(backend.stream(request)), lambda: backend.token_ids("Hello")):
            try:
                act()
            except Exception as error:  # noqa: PERF203
                errors.append(error)
    assert errors
    assert [type(error) for error in errors if not isinstance(error, SpecDecError)] == []
    assert [place for error in errors for place in secrets_behind(error)] == []


@pytest.mark.parametrize("path", ["/", "/info"])
@pytest.mark.parametrize("handler", ECHOES)
def test_the_key_shows_nowhere(ask, handler, path):
    with RawServer({path: handler}) as server:
        error = ask(server)
        assert isinstance(error, SpecDecError)
        assert any(f"Bearer {KEY}".encode() in request for request in server.requests)
    assert "0123456789" not in all_of(error)


def test_no_log_shows_the_key(ask, caplog):
    caplog.set_level(logging.DEBUG)
    with RawServer({"/": answer({"error": "no"}, "401 Oh")}) as server:
        ask(server)
    assert caplog.records
    assert "0123456789" not in "".join(record.getMessage() + repr(record.args) for record in caplog.records)
