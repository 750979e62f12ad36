"""Programs that end or fork while an engine runs: no child hangs or ends what is its parent's; nothing is printed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

MODEL = """
import atexit, os, sys, threading, time
from tests.support.backends import engine_of, make_llm
llm = make_llm(max_new_tokens=200, ignore_eos=True)
"""


def run(code: str, first: str = "") -> str:
    """What a program prints that ends by itself, and well."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", first + MODEL + code],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


# A fork while another thread holds every lock that there is.
HELD = """
pieces = llm.stream("hello"); next(pieces)
engine = engine_of(llm)
stream = llm.backend.engine.submit([1], llm._sampling_params(None, {}))
is_held, may_go = threading.Event(), threading.Event()

def hold():
    with engine._inbox.lock, engine._thread_lock, stream._lock:
        is_held.set()
        may_go.wait(60)

def forked(child):
    is_held.clear(), may_go.clear()
    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)
    may_go.set()
    holder.join()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    return "hangs"

def refused(action):
    try:
        action()
    except Exception as error:
        assert "process" in str(error), error
    else:
        raise AssertionError("not refused")
"""

CHILDREN = {
    "exit": "lambda: None",
    "close": "lambda: (stream.close(), pieces.close(), llm.close())",
    "forget": "lambda: globals().update(llm=None, engine=None, stream=None, pieces=None)",
    "use": "lambda: [refused(lambda: llm.invoke('x')), refused(engine.reset), refused(lambda: next(stream))]",
}


@needs_fork
def test_a_forked_child_ends_whatever_its_parent_held() -> None:
    lines = [f"print({name!r}, [forked({child}) for _ in range(2)])" for name, child in CHILDREN.items()]
    code = """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=refused, args=[lambda: llm.invoke("x")])
process.start()
process.join(30)
print(process.exitcode, len(llm.invoke("hello", max_new_tokens=3)) > 0)
"""
    assert run(HELD + "\n".join(lines) + code).splitlines() == [*(f"{name} [0, 0]" for name in CHILDREN), "0 True"]


# The end of the program

READERS = {
    "stream": "for _ in llm.stream('hello'): pass",
    "invoke": "while True: llm.invoke('hello')",
    "batch": "while True: llm.batch(['hello', 'abc'], return_exceptions=True)",
    "astream": """
    import asyncio
    async def read():
        while True:
            async for _ in llm.astream('hello'): pass
    asyncio.run(read())""",
}


def test_a_program_that_ends_while_daemons_read_prints_nothing() -> None:
    readers = [f"def read{number}():\n    {code}\n" for number, code in enumerate(READERS.values())]
    code = f"""
for read in {", ".join(f"read{number}" for number in range(len(readers)))}:
    threading.Thread(target=read, daemon=True).start()
while engine_of(llm).num_running < 4:
    time.sleep(0.001)
print("leaving")
"""
    assert run("".join(readers) + code) == "leaving"


def test_a_completion_asked_for_at_the_end_is_told_why_there_is_none() -> None:
    # What is registered first is called last: after the end of the engine.
    first = """
import atexit
atexit.register(lambda: ask(llm))
def ask(model):
    try:
        print(len(model.invoke("hello", max_new_tokens=3)) > 0)
    except Exception as error:
        print(type(error).__name__, error)
"""
    code = "llm.invoke('hello', max_new_tokens=3)\natexit.register(ask, llm)\n"
    before, after = run(code, first).splitlines()
    assert before == "True"
    assert after.startswith("EngineClosedError Python is shutting down")
