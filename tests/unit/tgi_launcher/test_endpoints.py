"""What the launcher asks its server for: one deadline for all of an answer, a largest size, checked fields."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.standin.raw_server import INFO, RawServer, answer, endless, raw, trickle
from tgi_launcher import NotRunningError
from tgi_launcher.endpoints import get_info, get_text, is_healthy
from tgi_launcher.metrics import Metrics, parse_metrics

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: 100000\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.server
@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (trickle(b" ", LENGTH), "too long|timed out"),
        (trickle(b"x", OK + b"X: "), "too long|timed out"),
        (trickle(b"X: y\r\n", OK), "too long|timed out|headers"),
        (trickle(b"1\r\nx\r\n", CHUNKED), "too long|timed out"),
        (trickle(b"HTTP/1.1 100 Continue\r\n\r\n"), "too long|timed out"),
        (endless(b" " * 65536, OK + b"\r\n"), "more than 4194304 bytes"),
        (answer("", "302 Found", Location="http://127.0.0.1:9/"), "answers 302"),
        (answer("", "500 Oh"), "answers 500"),
        (answer("", "204 Oh"), "answers 204"),
        (raw(b""), "does not answer"),
        (raw(b"SSH-2.0\r\n\r\n"), "does not answer"),
        (raw(b"HTTP/1.1 abc\r\n\r\n"), "does not answer"),
        (raw(LENGTH + b"{"), "does not answer"),
        (raw(CHUNKED + b"zz\r\n"), "does not answer"),
        (raw(OK + b"x" * 70_000), "does not answer"),
    ],
)
@pytest.mark.parametrize("get", [get_text, get_info])
def test_an_answer_that_is_none_is_refused_in_time(handler, words, get: Callable[..., Any]):
    timeout = 0.3 if "too long" in words else 20.0
    with RawServer({"/info": handler}) as server, pytest.raises(NotRunningError, match=words):
        get(server.url + ("/info" if get is get_text else ""), timeout=timeout)


@pytest.mark.server
@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        "",
        [INFO],
        gzip.compress(b"{}", mtime=0),
        {"model_id": "m"},
        *(
            {**INFO, name: value}
            for name in ("max_concurrent_requests", "max_total_tokens", "max_input_tokens", "max_stop_sequences")
            for value in (-1, "12", 1.5, True, None if name == "max_concurrent_requests" else "")
        ),
        {**INFO, "max_concurrent_requests": 0},
        {**INFO, "model_id": ["x" * 10_000]},
    ],
)
def test_an_info_with_other_fields_is_refused(body):
    with RawServer({"/info": answer(body)}) as server, pytest.raises(NotRunningError, match="is not TGI's") as caught:
        get_info(server.url, timeout=20.0)
    assert len(str(caught.value)) < 500
    assert "xxx" not in str(caught.value)


@pytest.mark.server
def test_health_is_the_status_alone():
    with RawServer({"/health": endless(b"x" * 65536, OK + b"\r\n")}) as server:
        assert is_healthy(server.url)
    with RawServer({"/health": trickle(b"x")}) as server:
        assert not is_healthy(server.url, timeout=0.2)
    with RawServer({"/health": answer("", "307 Oh", Location="/info")}) as server:
        assert not is_healthy(server.url)


@pytest.mark.server
def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert not is_healthy(f"http://127.0.0.1:{free.getsockname()[1]}")


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "1e300"])
@pytest.mark.parametrize("name", ["tgi_request_skipped_tokens_count", "tgi_request_count", "tgi_queue_size"])
def test_counters_that_count_nothing_are_refused(name, value):
    with pytest.raises(NotRunningError, match=name):
        parse_metrics(f"{name} {value}\n", time=1.0)


@given(st.lists(st.text() | st.sampled_from(["tgi_request_count", "{", "}", '="', '"', "# TYPE ", " 1", "NaN", "\n"])))
def test_any_metrics_are_read_or_refused(parts):
    try:
        metrics = parse_metrics("".join(parts), time=1.0)
    except NotRunningError:
        return
    assert metrics.report(Metrics(time=0.0), 2).num_tokens >= 0
