"""What a client sends may stand in TGI's log, and decides nothing: neither why a server ended nor its restart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi_launcher import Backoff, Reason, Stage
from tgi_launcher.command import Addresses, Command
from tgi_launcher.config import TGIConfig
from tgi_launcher.launcher_process import ProcessExit
from tgi_launcher.plan import LaunchPlan
from tgi_launcher.ports import PortLocks
from tgi_launcher.restart import RestartPolicy
from tgi_launcher.server_run import Progress, ServerRun

# What means something where the launcher says it, or a shard while it starts.
# No process is started, so none needs a folder.
NO_FOLDER: Any = None
WORDS = [
    "gated repo",
    "GatedRepoError: 403 Client Error.",
    "RepositoryNotFoundError",
    "ModuleNotFoundError: No module named 'x'",
    "Speculate is set to `5` but this medusa models only has `3` heads",
    "Speculator decoding is not enabled for AutoModel",
    "text-generation-server not found in PATH",
    "Failed to bind to 127.0.0.1:1: x",
    "EADDRINUSE",
    "CUDA out of memory",
    "std::bad_alloc",
    "No space left on device",
    'ArgumentValidation("x")',
    "error: unexpected argument '--x' found",
    "Error: DownloadError",
    "Error: ShardCannotStart",
    "Error: ShardFailed",
    "Error: WebserverFailed",
    "Cannot connect to the Docker daemon",
    "thread 'main' panicked at x.rs:1:\nx",
    "Connected",
    "Args {",
    "Starting shard",
    "Shard process was signaled to shutdown with signal 9",
    "Exec format error",
    "No local weights found in x with extension",
]
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=10), min_size=1, max_size=4).map(" ".join) | st.sampled_from(
    WORDS
)


@pytest.fixture(autouse=True)
def no_process(monkeypatch):
    """A run without a process: its lines come from the test."""
    monkeypatch.setattr("tgi_launcher.server_run.LauncherProcess", lambda *_, **__: None)


def record(message: str, level: str = "INFO", *, rank: int | None = None, of_router: bool = False) -> str:
    if of_router:
        return json.dumps({"level": level, "message": message, "target": "text_generation_router::server"})
    span = {} if rank is None else {"span": {"name": "shard-manager", "rank": rank}}
    return json.dumps({"level": level, "fields": {"message": message}, "target": "text_generation_launcher", **span})


START = [
    record("Args {\n}"), record("Starting shard", rank=0), record("Shard ready in 3s", rank=0),
    record("Starting Webserver"), record("Warming up model", of_router=True), record("Connected", of_router=True),
]  # fmt: skip
# How TGI ends, by what ended it, in the order in which its launcher says so.
ENDS: dict[str, list[str]] = {
    "router": [record("Webserver Crashed", "ERROR"), record("Shutting down shards"), "Error: WebserverFailed"],
    "shard": [
        record("Shard complete standard error output:\n", "ERROR", rank=0), record("Shard 0 crashed", "ERROR"),
        "Error: ShardFailed",
    ],
    "killed shard": [
        record("Shard complete standard error output:\n", "ERROR", rank=0),
        record("Shard process was signaled to shutdown with signal 9", "ERROR", rank=0),
        record("Shard 0 crashed", "ERROR"),
        "Error: ShardFailed",
    ],
}  # fmt: skip


@st.composite
def lines_of_requests(draw: st.DrawFn) -> list[str]:
    """Lines that may hold a client's text: of a shard, of the router, and of the router's panic, which is no record."""
    forms = st.sampled_from(
        [
            lambda text: record(text, "ERROR", rank=0),
            lambda text: record(f"Method Prefill encountered an error.\nTraceback …\n{text}", "ERROR", rank=0),
            lambda text: record(text, "ERROR", of_router=True),
            lambda text: record(text, "WARN", rank=0),
            lambda text: text,
        ]
    )
    return [draw(forms)(draw(texts)) for _ in range(draw(st.integers(0, 5)))]


def ended(lines: list[str], returncode: int | None, *, was_ready: bool = True) -> Any:
    steps: list[Progress] = []
    command = Command(("x",), env={})
    plan = LaunchPlan(command, Addresses(1, 2, 3, ""), is_docker=False, folder=NO_FOLDER)
    run = ServerRun(TGIConfig(model_id="m"), plan, PortLocks(), on_progress=steps.append)
    for line in START:
        run._read_line(line, is_cut=False)
    if was_ready:
        run.ready_at = 1.0  # as `wait_until_ready` does
    for line in lines:
        run._read_line(line, is_cut=False)
    error = run.why_ended(ProcessExit(returncode, was_stopped=False))
    return error.reason, error.summary, [step.stage for step in steps]


@settings(max_examples=300)
@given(
    lines=lines_of_requests(),
    end=st.sampled_from(sorted(ENDS)),
    returncode=st.sampled_from([1, 2, 101, -9, -6, 0, None]),
    was_ready=st.booleans(),
)
def test_no_text_of_a_client_decides_why_a_server_ended(lines, end, returncode, was_ready):
    # The router's first words may be that its port is taken, as long as it has not answered.
    said = [record("A request", of_router=True)]
    expected = ended([*said, *ENDS[end]], returncode, was_ready=was_ready)
    assert ended([*said, *lines, *ENDS[end]], returncode, was_ready=was_ready) == expected


@given(text=texts)
def test_the_last_words_of_a_shard_are_no_cause(text):
    lines = list(ENDS["shard"])
    lines[0] = record(f"Shard complete standard error output:\n{text}", "ERROR", rank=0)
    assert ended(lines, 1) == ended(ENDS["shard"], 1)


def test_a_regex_with_the_words_of_a_missing_licence_does_not_hinder_a_restart():
    traceback = "Method Prefill encountered an error.\nTraceback (most recent call last):\nre.error: gated repo ("
    reason, summary, _ = ended([record(traceback, "ERROR", rank=0), *ENDS["router"]], 1)
    assert (reason, "router ended" in summary) == (Reason.WEBSERVER_FAILED, True)
    assert RestartPolicy("on-failure", Backoff()).next_wait(reason, 1.0) is not None


@pytest.mark.parametrize(
    ("end", "reason", "words"),
    [
        ("router", Reason.WEBSERVER_FAILED, "router ended"),
        ("shard", Reason.SHARD_FAILED, "died while serving"),
        ("killed shard", Reason.KILLED, "A shard was killed by SIGKILL"),
    ],
)
def test_the_launcher_itself_is_believed(end, reason, words):
    found, summary, _ = ended(ENDS[end], 1)
    assert found is reason
    assert words in summary


def test_a_port_that_is_taken_at_the_last_moment_is_told():
    lines = [record("Failed to bind to 127.0.0.1:1: Address already in use", "ERROR", of_router=True), *ENDS["router"]]
    assert ended(lines, 1, was_ready=False)[0] is Reason.PORT_TAKEN
    # A server that has answered has its port.
    assert ended(lines, 1)[0] is Reason.WEBSERVER_FAILED


def test_the_start_that_failed_is_still_read():
    run_of_start = [record("Shard complete standard error output:\nGatedRepoError: 403 Client Error.", "ERROR", rank=0)]
    command = Command(("x",), env={})
    run = ServerRun(
        TGIConfig(model_id="m"),
        LaunchPlan(command, Addresses(1, 2, 3, ""), is_docker=False, folder=NO_FOLDER),
        PortLocks(),
    )
    for line in [START[0], *run_of_start, "Error: ShardCannotStart"]:
        run._read_line(line, is_cut=False)
    assert run.why_ended(ProcessExit(1, was_stopped=False)).reason is Reason.MODEL_ACCESS_DENIED


def test_a_sentence_holds_nothing_that_a_terminal_would_obey():
    command = Command(("x",), env={})
    plan = LaunchPlan(command, Addresses(1, 2, 3, ""), is_docker=False, folder=NO_FOLDER)
    run = ServerRun(TGIConfig(model_id="m"), plan, PortLocks())
    for line in ["ValueError: a\x1b]0;title\x9b2J\u202eb\ud800", "Error: ShardCannotStart"]:
        run._read_line(line, is_cut=False)
    summary = run.why_ended(ProcessExit(1, was_stopped=False)).summary
    assert summary.endswith("ValueError: a]0;title2Jb.")


def test_nothing_is_a_stage_any_more_when_it_serves():
    stages = ended([record("Starting shard", rank=0), *ENDS["router"]], 1, was_ready=False)[2]
    assert stages[-1] is Stage.ROUTER
