"""Standard input: joined with a prompt, alone, silent, closed, or no text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_specdec.cli import demo as demo_module
from langchain_specdec.cli import generate as _  # noqa: F401 - the module, whose name the package gives to its command
from langchain_specdec.cli import standard_input
from langchain_specdec.cli.app import app
from tests.support.backends import ScriptedBackend

generate_module = sys.modules["langchain_specdec.cli.generate"]
READING = "Reading standard input to its end. If there is none to read, add: < /dev/null\n"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedBackend]:
    backend = ScriptedBackend("Yes.")
    for name in ("generate", "chat"):
        module = sys.modules[f"langchain_specdec.cli.{name}"]
        monkeypatch.setattr(module, "load_backend", lambda *args, **kwargs: backend)
    yield backend
    backend.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal as standard input; what is written to its other end is typed."""
    typist, reader = os.openpty()
    with os.fdopen(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield typist
    os.close(typist)


def generate(*arguments: str, stdin: str | bytes | None = None) -> Any:
    return CliRunner().invoke(app, ["generate", *arguments], input=stdin)


def expect_error(result: Any, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["Summarise:"], "The cat sat.\n", "The cat sat.\n\nSummarise:"),
        (["Summarise:"], "One.\n\nTwo.\n", "One.\n\nTwo.\n\nSummarise:"),
        (["Summarise:"], b"The cat sat.\r\n", "The cat sat.\n\nSummarise:"),
        (["Summarise:"], b"\xef\xbb\xbfThe cat sat.", "The cat sat.\n\nSummarise:"),
        (["Summarise:"], "", "Summarise:"),
        (["Summarise:"], "\n", "Summarise:"),
        (["Say:\n"], None, "Say:\n"),
        ([], "Grüße\n", "Grüße"),
        (["-"], "Grüße\n", "Grüße"),
        (["-"], "two\n\n", "two\n"),
        ([""], "Grüße", "Grüße"),
    ],
)
def test_what_is_piped_in_comes_before_the_prompt(
    model: ScriptedBackend, arguments: list[str], stdin: str | bytes | None, prompt: str
) -> None:
    result = generate("--raw", *arguments, stdin=stdin)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Yes.\n", "")
    assert model.prompt == prompt
    assert generate("-s", "Be brief.", *arguments, stdin=stdin).exit_code == 0
    assert f"Be brief.<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>" in model.prompt


@pytest.mark.parametrize("arguments", [[], ["-"], ["Summarise:"]])
def test_what_is_no_text_is_refused(arguments: list[str]) -> None:
    expect_error(generate(*arguments, stdin=b"Gr\xfc\xdfe"), "Standard input is not UTF-8 text")
    expect_error(generate(*arguments, stdin="Grüße".encode("utf-16")), "Standard input is not UTF-8 text")


@pytest.mark.usefixtures("model")
def test_more_than_any_model_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_input, "_MOST_BYTES", 2**20)
    expect_error(generate("Summarise:", stdin="x" * (2**20 + 1)), "Standard input has more than 1 MB")
    line = CliRunner().invoke(app, ["chat"], input="one\n" + "x" * (2**20 + 1))
    assert (line.exit_code, line.stdout) == (2, "Yes.\n")
    assert "Standard input has more than 1 MB" in line.stderr


@pytest.mark.parametrize(("arguments", "stdin"), [([], ""), ([], "\n"), (["-"], ""), ([""], ""), ([""], None)])
def test_nothing_at_all_is_refused(arguments: list[str], stdin: str | None) -> None:
    expect_error(generate(*arguments, stdin=stdin), "The prompt is empty. Give at least one character of text.")


def test_closed_standard_input_is_none(model: ScriptedBackend, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    app(["generate", "--raw", "Summarise:"], standalone_mode=False)
    assert model.prompt == "Summarise:"
    assert app(["generate"], standalone_mode=False) == 2
    assert "There is no prompt. Give it as an argument" in capsys.readouterr().err
    assert not app(["chat"], standalone_mode=False)


def test_standard_input_that_cannot_be_read_is_none(model: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    # As `nohup` leaves it.
    with os.fdopen(os.open(os.devnull, os.O_WRONLY), encoding="utf-8", closefd=True) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        app(["generate", "--raw", "Summarise:"], standalone_mode=False)
        assert model.prompt == "Summarise:"
        assert not app(["chat"], standalone_mode=False)
    assert len(model.requests) == 1


def test_a_terminal_is_read_only_where_asked_for(model: ScriptedBackend, terminal: int, capsys: Any) -> None:
    app(["generate", "--raw", "Summarise:"], standalone_mode=False)
    assert model.prompt == "Summarise:"
    assert app(["generate"], standalone_mode=False) == 2
    assert "There is no prompt. Give it as an argument" in capsys.readouterr().err
    os.write(terminal, b"typed\n\x04")
    app(["generate", "--raw", "-"], standalone_mode=False)
    assert model.prompt == "typed"


def test_a_silent_writer_is_told(model: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_input, "_PATIENCE_SECONDS", 0.0)
    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8") as stdin, os.fdopen(writer, "wb") as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        told = Ending(pipe)
        monkeypatch.setattr(sys, "stderr", told)
        app(["generate", "--raw", "Summarise:"], standalone_mode=False)
    assert told.text == READING
    assert model.prompt == "late\n\nSummarise:"


class Ending:
    """Standard error whose first line makes the writer of standard input end."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text
        if "\n" in text and not self.pipe.closed:
            self.pipe.write(b"late\n")
            self.pipe.close()

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_a_chat_reads_text_only(model: ScriptedBackend) -> None:
    result = CliRunner().invoke(app, ["chat"], input=b"one\n\xff\n")
    assert result.exit_code == 2
    assert result.stdout == "Yes.\n"
    assert "Standard input is not UTF-8 text" in result.stderr


def test_the_demo_summarises_what_is_piped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(demo_module, "load_backend", lambda *args, **kwargs: ScriptedBackend("Yes."))
    monkeypatch.setattr(demo_module, "_make_plain", lambda *args: None)
    monkeypatch.setattr(demo_module, "_record", lambda backend, *texts: seen.extend(texts[:2]))
    monkeypatch.setattr(demo_module, "_compare", lambda *args: None)
    monkeypatch.setattr(demo_module, "_written", lambda *args: nullcontext())
    assert CliRunner().invoke(app, ["demo", "--document", "-"], input="The cat\nsat.\n").exit_code == 0
    assert seen == ["The cat sat.", "standard input"]
    expect_error(CliRunner().invoke(app, ["demo", "--document", "-"], input="\n"), "Standard input is empty.")


@pytest.mark.process
def test_an_open_standard_input_is_told_and_then_read(folder: str) -> None:
    command = [sys.executable, "-c", "from langchain_specdec.cli import main; main()", "generate", "and the dog"]
    with subprocess.Popen(  # noqa: S603
        [*command, "-m", folder, "--json", "--max-new-tokens", "2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline() == READING.encode()
        stdout, stderr = process.communicate(b"the cat\n", timeout=120)
    assert process.returncode == 0, stderr
    assert b'"prompt_tokens": %d,' % len("the cat\n\nand the dog") in stdout


def test_arguments_that_the_locale_could_not_decode_are_utf_8(model: ScriptedBackend) -> None:
    result = generate("caf\udcc3\udca9", "--system", "\udcc3\udca4", "-o", "stop", '["\udcc3\udcbc"]', stdin="")
    assert result.exit_code == 0, result.output
    (request,) = model.requests
    assert model.prompt.endswith("system\nä<|im_end|>\n<|im_start|>user\ncafé<|im_end|>\n<|im_start|>assistant\n")
    assert request.params.stop == ("ü",)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["caf\udce9"], "The prompt is not UTF-8 text. Convert it first."),
        (["x", "--system", "\ud83c"], "--system is not UTF-8 text. Convert it first."),
        (["x", "--stop", "a", "--stop", "\udce9"], "--stop is not UTF-8 text. Convert it first."),
        (["x", "-o", "stop", "\udce9"], "-o is not UTF-8 text. Convert it first."),
        (["x", "--schema", '{"const": "\udce9"}'], "--schema is not UTF-8 text. Convert it first."),
        (["x", "--schema", "caf\udce9.json"], "--schema is not UTF-8 text. Rename the file or folder."),
        (["x", "-m", "caf\udce9"], "--model is not UTF-8 text. Rename the file or folder."),
        (["x", "-m", "caf\udcc3\udca9"], "Set PYTHONUTF8=1 or LC_ALL=C.UTF-8."),
    ],
)
def test_arguments_that_are_no_text_are_told(model: ScriptedBackend, arguments: list[str], told: str) -> None:
    expect_error(generate(*arguments, stdin=""), told)
