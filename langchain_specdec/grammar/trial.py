"""Grammars are tried out in a process that can be ended, before they are prepared in this one.

What prepares them stops at limits of its own where it can, but a text of a few kilobytes still takes it minutes and
gigabytes: many optional parts in a row, or numbers that are multiples of several. A thread cannot be ended, and memory
that is not there ends the whole process.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

from langchain_specdec.errors import GenerationError, InvalidParameterError
from langchain_specdec.grammar.cancellation import check_wanted
from langchain_specdec.grammar.grammar import Grammar

# Memory that a grammar may take to prepare, and how much of it may be kept.
_MEMORY = 512 << 20
_KEPT = 32 << 20
# Characters that it may have, with what else is made of it.
_MAX_TEXT = 32 << 20
_PROGRAM = Path(__file__).with_name("trial_process.py")
# By the file's folder Python would find modules of this package under names of others; by the current one, anybody's.
_START = "import sys; sys.path[:] = sys.argv[4:]; import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
# It ends by its processor time, so that a busy machine refuses nothing else. It is waited for so many times as long.
_PATIENCE = 10
_START_SECONDS = 60.0
# Grammars that are tried at a time.
_AT_ONCE = 2
# How often one that waits looks whether anybody waits for it.
_LOOK_SECONDS = 0.1


def make_trial(seconds: int | None) -> GrammarTrial | None:
    """What tries grammars out; None where there is no limit, and on Windows, which has none for a process."""
    return None if seconds is None or sys.platform == "win32" else GrammarTrial(seconds)


class GrammarTrial:
    """Tries grammars out, a few at a time. May be used from any thread.

    Args:
        seconds: Processor time that one may take.
    """

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(_AT_ONCE)
        self._finalizer = weakref.finalize(self, _end_all, self._idle)

    def check(self, grammar: Grammar, sources: Iterable[Sequence[str]]) -> bool:
        """Whether a grammar is small enough to be kept; those that the grammar library refuses are left to it.

        Args:
            grammar: The grammar, for the message.
            sources: In llguidance's words, the grammar and what else is made of it. There may be several ways to make
                a thing: the first that can be prepared is taken.

        Raises:
            InvalidParameterError: It takes too long, or too much memory.
            GenerationError: No process can be started.
            CancelledError: Nobody waits for it any more.
        """
        texts: list[str] = []
        for ways in sources:
            texts.append(json.dumps(ways))
            if sum(map(len, texts)) > _MAX_TEXT:
                raise self.refusal(grammar)
        line = f"[{','.join(texts)}]\n".encode()
        while not self._turns.acquire(timeout=_LOOK_SECONDS):
            check_wanted()
        try:
            size = self._tried(line)
        finally:
            self._turns.release()
        if size is None:
            raise self.refusal(grammar)
        return size <= _KEPT

    def refusal(self, grammar: Grammar) -> InvalidParameterError:
        """The error of a grammar that takes too long."""
        msg = (
            f"The {grammar.kind} takes more than {self.seconds} seconds or {_MEMORY >> 20} MB to prepare. Give a "
            f"smaller one: with fewer optional or repeated parts, or without multipleOf."
        )
        return InvalidParameterError(msg)

    def _tried(self, line: bytes) -> int | None:
        """The bytes that some grammars take; None where they take too much, or too long."""
        process = self._process()
        size = None
        try:
            answer = self._answer(process, line, _PATIENCE * self.seconds)
            size = int(answer) if answer else None
        finally:
            # What is large leaves a process that the next may not fit in.
            if size is not None and size <= _KEPT:
                with self._lock:
                    self._idle.append(process)
            else:
                _end(process)
        return size

    def _process(self) -> subprocess.Popen[bytes]:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return self._started()
            if process.poll() is None:
                return process
            # Something else has ended it, which is no grammar's fault.
            _end(process)

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _START, str(_PROGRAM), str(self.seconds), str(_MEMORY), *sys.path]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        msg = (
            "The process that tries grammars out cannot be started: there may be too many others, or too little memory."
        )
        try:
            # In a session of its own, so that Ctrl-C is for the server alone.
            process: subprocess.Popen[bytes] = subprocess.Popen(command, bufsize=0, start_new_session=True, **pipes)  # type: ignore[call-overload]  # noqa: S603
        except OSError as error:
            raise GenerationError(msg) from error
        is_ready = False
        try:
            # Python's own start is not part of the time.
            is_ready = bool(self._answer(process, b"[]\n", _START_SECONDS))
        finally:
            if not is_ready:
                _end(process)
        if not is_ready:
            raise GenerationError(msg)
        return process

    def _answer(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes:
        """What the process says; nothing where it has ended, or takes too long. Raises where nobody waits for it."""
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - they are pipes
        until = time.monotonic() + seconds
        answer = b""
        with contextlib.suppress(OSError), selectors.DefaultSelector() as selector:
            while line:
                line = line[process.stdin.write(line) or 0 :]
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if selector.select(_LOOK_SECONDS):
                    answer += (piece := process.stdout.read(64) or b"")
                    if not piece:
                        return b""
                    continue
                check_wanted()
                if time.monotonic() > until:
                    return b""
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _end_all(processes: list[subprocess.Popen[bytes]]) -> None:
    while processes:
        _end(processes.pop())
