"""A secret shows nowhere, however TGI's log lays it out: whole, cut, in boxes, over lines, record by record."""

from __future__ import annotations

import json
import logging
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi_launcher.command import Addresses, Command
from tgi_launcher.config import TGIConfig
from tgi_launcher.errors import Reason
from tgi_launcher.launcher_process import ProcessExit
from tgi_launcher.plan import LaunchPlan
from tgi_launcher.ports import PortLocks
from tgi_launcher.redaction import Redactor
from tgi_launcher.server_run import Progress, ServerRun

# Parts shorter than this may show: they are in ordinary words too.
PIECE = 8
# No process is started, so none needs a folder.
NO_FOLDER: Any = None
secrets = st.text(string.ascii_letters + string.digits + "_-.+/=!#%&", min_size=8, max_size=200)
widths = st.integers(1, 120)


def parts(secret: str) -> set[str]:
    return {secret[i : i + PIECE] for i in range(len(secret) - PIECE + 1)}


def shown_of(secret: str, text: str) -> list[str]:
    """The parts of the secret that a reader could put together from the text, across borders and line breaks."""
    bare = "".join(sign for sign in text if not sign.isspace() and sign not in "│|╭╮╰╯─'\"")
    return [part for part in parts(secret) if part in bare]


def in_box(text: str, width: int, border: str) -> list[str]:
    return [f"{border} {text[i : i + width]:{width}} {border}" for i in range(0, len(text), width)]


@pytest.fixture(autouse=True)
def no_process(monkeypatch):
    monkeypatch.setattr("tgi_launcher.server_run.LauncherProcess", lambda *_, **__: None)


class Collector(logging.Handler):
    """Keeps records as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def seen_of(secret: str, lines: list[str]) -> list[str]:
    """All that a run tells of these lines of TGI's log."""
    handler = Collector()
    logger = logging.getLogger("tgi_launcher")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        return _seen_of(secret, lines, handler.records)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def _seen_of(secret: str, lines: list[str], records: list[logging.LogRecord]) -> list[str]:
    seen: list[str] = []
    steps: list[Progress] = []
    plan = LaunchPlan(Command(("x",), {}, secrets=(secret,)), Addresses(1, 2, 3, ""), is_docker=False, folder=NO_FOLDER)
    run = ServerRun(TGIConfig(model_id="m"), plan, PortLocks(), on_log=seen.append, on_progress=steps.append)
    for line in lines:
        run._read_line(line, is_cut=False)
    error = run.why_ended(ProcessExit(1, was_stopped=False))
    formatter = logging.Formatter()
    logged = [formatter.format(record) for record in records]
    texts = ["\n".join(seen), "\n".join(run.log_tail(1000)), str(error), error.summary, "\n".join(logged)]
    return [*texts, *(step.message for step in steps)]


@given(
    secret=secrets, width=widths, border=st.sampled_from(["", "│", "|", "│ │"]), before=st.sampled_from(["", "key = '"])
)
def test_a_secret_in_a_box_of_any_width_is_masked(secret, width, border, before):
    text = "\n".join(in_box(f"{before}{secret}' x", width, border))
    shown = Redactor([secret])(text)
    assert "***" in shown
    assert shown_of(secret, shown) == []


@given(secret=secrets, width=widths, border=st.sampled_from(["", "│"]))
def test_no_error_log_or_callback_shows_a_secret_that_a_record_cuts(secret, width, border):
    message = "Shard complete standard error output:\n" + "\n".join(in_box(f"ValueError: {secret}", width, border))
    line = json.dumps({"level": "ERROR", "fields": {"message": message}, "target": "text_generation_launcher"})
    for text in seen_of(secret, [line, "Error: ShardCannotStart"]):
        assert shown_of(secret, text) == []


@given(secret=secrets, width=widths, border=st.sampled_from(["", "│"]))
def test_a_secret_over_lines_that_are_no_records_is_masked(secret, width, border):
    for text in seen_of(secret, [*in_box(f"key={secret}", width, border), "Error: ShardCannotStart"]):
        # Of the first line there may be a part that was shown before the next came.
        assert len(shown_of(secret, text)) == 0


@given(secret=secrets, start=st.integers(0, 60), length=st.integers(PIECE, 60))
def test_a_part_of_a_secret_is_masked_too(secret, start, length):
    part = secret[start : start + length]
    assert shown_of(secret, Redactor([secret])(f"key = '{part}'+40")) == []


@given(st.text(alphabet=string.ascii_lowercase + " \n", max_size=300))
def test_a_text_without_the_secret_stays_as_it_is(text):
    assert Redactor(["0123-4567-89AB-CDEF"])(text) == text


def test_the_text_around_a_secret_is_kept():
    secret = "hf_" + "aBcDeFgH" * 8
    assert Redactor([secret])(f"begin │ {secret[:40]} │\n│ {secret[40:]} │ end") == "begin │ *** │ end"
    assert Redactor([secret])("hf_transfer aBcDe") == "hf_transfer aBcDe"


def run_of(*secrets: str) -> ServerRun:
    command = Command(("x",), {}, secrets=secrets)
    plan = LaunchPlan(command, Addresses(1, 2, 3, ""), is_docker=False, folder=NO_FOLDER)
    return ServerRun(TGIConfig(model_id="m"), plan, PortLocks())


@pytest.mark.parametrize("key", ["memory", "enough", "tokens", "Not"])
def test_a_short_key_does_not_change_why_a_server_ended(key):
    ends = []
    for secrets in ((), (key,)):
        run = run_of(*secrets)
        text = "Not enough memory to handle 4096 prefill tokens."
        record = {"level": "ERROR", "message": text, "target": "text_generation_router"}
        run._read_line(json.dumps(record), is_cut=False)
        run._read_line("Error: WebserverFailed", is_cut=False)
        error = run.why_ended(ProcessExit(1, was_stopped=False))
        ends.append(error.reason)
    assert key not in str(error)
    assert ends == [Reason.OUT_OF_MEMORY] * 2


@pytest.mark.parametrize("is_cut", [False, True])
def test_no_more_of_a_long_line_is_searched_than_is_kept(monkeypatch, is_cut):
    """A client decides how long a line is, and the search is in this process."""
    lengths: list[int] = []
    redact = Redactor.__call__

    def counting(self: Redactor, text: str, **options: Any) -> str:
        lengths.append(len(text))
        return redact(self, text, **options)

    monkeypatch.setattr(Redactor, "__call__", counting)
    run = run_of("correct-horse-battery")
    text = "a1b2 " * 50_000 + "correct-horse-battery" + "." * 100
    for line in (text, json.dumps({"level": "INFO", "message": text, "target": "text_generation_router::server"})):
        run._read_line(line, is_cut=is_cut)
    assert max(lengths) < 20_000
    assert "correct" not in "".join(run.log_tail(100))


@given(secret=secrets, before=st.text("ab-", max_size=20), start=st.integers(0, 190), length=st.integers(PIECE, 20))
def test_any_part_is_found_wherever_it_begins(secret, before, start, length):
    part = secret[start : start + length]
    shown = Redactor([secret])(before + part)
    assert len(part) < PIECE or part not in shown
