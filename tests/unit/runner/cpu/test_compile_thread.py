"""A program that ends while layers are compiled ends at once, with its own exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from langchain_specdec.runner.cpu.compile_thread import CompileThread
from langchain_specdec.runner.cpu.compiled_layers import can_compile
from tests.support.tiny_models import tiny_model

_OBSTACLE = can_compile(tiny_model())

# Compilers are asked for their version, and build what our kernels need; what torch compiles is never done.
COMPILER = """#!/bin/sh
case "$*" in
    *inductor*) for path; do [ "$last" = -o ] && echo half > "$path" && echo "$path" > "$PIDS.output"; last=$path; done
        echo $$ >> "$PIDS"; sleep 600 & echo $! >> "$PIDS"; wait;;
    *) exec g++ "$@";;
esac
"""
PROGRAM = """
import atexit, sys, threading
atexit.register(lambda: print("threads:", [t.name for t in threading.enumerate() if "compile" in t.name]))
from pathlib import Path
from langchain_specdec import LocalBackend, SamplingParams
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.models import make_runner
from tests.support.tiny_models import byte_tokenizer, tiny_model, wait_until

tiny_model().save_pretrained(sys.argv[1])
byte_tokenizer().save_pretrained(sys.argv[1])
make_runner.native_library = lambda: None  # for that one's models nothing is compiled by PyTorch
backend = LocalBackend(sys.argv[1], compile="reduce-overhead", max_length=64)
backend.complete([CompletionRequest("hello", SamplingParams(max_new_tokens=4, ignore_eos=True))])
pids = Path(sys.argv[2])
assert wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, seconds=300)
print("graphs:", backend.engine.runner.compiled.graphs)
sys.exit(7)
"""

ENDS = """
import threading
from langchain_specdec.engine.inbox import Inbox, keep_until_exit
from langchain_specdec.runner.cpu.compile_thread import CompileThread

class Compiles(CompileThread):
    def end(self):
        print("compiler")

inbox, compiler = Inbox(), Compiles(lambda: None, lambda: None)
engine = threading.Thread(target=lambda: (inbox.wait(), print("engine")), daemon=True)
engine.start()
keep_until_exit(engine, inbox)
"""


@pytest.mark.process
def test_engines_end_before_what_compiles_for_them_whatever_was_imported_first() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=True, timeout=120)  # noqa: S603
    assert done.stdout.split()[:2] == ["engine", "compiler"], done.stderr


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


@pytest.mark.process
@pytest.mark.compiles
@pytest.mark.skipif(_OBSTACLE is not None or sys.platform != "linux", reason=f"nothing is compiled here: {_OBSTACLE}")
def test_a_program_does_not_wait_for_its_compiler(tmp_path: Path) -> None:
    compiler, pids = tmp_path / "compiler", tmp_path / "pids"
    compiler.write_text(COMPILER)
    compiler.chmod(0o700)
    env = {"CXX": str(compiler), "PIDS": str(pids), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), str(pids)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert (done.returncode, done.stdout.splitlines()) == (7, ["graphs: {}", "threads: []"]), done.stderr
    assert "off from now on" not in done.stderr
    assert "Traceback" not in done.stderr
    output = Path((tmp_path / "pids.output").read_text(encoding="utf-8").strip())
    assert output.parent.is_dir()
    assert not output.exists(), "half a library is left for the next program"
    started = [int(pid) for pid in pids.read_text().split()]
    assert started
    assert not any(map(is_running, started))


def test_an_action_that_goes_on_in_spite_of_it_is_stopped_again() -> None:
    started, stopped, caught = threading.Event(), threading.Event(), []

    def stubborn() -> None:
        for _ in range(3):
            try:
                started.set()
                while True:
                    pass
            except BaseException as error:  # noqa: PERF203
                caught.append(type(error))

    thread = CompileThread(stubborn, stopped.set)
    thread.start()
    assert started.wait(20.0)
    thread.end()
    assert not thread.is_alive()
    assert stopped.is_set()
    assert caught == [SystemExit] * 3


def test_a_finalizer_that_is_interrupted_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    started = threading.Event()

    class Endless:
        def __del__(self) -> None:
            started.set()
            while True:
                pass

    def end_one() -> None:
        Endless()

    thread = CompileThread(end_one, lambda: None)
    thread.start()
    assert started.wait(20.0)
    thread.end()
    assert not thread.is_alive()
    assert reported == []
