"""tgi_launcher against a stand-in for TGI, as processes: starts, failures, ends, and nothing left behind.

Every process that a test starts, however indirectly, carries STANDIN_TEST in its environment; each test ends with a
look for those that are left.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from langchain_specdec import SamplingParams, TGIBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import BackendUnavailableError
from tests.standin.clients import close_shared_session
from tests.standin.models import FakeModel
from tests.support.launcher import put_docker_on_path, put_launcher_on_path
from tgi_launcher import (
    Backoff,
    NotRunningError,
    Reason,
    ServerExit,
    SpeculationInactiveWarning,
    Stage,
    StartError,
    State,
    StopError,
    TGIConfig,
    TGIError,
    TGIServer,
    supervisor,
)
from tgi_launcher import launcher_process as process
from tgi_launcher.plan import make_plan
from tgi_launcher.server_folder import ServerFolder, make_server_folder

pytestmark = [pytest.mark.process, pytest.mark.server]

KEY = "correct-horse-battery"
# No end of anything may take longer than this here.
BOUND = 20.0


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch, tmp_path):
    """The stand-in on PATH; afterwards no process, thread, file descriptor or socket folder may be left."""
    mark = uuid.uuid4().hex
    put_launcher_on_path(monkeypatch, tmp_path)
    monkeypatch.setenv("STANDIN_TEST", mark)
    # Proxies are for the world outside; a server of this machine must be reached without.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    threads = set(threading.enumerate())
    descriptors = open_descriptors()
    yield
    assert await_none(lambda: marked(mark)) == [], "processes are left"
    assert await_none(lambda: [t for t in threading.enumerate() if t not in threads and "tgi" in t.name]) == []
    assert await_none(lambda: open_descriptors() - descriptors, gc.collect) == set(), "file descriptors are left"


def open_descriptors():
    """Open files and sockets of this process, by what they are; empty where the system does not tell."""
    found = set()
    for path in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add((path.name, str(path.readlink())))
    return {(name, target) for name, target in found if not target.startswith("/proc")}


def marked(mark):
    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if candidate.environ().get("STANDIN_TEST") == mark and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append((candidate.pid, candidate.cmdline()))
    return [(pid, line) for pid, line in found if pid != os.getpid()]


def await_none(look, between=lambda: None, seconds=BOUND):
    deadline = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < deadline:
        between()
        time.sleep(0.05)
    return found


def await_true(look, seconds=BOUND):
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def config(fault=None, **options):
    env = {"STANDIN_FAULT": fault} if fault else {}
    return TGIConfig(**{"model_id": "fake", "graceful_termination_timeout": 2, "env": env, **options})


def generate(server, *, timeout=10.0, text="Hello"):
    body = json.dumps({"inputs": text, "parameters": {"max_new_tokens": 30}}).encode()
    headers = {"Content-Type": "application/json"}
    if server.api_key is not None:
        headers["Authorization"] = f"Bearer {server.api_key.get_secret_value()}"
    request = urllib.request.Request(f"{server.base_url}/generate", body, headers)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout) as response:
        return json.loads(response.read())["generated_text"]


def pid_of(server: TGIServer) -> int:
    assert server.pid is not None
    return server.pid


def state_of(server: TGIServer) -> State:
    """As a call, since the type checker takes it that a property still is what it was."""
    return server.state


def process_of(server: TGIServer) -> Any:
    assert server._run is not None
    return server._run.process


def folder_of(server: TGIServer) -> ServerFolder:
    assert server._run is not None
    return server._run.plan.folder


def processes_of(server):
    return supervisor.server_processes(process_of(server).marker)


def shards_of(server):
    return [p for p in processes_of(server) if "--uds-path" in p.cmdline()]


def expect_gone(server):
    assert processes_of(server) == []
    assert server.pid is None
    assert not folder_of(server).path.exists()


# A life


def test_a_server_starts_serves_and_ends():
    steps: list[Any] = []
    lines: list[str] = []
    server = TGIServer(config(num_shard=2, speculate=3), on_progress=steps.append, on_log=lines.append)
    with server:
        assert server.state is State.READY
        assert server.info().model_id == "fake"
        assert server.info().max_total_tokens == 2048
        assert len(generate(server)) > 5
        shards = {p.pid for p in shards_of(server)}
        assert len(shards) == 2
        assert {os.getpgid(pid) for pid in shards} == shards, "each in a group of its own"
        assert len(processes_of(server)) == 5, "supervisor, launcher, two shards, router"
        assert server.pid in {p.pid for p in processes_of(server)}
    assert state_of(server) is State.STOPPED
    expect_gone(server)
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == [Stage.LAUNCH, Stage.CHECK, Stage.SHARDS, Stage.WARM_UP, Stage.ROUTER, Stage.READY]
    assert any("shard terminated" in line for line in lines), "it was ended gently"
    assert "[shard 1]" in "".join(lines)


def test_what_tgi_writes_where_it_runs_goes_with_it(monkeypatch, tmp_path):
    """A copy of the tokenizer, and PyTorch's temporary files."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with TGIServer(config()) as server:
        own = folder_of(server)
        assert [path.name for path in Path(own.work).iterdir()] == ["out"]
        assert len(list(Path(own.temporary).glob("torchinductor_*"))) == 1
        process = psutil.Process(pid_of(server))
        assert process.cwd() == own.work
        assert stat.S_IMODE(own.path.stat().st_mode) == 0o700
        shards_of(server)[0].kill()  # so that it cannot remove its own
        assert server.wait(BOUND) is not None
    expect_gone(server)
    assert list(folder.iterdir()) == []


def test_a_cancelled_start_leaves_no_files():
    server = TGIServer(config("endless-loading"))
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.start)
        try:
            await_true(lambda: server._run and list(Path(folder_of(server).temporary).glob("torchinductor_*")))
        finally:
            server.stop()
        with pytest.raises(StartError) as caught:
            starting.result(BOUND)
    assert caught.value.reason is Reason.CANCELLED
    expect_gone(server)


def test_it_can_be_started_again_and_stopped_twice():
    server = TGIServer(config("slow-start:seconds=0.3"))
    server.stop()
    for _ in range(2):
        server.start()
        with pytest.raises(TGIError, match="ready already"):
            server.start()
        generate(server)
        server.stop()
        server.stop()
        assert server.wait(0) is None
    with pytest.raises(NotRunningError):
        server.info()


def test_two_servers_side_by_side():
    with TGIServer(config(num_shard=2)) as one, TGIServer(config(num_shard=2)) as two:
        assert one.base_url != two.base_url
        assert generate(one) == generate(two)


async def test_the_event_loop_goes_on_meanwhile():
    beats = 0

    async def beat():
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    heart = asyncio.create_task(beat())
    async with TGIServer(config(speculate=2)) as server:
        at_start = beats
        assert at_start > 10
        assert (await server.ainfo()).model_id == "fake"
        before = await server.ametrics()
        await asyncio.to_thread(generate, server)
        assert (await server.aspeculation(before)).num_tokens > 5
    assert beats > at_start + 5
    heart.cancel()


async def test_a_cancelled_start_ends_what_it_started():
    server = TGIServer(config("endless-loading"))
    starting = asyncio.create_task(server.astart())
    await asyncio.to_thread(await_true, lambda: server.pid is not None)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    expect_gone(server)
    assert server.state is not State.READY


@pytest.mark.parametrize("moment", ["supervisor started", "nothing said", "spec sent", "again while it ends"])
def test_an_interrupt_at_any_moment_of_a_start_leaves_nothing(monkeypatch, moment):
    send = process.LauncherProcess._send
    supervisors: list[subprocess.Popen[bytes]] = []

    def lost(*args, **options):
        supervisors.append(subprocess.Popen(*args, **options))  # noqa: S603
        raise KeyboardInterrupt

    def interrupted(self, line):
        if moment != "nothing said" or not line.startswith("{"):
            send(self, line)
        if line.startswith("{") or (moment == "again while it ends" and line != "stop 0.0"):
            raise KeyboardInterrupt

    if moment == "supervisor started":
        own = {name: getattr(subprocess, name) for name in ("PIPE", "STDOUT")}
        monkeypatch.setattr(process, "subprocess", type("Module", (), {**own, "Popen": staticmethod(lost)}))
    else:
        monkeypatch.setattr(process.LauncherProcess, "_send", interrupted)
    server = TGIServer(config("endless-loading"))
    with pytest.raises(KeyboardInterrupt):
        server.start()
    monkeypatch.setattr(process.LauncherProcess, "_send", send)
    assert server.state is State.FAILED
    for found in supervisors:
        found.communicate(timeout=BOUND)
    expect_gone(server)
    server.stop()


def test_a_supervisor_obeys_a_command_that_comes_with_the_first_line(tmp_path):
    spec = {
        "argv": ["sleep", "60"], "stop": [], "remove": [], "marker": str(tmp_path / "none"), "parent": os.getpid(),
        "drain_seconds": 60.0, "orphan_grace_seconds": 1.0, "folder": None,
    }  # fmt: skip
    command = [sys.executable, supervisor.__file__, "2"]
    env = {**os.environ, supervisor.MARKER: str(spec["marker"])}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, env=env) as child:  # noqa: S603
        assert child.stdin is not None
        assert child.stderr is not None
        child.stdin.write(json.dumps(spec).encode() + b"\nstop 5\n")
        child.stdin.flush()
        try:
            assert child.wait(BOUND) == 0
        finally:
            child.kill()
        assert json.loads(child.stderr.read().splitlines()[-1])["stopped"] is True


def test_a_folder_to_run_in_that_is_bad_is_not_called_a_bad_launcher(monkeypatch, tmp_path):
    def without_folder(*args, **options):
        plan = make_plan(*args, **options)
        return replace(plan, command=replace(plan.command, folder=str(tmp_path / "nowhere")))

    monkeypatch.setattr("tgi_launcher.engines.tgi.make_plan", without_folder)
    with pytest.raises(StartError, match="nowhere"):
        TGIServer(config()).start()


def test_a_start_is_given_up_by_a_stop_from_another_thread():
    server = TGIServer(config("endless-download"))
    caught = []

    def start():
        try:
            server.start()
        except StartError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    await_true(lambda: server.pid is not None)
    server.stop()
    thread.join(BOUND)
    assert [error.reason for error in caught] == [Reason.CANCELLED]
    assert state_of(server) is State.STOPPED


# Failures to start


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ("model-not-found", Reason.MODEL_NOT_FOUND, "no model fake"),
        ("gated", Reason.MODEL_ACCESS_DENIED, "licence"),
        ("offline", Reason.MODEL_NOT_FOUND, "not in the local cache"),
        ("unreachable", Reason.DOWNLOAD_FAILED, "The Hub cannot be reached"),
        ("no-weights", Reason.MODEL_NOT_FOUND, "The folder /models/x holds no weights"),
        ("disk-full", Reason.DOWNLOAD_FAILED, "The disk is full."),
        ("no-server", Reason.INCOMPLETE_INSTALLATION, "text-generation-server"),
        ("no-router", Reason.INCOMPLETE_INSTALLATION, "text-generation-router"),
        ("out-of-memory", Reason.OUT_OF_MEMORY, "memory"),
        ("heads", Reason.SPECULATE_EXCEEDS_HEADS, "only 3 medusa heads"),
        ("no-speculator", Reason.SPECULATION_UNSUPPORTED, "a fallback that cannot speculate"),
        ("killed-while-loading", Reason.KILLED, "SIGKILL"),
        ("killed-while-loading:signal=11", Reason.KILLED, "crashed (SIGSEGV"),
        ("no-gpu", Reason.NOT_ENOUGH_GPUS, "cpu=True sets them"),
        ("crash-while-loading", Reason.SHARD_CANNOT_START, "flubber"),
        ("warm-up-out-of-memory", Reason.OUT_OF_MEMORY, "4096 tokens"),
        ("warm-up-malloc", Reason.OUT_OF_MEMORY, "main memory does not hold fake"),
        ("crash-loading", Reason.WEBSERVER_FAILED, "router ended"),
        ("launcher-dies-loading", Reason.KILLED, "SIGKILL"),
    ],
)
def test_a_failed_start_says_why_and_leaves_nothing(fault, reason, words):
    server = TGIServer(config(fault, speculate=5, num_shard=2))
    with pytest.raises(StartError) as caught:
        server.start()
    assert (caught.value.reason, server.state) == (reason, State.FAILED), str(caught.value)
    assert words in caught.value.summary
    assert "\n" not in caught.value.summary
    assert caught.value.log_tail
    expect_gone(server)


def test_cpu_starts_where_there_is_no_gpu(monkeypatch):
    lines: list[str] = []
    # As Intel's image sets it, which crashes with speculation.
    monkeypatch.setenv("ATTENTION", "flashdecoding-ipex")
    with TGIServer(config("no-gpu", cpu=True, speculate=3), on_log=lines.append) as server:
        assert generate(server)
    assert any("Using attention paged - Prefix caching 0" in line for line in lines)
    # What a person sets in the environment counts alike.
    for name, value in {"ATTENTION": "paged", "PREFIX_CACHING": "0", "CUDA_GRAPHS": "0"}.items():
        monkeypatch.setenv(name, value)
    with TGIServer(config("no-gpu", speculate=3)) as server:
        assert generate(server)
    monkeypatch.delenv("CUDA_GRAPHS")
    with pytest.raises(StartError) as caught:
        TGIServer(config("no-gpu", env={"STANDIN_FAULT": "no-gpu", "ATTENTION": "paged"})).start()
    assert caught.value.reason is Reason.NOT_ENOUGH_GPUS


# The last is up by then, and says it is not ready.
@pytest.mark.parametrize(
    ("fault", "seconds"), [("endless-download", 0.7), ("endless-loading", 0.7), ("unhealthy", 2.5)]
)
def test_a_start_that_takes_too_long_is_ended(fault, seconds):
    server = TGIServer(config(fault, startup_timeout=seconds))
    began = time.monotonic()
    with pytest.raises(StartError) as caught:
        server.start()
    assert time.monotonic() - began < BOUND
    assert caught.value.reason is Reason.TIMEOUT
    assert "startup_timeout" in caught.value.summary
    expect_gone(server)


def test_a_taken_port_is_noticed_before_the_model_is_loaded():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = TGIServer(config(port=port))
        with pytest.raises(StartError) as caught:
            server.start()
    assert caught.value.reason is Reason.PORT_TAKEN
    assert str(port) in caught.value.summary
    assert server.pid is None
    with server:  # the port is free again
        assert generate(server)
        assert server.base_url.endswith(str(port))


def test_a_port_taken_while_the_model_loads_is_told_of():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        other.close()
        thief = socket.socket()

        def steal(progress):
            if progress.stage is Stage.CHECK:
                with contextlib.suppress(OSError):
                    thief.bind(("127.0.0.1", port))
                    thief.listen()

        with thief, pytest.raises(StartError) as caught:
            TGIServer(config(port=port), on_progress=steal).start()
    assert caught.value.reason is Reason.PORT_TAKEN
    assert str(port) in caught.value.summary


def test_a_stranger_who_answers_at_the_port_is_not_taken_for_the_server():
    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    strangers: list[ThreadingHTTPServer] = []
    with contextlib.ExitStack() as stack:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            port = other.getsockname()[1]

        def come_first(progress):
            if progress.stage is Stage.SHARDS and not strangers:
                strangers.append(ThreadingHTTPServer(("127.0.0.1", port), Stranger))
                threading.Thread(target=strangers[0].serve_forever, daemon=True).start()
                stack.callback(strangers[0].server_close)
                stack.callback(strangers[0].shutdown)

        with pytest.raises(StartError, match=f"Port {port} on 127.0.0.1 is taken by process {os.getpid()} ") as caught:
            TGIServer(config("endless-loading", port=port), on_progress=come_first).start()
    assert caught.value.reason is Reason.PORT_TAKEN


def test_a_launcher_may_drop_the_environment(tmp_path):
    """As a script does that begins anew, or a container's runtime."""
    kept = {name: text for name, text in os.environ.items() if name.startswith(("STANDIN", "PATH", "PYTHON", "HOME"))}
    settings = " ".join(shlex.quote(f"{name}={text}") for name, text in kept.items())
    launcher = tmp_path / "wrapper"
    launcher.write_text(f'#!/bin/sh\nexec env -i {settings} text-generation-launcher "$@"\n')
    launcher.chmod(0o755)
    with TGIServer(config(launcher_path=str(launcher))) as server:
        assert generate(server)


def test_a_launcher_that_does_not_know_our_options_is_said(tmp_path):
    launcher = tmp_path / "old-launcher"
    launcher.write_text("#!/bin/sh\necho \"error: unexpected argument '--payload-limit' found\" >&2\nexit 2\n")
    launcher.chmod(0o755)
    with pytest.raises(StartError) as caught:
        TGIServer(config(launcher_path=str(launcher), payload_limit=5)).start()
    assert (caught.value.reason, caught.value.returncode) == (Reason.INVALID_ARGUMENTS, 2)
    assert "'--payload-limit' found" in caught.value.summary


def test_a_launcher_that_is_no_program_is_said(tmp_path):
    launcher = tmp_path / "broken"
    launcher.write_text("\0no program")
    launcher.chmod(0o755)
    with pytest.raises(StartError) as caught:
        TGIServer(config(launcher_path=str(launcher))).start()
    assert caught.value.reason is Reason.LAUNCHER_NOT_FOUND
    assert str(launcher) in caught.value.summary


def test_after_a_failed_start_the_next_one_works(monkeypatch):
    monkeypatch.setenv("STANDIN_FAULT", "out-of-memory")
    server = TGIServer(config())
    with pytest.raises(StartError):
        server.start()
    monkeypatch.delenv("STANDIN_FAULT")
    with server:
        assert generate(server)


# Ends that nobody asked for


@pytest.mark.parametrize(
    ("who", "number", "reason", "words"),
    [
        ("launcher", signal.SIGKILL, Reason.KILLED, "TGI's launcher was killed by SIGKILL"),
        ("shard", signal.SIGKILL, Reason.KILLED, "A shard was killed by SIGKILL"),
        ("shard", signal.SIGSEGV, Reason.KILLED, "A shard crashed (SIGSEGV"),
        ("router", signal.SIGKILL, Reason.WEBSERVER_FAILED, "The router ended"),
    ],
)
def test_an_end_nobody_asked_for_is_told_of_when_all_is_cleaned_up(who, number, reason, words):
    ends: list[ServerExit] = []
    left: list[Any] = []

    def on_exit(end):
        left.extend(processes_of(server))
        ends.append(end)

    server = TGIServer(config(num_shard=2), on_exit=on_exit)
    server.start()
    router = next(p.pid for p in processes_of(server) if "tests.standin.router" in p.cmdline())
    pid = {"launcher": server.pid, "shard": shards_of(server)[1].pid, "router": router}[who]
    os.kill(pid, number)
    end = server.wait(BOUND)
    await_true(lambda: ends)
    assert end is not None
    assert ends == [end]
    assert (end.reason, end.restart_in, left) == (reason, None, [])
    assert words in end.summary
    assert server.state is State.FAILED
    expect_gone(server)
    server.stop()
    assert state_of(server) is State.STOPPED


def test_a_crash_in_the_middle_of_a_request_is_told_of():
    ends: list[ServerExit] = []
    with TGIServer(config("crash:after=3:times=1"), on_exit=ends.append) as server:
        with pytest.raises((urllib.error.URLError, ConnectionError, OSError)):
            generate(server)
        await_true(lambda: ends)
        assert ends[0].reason is Reason.WEBSERVER_FAILED


def test_it_is_started_again_where_it_was_and_works():
    ends: list[ServerExit] = []
    backoff = Backoff(first_seconds=0.05, max_restarts=3)
    with TGIServer(config(), restart="on-failure", backoff=backoff, on_exit=ends.append) as server:
        url, pid = server.base_url, pid_of(server)
        os.kill(pid, signal.SIGKILL)
        await_true(lambda: ends and server.is_ready)
        assert ends[0].restart_in == 0.05
        assert server.base_url == url
        assert server.pid != pid
        assert generate(server)
    expect_gone(server)


def test_the_words_of_a_request_in_the_log_do_not_hinder_a_restart():
    ends: list[ServerExit] = []
    lines: list[str] = []
    options: dict[str, Any] = {"restart": "on-failure", "backoff": Backoff(first_seconds=0.05)}
    with TGIServer(config("quoted"), on_exit=ends.append, on_log=lines.append, **options) as server:
        generate(server, text="GatedRepoError: gated repo")
        await_true(lambda: any("GatedRepoError" in line for line in lines))
        next(p for p in processes_of(server) if "tests.standin.router" in p.cmdline()).kill()
        await_true(lambda: ends and server.is_ready)
        assert (ends[0].reason, ends[0].restart_in) == (Reason.WEBSERVER_FAILED, 0.05)


def test_200_requests_with_a_crash_in_between(monkeypatch):
    """Each is whole or raises, none is lost, and the next one works, at the same address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    ends: list[ServerExit] = []
    outcomes: list[str | BackendUnavailableError] = []
    restarting: dict[str, Any] = {"restart": "on-failure", "backoff": Backoff(first_seconds=0.05)}
    request = CompletionRequest("Hello", SamplingParams(max_new_tokens=12))
    expected = FakeModel.ANSWER.encode()[:12].decode()

    def read(stream):
        try:
            outcomes.append("".join(event.text for event in list(stream)[:-1]))
        except BackendUnavailableError as error:
            outcomes.append(error)

    with TGIServer(config("slow:seconds=0.02"), on_exit=ends.append, **restarting) as server:
        backend = TGIBackend(server.base_url, max_retries=0, max_concurrency=50)
        threads = [threading.Thread(target=read, args=(backend.stream(request),)) for _ in range(200)]
        for thread in threads:
            thread.start()
        await_true(lambda: len(outcomes) >= 20)
        next(p for p in processes_of(server) if "tests.standin.router" in p.cmdline()).kill()
        for thread in threads:
            thread.join(BOUND)
        await_true(lambda: ends and server.is_ready)
        read(backend.stream(request))
        backend.close()
    close_shared_session()
    assert len(outcomes) == 201
    assert {outcome for outcome in outcomes if isinstance(outcome, str)} == {expected}
    assert sum(isinstance(outcome, str) for outcome in outcomes[:200]) >= 20
    assert any(isinstance(outcome, BackendUnavailableError) for outcome in outcomes)
    assert outcomes[200] == expected


def test_restarts_end_when_they_do_not_help(monkeypatch):
    ends: list[ServerExit] = []
    backoff = Backoff(first_seconds=0.05, factor=2, max_restarts=2)
    server = TGIServer(config(), restart="on-failure", backoff=backoff, on_exit=ends.append)
    server.start()
    monkeypatch.setenv("STANDIN_FAULT", "out-of-memory")
    shards_of(server)[0].kill()
    end = server.wait(BOUND)
    await_true(lambda: len(ends) == 3)
    assert [e.restart_in for e in ends] == [0.05, 0.1, None]
    assert [e.reason for e in ends] == [Reason.KILLED, Reason.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY]
    assert end is ends[-1]
    expect_gone(server)


def test_a_stop_while_it_waits_to_restart_is_obeyed():
    ends: list[ServerExit] = []
    server = TGIServer(config(), restart="on-failure", backoff=Backoff(first_seconds=60), on_exit=ends.append)
    server.start()
    os.kill(pid_of(server), signal.SIGKILL)
    await_true(lambda: ends)
    assert server.state is State.RESTARTING
    server.stop()
    assert state_of(server) is State.STOPPED


def test_a_callback_that_fails_does_no_harm():
    def fail(value):
        raise RuntimeError

    with TGIServer(config(), on_exit=fail, on_progress=fail, on_log=fail) as server:
        assert generate(server)
        os.kill(pid_of(server), signal.SIGKILL)
        assert server.wait(BOUND) is not None


def test_somebody_else_may_stop_the_launcher():
    with TGIServer(config(), restart="on-failure") as server:
        os.kill(pid_of(server), signal.SIGTERM)
        end = server.wait(BOUND)
        assert end is not None
        assert end.reason is Reason.STOPPED


# Ends by force


def test_a_launcher_that_does_not_listen_is_killed_with_its_shards():
    server = TGIServer(config("ignore-sigterm", num_shard=2, stop_timeout=0.5))
    server.start()
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 10
    expect_gone(server)


def test_a_stop_can_be_made_shorter_while_it_lasts():
    server = TGIServer(config("ignore-sigterm", stop_timeout=100))
    server.start()
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    time.sleep(0.2)
    server.begin_stop(0.0)
    stopping.join(10)
    assert not stopping.is_alive()


def test_a_killed_supervisor_leaves_nothing_either():
    ends: list[ServerExit] = []
    server = TGIServer(config(num_shard=2), on_exit=ends.append)
    server.start()
    process_of(server)._process.kill()
    await_true(lambda: ends)
    expect_gone(server)
    assert (ends[0].reason, "process that watches over TGI was killed" in ends[0].summary) == (Reason.KILLED, True)


def test_a_supervisor_that_hangs_is_got_rid_of(monkeypatch):
    monkeypatch.setattr(process, "_MARGIN_SECONDS", 0.5)
    server = TGIServer(config(num_shard=2))
    server.start()
    os.kill(process_of(server)._process.pid, signal.SIGSTOP)
    began = time.monotonic()
    server.stop(0.5)
    assert time.monotonic() - began < BOUND
    expect_gone(server)


def test_what_does_not_end_is_told_of(monkeypatch):
    server = TGIServer(config())
    server.start()
    real = process_of(server).stop
    monkeypatch.setattr(
        process_of(server), "stop", lambda seconds: (real(seconds), process.ProcessExit(None, True, (4242,)))[1]
    )
    process_of(server)._exit = None
    with pytest.raises(StopError, match="4242"):
        server.stop()


# Ends of our own process

SCRIPT = """
import os, sys, time
from tgi_launcher import TGIConfig, TGIServer
server = TGIServer(TGIConfig(model_id="fake", num_shard=2, graceful_termination_timeout=2))
server.start()
print(server.base_url, flush=True)
{rest}
"""


def run_script(rest, script=SCRIPT):
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", script.format(rest=rest)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith("http")
    return child


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_our_process_is_killed(number):
    with run_script("time.sleep(60)") as child:
        assert len(marked(os.environ["STANDIN_TEST"])) >= 6
        child.send_signal(number)
        child.wait(BOUND)
    assert await_none(lambda: marked(os.environ["STANDIN_TEST"]), seconds=10) == []


KILL_BOTH = """
print(server._run.process._process.pid, server._run.plan.folder.path, flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def killed_with_its_supervisor(script=SCRIPT):
    """The folder of a server whose owner and whose supervisor were both killed."""
    with run_script(KILL_BOTH, script) as child:
        assert child.stdout is not None
        pid, folder = child.stdout.readline().split()
        child.send_signal(signal.SIGSTOP)  # so that neither sees the other's end
        os.kill(int(pid), signal.SIGKILL)
        child.kill()
        child.wait(BOUND)
    yield Path(folder)


def test_nothing_runs_on_when_our_process_and_the_supervisor_are_killed_together():
    """The launcher ends it all, though nobody reads what it prints."""
    with killed_with_its_supervisor():
        assert await_none(lambda: marked(os.environ["STANDIN_TEST"]), seconds=10) == []


def test_nothing_runs_on_when_both_are_killed_while_the_model_loads(monkeypatch):
    monkeypatch.setenv("STANDIN_FAULT", "endless-loading")
    loading = """
import threading
threading.Thread(target=server.start, daemon=True).start()
while "Starting shard" not in str(server.log_tail()):
    time.sleep(0.02)
print("http", flush=True)
"""
    script = SCRIPT.replace("server.start()\nprint(server.base_url, flush=True)", loading)
    with killed_with_its_supervisor(script):
        assert await_none(lambda: marked(os.environ["STANDIN_TEST"]), seconds=10) == []


def cleanup():
    command = [*CLI[:3], "cleanup"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def temporary(monkeypatch):
    """A temporary folder of the test's own, near enough to the root for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_cleanup_ends_what_is_left_and_nothing_else(monkeypatch, temporary):
    with TGIServer(config()) as server:
        own = folder_of(server).path
        assert own.is_relative_to(temporary)
        assert str(own) not in cleanup()
        monkeypatch.setenv("STANDIN_FAULT", "ignore-sigterm")
        with killed_with_its_supervisor() as folder:
            assert len(marked(os.environ["STANDIN_TEST"])) > len(processes_of(server)) + 3
            (folder / "work/out/more").mkdir()
            # From a shell with another temporary folder.
            monkeypatch.setenv("TMPDIR", "/tmp")  # noqa: S108
            said = cleanup()
        pattern = rf"^A killed server: ended \d+ \([^)]+\), \d+ \(.*\); removed {folder}\.$"
        assert re.search(pattern, said, re.MULTILINE), said
        assert re.search(r"In use, and left alone: \d+ servers?\.$", said), said
        assert not folder.exists()
        assert {pid for pid, _ in marked(os.environ["STANDIN_TEST"])} == {p.pid for p in processes_of(server)}
        assert generate(server)
        # A server is in use while its supervisor lives, also where somebody has removed its folder.
        shutil.rmtree(own)
        assert str(own) not in cleanup()
        assert generate(server)


@pytest.mark.usefixtures("temporary")
def test_cleanup_removes_containers_that_are_not_in_use(monkeypatch, docker):
    left = make_server_folder()
    left.lock.release()
    used = make_server_folder()
    monkeypatch.setenv("STANDIN_DOCKER_PS", f"one\t{left.path}\ntwo\t{used.path}\nthree\t/of/another/machine\n")
    said = cleanup()
    used.lock.release()
    assert f"A killed server: removed container one; removed {left.path}.\n" in said
    assert used.path.exists()
    assert [call["arguments"] for call in docker() if call["arguments"][0] == "rm"] == [["rm", "-f", "one"]]


def test_nothing_is_left_when_our_process_ends_without_a_stop():
    with run_script("") as child:
        assert child.wait(BOUND) == 0
        assert marked(os.environ["STANDIN_TEST"]) == [], "it was stopped before the process ended"


def test_a_fork_neither_stops_the_server_nor_keeps_it_alive():
    rest = """
if os.fork() == 0:
    sys.exit()          # a child that ends as a script does
time.sleep(0.2)
print(server.info().model_id, flush=True)
fork = os.fork()
if fork == 0:
    import signal
    signal.alarm(20)    # far less than a stop may take
    server.begin_stop()
    server.stop()
    server.wait()
    os._exit(7 if server.is_ready else 1)
print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), server.info().model_id, flush=True)
if os.fork() == 0:
    time.sleep(15)      # a child that outlives us
    os._exit(0)
os._exit(0)
"""
    with run_script(rest) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "fake"
        assert child.stdout.readline().strip() == "7 fake"
        child.wait(BOUND)
        await_true(lambda: len(marked(os.environ["STANDIN_TEST"])) <= 1, seconds=10)
        for pid, _ in marked(os.environ["STANDIN_TEST"]):
            os.kill(pid, signal.SIGKILL)


# tgi-launch

CLI = [sys.executable, "-c", "from tgi_launcher.cli import main; main()", "fake", "--graceful-termination-timeout", "2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tgi_launch_ends_all_it_started(number):
    # The second as `nohup` starts it.
    prefix = ["nohup"] if number is signal.SIGTERM else []
    with subprocess.Popen([*prefix, *CLI, "--speculate", "3"], stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        lines = []
        for line in child.stdout or ():
            lines.append(line)
            if line.startswith("  fake"):
                break
        if prefix:
            child.send_signal(signal.SIGHUP)
            time.sleep(0.3)
            assert child.poll() is None
        child.send_signal(number)
        assert child.wait(BOUND) == 0
        assert marked(os.environ["STANDIN_TEST"]) == []
    text = "".join(lines)
    assert "… loading the model" in text
    assert "Ready: http://127.0.0.1:" in text


@pytest.mark.parametrize("is_alone", [False, True])
def test_tgi_launch_does_not_outlive_its_shell(is_alone):
    shell = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", 'echo $$; "$@" & wait', "sh", *CLI],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under `nohup`, as the tests may run, it is to outlive its shell.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    with shell:
        for line in shell.stdout or ():
            if line.startswith("Ready"):
                break
        # The shell alone, or with tgi-launch, as a terminal that goes away without a word.
        if is_alone:
            shell.kill()
        else:
            os.killpg(shell.pid, signal.SIGKILL)
    assert await_none(lambda: marked(os.environ["STANDIN_TEST"]), seconds=10) == []


def test_tgi_launch_can_be_interrupted_while_it_starts_and_made_to_hurry():
    environ = {**os.environ, "STANDIN_FAULT": "ignore-sigterm,endless-loading"}
    with subprocess.Popen(CLI, stdout=subprocess.PIPE, text=True, env=environ) as child:  # noqa: S603
        for line in child.stdout or ():
            if "loading the model" in line:
                break
        child.send_signal(signal.SIGINT)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 130
        assert marked(os.environ["STANDIN_TEST"]) == []


def test_tgi_launch_tells_why_it_failed():
    environ = {**os.environ, "STANDIN_FAULT": "out-of-memory"}
    done = subprocess.run(CLI, capture_output=True, text=True, env=environ, timeout=BOUND, check=False)  # noqa: S603
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: The GPU's memory does not hold fake")
    assert "Traceback" not in re.sub(r"\| +Traceback", "", done.stderr)
    assert "standard error output: torch.OutOfMemoryError: CUDA out of memory." in done.stdout
    assert "… looking for the weights\n… loading the model\n" in done.stdout
    assert "downloading" not in done.stdout
    shown = (done.stdout + done.stderr).splitlines()
    assert len([line for line in shown if "ERROR" in line and "complete standard error output" in line]) == 1
    assert "  | Error: ShardCannotStart" in shown, "what was not shown while it ran is shown at the end"
    done = subprocess.run([*CLI, "--logs"], capture_output=True, text=True, env=environ, timeout=BOUND, check=False)  # noqa: S603
    assert done.stderr.count("\n") == 1
    assert done.stdout.count("Error: ShardCannotStart") == 1


def test_tgi_launch_shows_what_was_logged_when_its_router_dies():
    with subprocess.Popen(CLI, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        for line in child.stdout or ():
            if line.startswith("  fake"):
                break
        for pid, line in marked(os.environ["STANDIN_TEST"]):
            if "tests.standin.router" in line:
                os.kill(pid, signal.SIGKILL)
        text = child.stdout.read() if child.stdout else ""
        assert child.wait(BOUND) == 1
    assert "  | Error: WebserverFailed\n" in text
    assert text.splitlines()[-1] == "error: The router ended (WebserverFailed); --logs shows more of the log."


def test_tgi_launch_ends_where_nobody_reads_what_it_prints():
    with subprocess.Popen(CLI, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:  # noqa: S603
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        said = child.stderr.read()
        assert child.wait(BOUND) == 1
        assert marked(os.environ["STANDIN_TEST"]) == []
    assert said.startswith("error: Nobody reads standard output any more, so the server was stopped.")
    assert said.count("\n") == 1


# Secrets


def test_the_key_reaches_no_log(caplog, capfd, monkeypatch):
    caplog.set_level("DEBUG", logger="tgi_launcher")
    lines: list[str] = []
    monkeypatch.setenv("API_KEY", "a-stray-key")
    server = TGIServer(config("debug-key", api_key=KEY, log_level="debug"), on_log=lines.append)
    server.start()
    assert generate(server)
    arguments = [" ".join(p.cmdline()) for p in processes_of(server)]
    os.kill(pid_of(server), signal.SIGKILL)
    end = server.wait(BOUND)
    assert end is not None
    server.stop()
    seen = [
        *lines,
        *arguments,
        *end.log_tail,
        *server.log_tail(1000),
        caplog.text,
        *capfd.readouterr(),
        repr(server),
        str(end),
    ]
    assert "Bearer ***" in "".join(lines)
    assert not [text for text in seen if KEY in text or "a-stray-key" in text]


def test_a_failed_start_does_not_show_the_key():
    with pytest.raises(StartError) as caught:
        TGIServer(config("debug-key,out-of-memory", api_key=KEY)).start()
    assert "***" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_key_that_a_traceback_cuts_in_two_is_masked(is_plain):
    key = "".join(f"{i:03}k" for i in range(40))
    lines: list[str] = []
    env = {"STANDIN_FAULT": "boxed-key", **({} if is_plain else {"_TYPER_STANDARD_TRACEBACK": ""})}
    with pytest.raises(StartError) as caught:
        TGIServer(config(api_key=key, env=env), on_log=lines.append).start()
    seen = "".join([*lines, str(caught.value)])
    assert ("│" in seen) is not is_plain
    assert not [i for i in range(len(key) - 8) if key[i : i + 8] in seen]
    if is_plain:
        assert caught.value.summary.endswith("ValueError: *** is no key.")


# Speculation as it is


def test_speculation_is_measured():
    with TGIServer(config(speculate=3)) as server:
        generate(server)
        before = server.metrics()
        text = generate(server)
        report = server.speculation(before)
        # The stand-in's answer has a token per byte and one for its end; all drafts are right.
        num_tokens = len(text.encode()) + 1
        assert (report.num_tokens, report.num_requests) == (num_tokens, 1)
        assert report.num_decode_passes == -(-(num_tokens - 1) // 4)
        assert report.tokens_per_step == (num_tokens - 1) / report.num_decode_passes
        assert report.is_active


def test_speculation_that_does_nothing_is_warned_of_once():
    with TGIServer(config("no-flash", speculate=4)) as server:
        for _ in range(4):
            generate(server)
        with pytest.warns(SpeculationInactiveWarning, match="^fake: 4 tokens are to be drafted"):
            server.speculation()
        assert not server.speculation().is_active


WATCHED = """
import sys, threading, urllib.request
from tgi_launcher import TGIConfig, TGIServer, server as module
module._WATCH_SECONDS = 0.1
if __name__ == "__main__":
    config = TGIConfig(model_id="fake", speculate=4, graceful_termination_timeout=2, env={"STANDIN_FAULT": "no-flash"})
    with TGIServer(config) as server:
        for _ in range(4):
            body = b'{"inputs": "Hello", "parameters": {"max_new_tokens": 30}}'
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(server.base_url + "/generate", body, headers)
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).read()
        threading.Event().wait(1.5)
        print(server.state.value)
"""


@pytest.mark.parametrize("options", [[], ["-W", "error"]])
def test_who_never_asks_is_told_on_standard_error_that_speculation_does_nothing(options):
    command = [sys.executable, *options, "-c", WATCHED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert (done.returncode, done.stdout.strip()) == (0, "ready"), done.stderr
    # As an error it would end the watching, and is left for a call of `speculation`.
    assert done.stderr.count("SpeculationInactiveWarning: fake: 4 tokens") == (0 if options else 1)


def test_tgi_launch_says_once_that_speculation_does_nothing(tmp_path):
    environ = {**os.environ, "STANDIN_FAULT": "no-flash"}
    command = [*CLI, "--speculate", "4"]
    with (tmp_path / "out").open("w") as out:
        launch = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environ)  # noqa: S603
    try:
        await_true(lambda: "Ready: http" in (tmp_path / "out").read_text())
        url = re.findall(r"Ready: (\S+)", (tmp_path / "out").read_text())[0]
        for _ in range(4):
            body = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 30}}).encode()
            request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})  # noqa: S310
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).read()
        await_true(lambda: "warning: 4 tokens" in (tmp_path / "out").read_text())
    finally:
        launch.send_signal(signal.SIGTERM)
        launch.wait(BOUND)
    said = (tmp_path / "out").read_text()
    assert said.count("4 tokens are to be drafted") == 1
    # The stand-in warns of what means nothing, as TGI does.
    assert "WARN" not in said


# Docker


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A stand-in for Docker's client on PATH; returns a function that reads how it was called."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    return put_docker_on_path(monkeypatch, tmp_path)


def test_a_container_is_run_and_removed(docker):
    with TGIServer(config(runtime="docker", api_key=KEY, port=None)) as server:
        assert generate(server)
        name = docker()[0]["arguments"][3]
    (run, *others) = docker()
    assert run["env"] == {"API_KEY": KEY, "HF_TOKEN": "hf_of_the_environment"}
    assert KEY not in str(run["arguments"])
    assert "hf_of_the_environment" not in str(run["arguments"])
    assert [call["arguments"][0] for call in others] == ["stop", "rm"]
    assert [call["arguments"][-1] for call in others] == [name, name]


def test_a_container_goes_with_our_process(docker):
    rest = "os.kill(os.getpid(), 9)"
    script = SCRIPT.replace("num_shard=2", "runtime='docker'")
    with subprocess.Popen([sys.executable, "-c", script.format(rest=rest)], stdout=subprocess.PIPE) as child:  # noqa: S603
        child.wait(BOUND)
    await_true(lambda: [call["arguments"][0] for call in docker()] == ["run", "stop", "rm"], seconds=10)


def test_what_docker_says_is_told(docker, monkeypatch):
    monkeypatch.setenv(
        "STANDIN_DOCKER_FAIL", "Cannot connect to the Docker daemon at unix:///x.sock. Is the docker daemon running?"
    )
    with pytest.raises(StartError) as caught:
        TGIServer(config(runtime="docker")).start()
    assert (caught.value.reason, caught.value.returncode) == (Reason.DOCKER_FAILED, 125)
    assert "not running" in caught.value.summary


# The page about it

PAGE = Path(__file__).resolve().parents[2] / "docs/tgi-launcher.md"
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```)?", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=lambda text: str(len(text)))
def test_examples_of_the_page_run(code, output, capsys):
    model = "mistralai/Mistral-7B-Instruct-v0.3"
    assert model in code
    exec(compile(code.replace(model, "fake"), str(PAGE), "exec"), {"__name__": "__main__"})  # noqa: S102  # our own
    printed = capsys.readouterr().out
    assert printed
    assert not output or printed == output


def test_the_page_names_every_reason():
    assert set(re.findall(r"`([A-Z_]{4,})`", PAGE.read_text("utf-8"))) >= {reason.name for reason in Reason}


# With a model


@pytest.mark.embedded
def test_the_stand_in_serves_real_tokens():
    with TGIServer(TGIConfig(model_id="embedded", speculate=3, graceful_termination_timeout=2)) as server:
        assert generate(server, timeout=60).strip()
        assert server.speculation().num_tokens > 5
