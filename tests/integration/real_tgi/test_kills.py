"""Processes of a real TGI that are killed: errors say what happened, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import suppress

import psutil
import pytest

from langchain_specdec import SpeculativeLLM
from langchain_specdec.errors import SpecDecError
from tests.support.real_tgi import MARKS, in_time, processes_with, real_config
from tgi_launcher import State, TGIServer

pytestmark = MARKS

VARIABLE = "REAL_TGI_TEST"
SCRIPT = """
import sys, time
from tests.support.real_tgi import real_config
from tgi_launcher import TGIServer
server = TGIServer(real_config(speculate=3)).start()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def mark(monkeypatch, servers):
    """What all processes of the test carry; none of them is left at its end."""
    servers.close()
    mark = uuid.uuid4().hex
    monkeypatch.setenv(VARIABLE, mark)
    yield mark
    try:
        in_time(lambda: not processes_with(VARIABLE, mark), "nothing is left", seconds=60)
    finally:
        for process in processes_with(VARIABLE, mark):
            process.kill()


# The end of a word that only this part has on its command line.
PARTS = {"shard": "--uds-path", "router": "--master-shard-uds-path", "supervisor": "tgi_launcher/supervisor.py"}


def pid_of(part, mark):
    """Of the first process of the part; it may have started others."""
    found = []
    for process in processes_with(VARIABLE, mark):
        with suppress(psutil.Error):
            if any(word.endswith(PARTS[part]) for word in process.cmdline()):
                found.append((process.create_time(), process.pid))
    return min(found)[1]


@pytest.mark.parametrize("part", ["launcher", *PARTS])
def test_a_killed_part_takes_all_others_with_it_and_is_told_of(mark, part):
    server = TGIServer(real_config(speculate=3))
    with server, SpeculativeLLM.from_tgi(server.base_url, max_retries=0) as llm:
        outcomes: list[object] = []

        def read():
            try:
                outcomes.extend(llm.stream("Once upon a time", max_new_tokens=1000, temperature=1.0))
            except SpecDecError as error:
                outcomes.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        in_time(lambda: outcomes, "the answer begins")
        pid = server.pid if part == "launcher" else pid_of(part, mark)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        end = server.wait(90)
        assert end is not None, "its end was not noticed"
        assert end.summary.endswith(".")
        assert server.state is State.FAILED
        reader.join(30)
        assert not reader.is_alive()
        assert isinstance(outcomes[-1], SpecDecError), "the answer was cut without an error"
        with pytest.raises(SpecDecError):
            llm.invoke("Hello")


@pytest.mark.parametrize("with_supervisor", [False, True])
def test_nothing_is_left_when_our_process_is_killed(mark, with_supervisor):
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert len(processes_with(VARIABLE, mark)) >= 4, "our process, the launcher, a shard, the router"
        victims = [child.pid]
        if with_supervisor:
            victims.append(pid_of("supervisor", mark))
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        child.wait(30)
