"""What is typed while an answer comes is not echoed into it, and the terminal is given back as it was."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pytest

from langchain_specdec.cli.quiet_keyboard import quiet_keyboard
from langchain_specdec.errors import GenerationError


class Keyboard:
    """A terminal's two ends."""

    def __init__(self) -> None:
        self._keys, self.descriptor = pty.openpty()

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.descriptor)

    def echoes(self) -> bool:
        return bool(self.modes()[3] & termios.ECHO)

    def type(self, keys: str) -> None:
        os.write(self._keys, keys.encode())
        # The system takes them in, and echoes them or not, a moment later.
        assert not keys.endswith("\n") or select.select([self.descriptor], [], [], 10)[0]

    def echo(self) -> bytes:
        return os.read(self._keys, 1024) if select.select([self._keys], [], [], 0)[0] else b""

    def close(self) -> None:
        os.close(self._keys)


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keyboard]:
    """A terminal that is standard input."""
    made = Keyboard()
    with os.fdopen(made.descriptor, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield made
        monkeypatch.undo()
    made.close()


def test_nothing_is_echoed_and_what_was_typed_is_there_to_be_read(keyboard: Keyboard) -> None:
    before = keyboard.modes()
    with quiet_keyboard():
        assert keyboard.modes()[3] & termios.ISIG, "Ctrl-C and Ctrl-Z work"
        keyboard.type("next\n")
        assert sys.stdin.readline() == "next\n"
        keyboard.type("ahead\n")
    assert keyboard.echo() == b""
    assert keyboard.modes() == before
    assert sys.stdin.readline() == "ahead\n"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, GenerationError("no")])
def test_an_answer_that_ends_early_gives_it_back(keyboard: Keyboard, raised: Any) -> None:
    before = keyboard.modes()
    with pytest.raises((KeyboardInterrupt, GenerationError)), quiet_keyboard():
        raise raised
    assert keyboard.modes() == before


def test_sigterm_gives_it_back(keyboard: Keyboard) -> None:
    before, handler = keyboard.modes(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, quiet_keyboard():
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 128 + signal.SIGTERM
    assert keyboard.modes() == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_ctrl_z_gives_it_back_until_the_program_goes_on(keyboard: Keyboard, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, Any]] = []

    def stop(number: int) -> None:
        seen.append((keyboard.echoes(), signal.getsignal(number)))

    before = keyboard.modes()
    with quiet_keyboard():
        suspend = signal.getsignal(signal.SIGTSTP)
        monkeypatch.setattr(signal, "raise_signal", stop)
        for _ in range(2):
            assert callable(suspend)
            suspend(signal.SIGTSTP, None)
            assert not keyboard.echoes()
            assert signal.getsignal(signal.SIGTSTP) is suspend
    assert seen == [(True, signal.SIG_DFL)] * 2
    assert keyboard.modes() == before
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL


def test_a_program_in_the_background_leaves_the_terminal_to_others(
    keyboard: Keyboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    with quiet_keyboard():
        assert keyboard.echoes()


@pytest.mark.parametrize("stdin", [None, io.StringIO("x\n")], ids=["closed", "pipe"])
def test_without_a_terminal_nothing_is_done(monkeypatch: pytest.MonkeyPatch, stdin: Any) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    handler = signal.getsignal(signal.SIGTSTP)
    with quiet_keyboard():
        assert signal.getsignal(signal.SIGTSTP) is handler


def test_a_chat_is_quiet_while_it_answers(keyboard: Keyboard, monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain_specdec.cli.chat import _take_turn
    from langchain_specdec.cli.chat_talk import Talk

    echoes: list[bool] = []
    monkeypatch.setattr(Talk, "ask", lambda *_: echoes.append(keyboard.echoes()))

    class Reader:
        is_dialogue = True
        note = ""

        def read(self) -> str:
            echoes.append(keyboard.echoes())
            return "hello"

    _take_turn(Talk.__new__(Talk), Reader())
    assert echoes == [True, False]
    assert keyboard.echoes()
