"""How messages are typed to `specdec chat`: keys on a piped editor, and what stands in for it."""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from langchain_specdec.cli import chat_input
from langchain_specdec.cli.chat_input import EditorReader, LineReader, PipeReader, make_editor, make_reader
from tgi_launcher.extras import install_command

COMMANDS = ["/help", "/reset", "/retry", "/save"]


@pytest.fixture
def keyboard() -> Iterator[Any]:
    """Keys that are pressed, and the reader that gets them."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys, EditorReader(make_editor(COMMANDS, input=keys, output=DummyOutput()))


def paste(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello\r", "hello"),
        (paste("one\ntwo\r\nthree\n") + "\r", "one\ntwo\nthree\n"),
        ("see: " + paste("/reset\nx") + "\r", "see: /reset\nx"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("a\\b\r", "a\\b"),
        ("half\x03whole\r", "whole"),
        (paste("one\ntwo") + "\x03whole\r", "whole"),
        ("/res\t\r", "/reset"),
        ("/s\t\r", "/save"),
        ("no command\t\r", "no command"),
        ("Grüße, 世界 🎉\r", "Grüße, 世界 🎉"),
    ],
)
def test_keys_become_a_message(keyboard: Any, keys: str, message: str) -> None:
    keyboard[0].send_text(keys)
    assert keyboard[1].read() == message


def test_a_chat_that_is_ended_from_outside_leaves_its_editor(keyboard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The editor puts the terminal back; a process that SIGTERM ends at once does not."""
    _, reader = keyboard

    def ignore(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, ignore)
    try:
        monkeypatch.setattr(reader._editor, "prompt", lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit) as left:
            reader.read()
        assert left.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is ignore
    finally:
        signal.signal(signal.SIGTERM, before)


def test_arrows_bring_back_what_was_sent(keyboard: Any) -> None:
    keys, reader = keyboard
    for typed, message in (("one\r", "one"), (paste("two\nlines") + "\r", "two\nlines"), ("\x1b[A\r", "two\nlines")):
        keys.send_text(typed)
        assert reader.read() == message


def test_ctrl_c_at_an_empty_line_is_told_and_ctrl_d_ends(keyboard: Any) -> None:
    keys, reader = keyboard
    keys.send_text("\x03")
    with pytest.raises(KeyboardInterrupt):
        reader.read()
    keys.send_text("half\x04\x03")
    keys.send_text("\x04")
    assert reader.read() is None


def test_the_name_of_a_file_is_completed(keyboard: Any, tmp_path: Any) -> None:
    (tmp_path / "talk.md").touch()
    keyboard[0].send_text(f"/save {tmp_path}{os.sep}ta\t\r")
    assert keyboard[1].read() == f"/save {tmp_path}{os.sep}talk.md"


# What stands in for it


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def streams(monkeypatch: pytest.MonkeyPatch, *, stdin: Any, stdout: Any, stderr: Any) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
        monkeypatch.setattr(sys, name, stream)


def test_a_pipe_is_read_by_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for stdin in (None, io.StringIO("x\n")):
        streams(monkeypatch, stdin=stdin, stdout=_Terminal(), stderr=_Terminal())
        assert isinstance(make_reader(COMMANDS), PipeReader)


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_only_prints_has_no_editor(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    streams(monkeypatch, stdin=_Terminal("one\n"), stdout=_Terminal(), stderr=_Terminal())
    monkeypatch.setenv("TERM", term)
    assert isinstance(make_reader(COMMANDS), LineReader)


def test_without_prompt_toolkit_lines_are_read_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    streams(monkeypatch, stdin=_Terminal("one\n"), stdout=_Terminal(), stderr=_Terminal())
    original = builtins.__import__

    def lacking(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("prompt_toolkit"):
            raise ModuleNotFoundError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacking)
    reader = make_reader(COMMANDS)
    assert isinstance(reader, LineReader)
    assert reader.note.endswith(install_command("cli"))
    assert '"prompt-toolkit>=' in reader.note
    assert (reader.read(), reader.read()) == ("one", None)


def test_a_question_does_not_go_where_the_answers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    streams(monkeypatch, stdin=_Terminal("one\n"), stdout=stdout, stderr=stderr)
    reader = make_reader(COMMANDS)
    assert isinstance(reader, LineReader)
    assert (reader.read(), reader.read()) == ("one\n", None)
    assert stdout.getvalue() == ""
    assert stderr.getvalue() == "> > \n"


def test_ctrl_c_while_a_line_is_read_begins_another(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(chat_input, "input", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        LineReader().read()
    assert capsys.readouterr().err == "\n"
