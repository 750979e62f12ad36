"""`specdec chat` on a scripted model."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from typer.testing import CliRunner

from langchain_specdec.chat_models import ChatSpeculative
from langchain_specdec.cli.app import app
from langchain_specdec.cli.chat_conversation import Conversation
from langchain_specdec.cli.chat_talk import Talk
from langchain_specdec.cli.chat_view import PlainView, make_view
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import Token
from langchain_specdec.errors import GenerationError, PromptTooLongError
from tests.standin.chat_server import ChatStandIn, delta
from tests.standin.openai_server import serving
from tests.support.backends import ScriptedBackend
from tests.support.chat_templates import CHATML
from tests.support.terminal import terminal_output
from tests.support.thinking import QWEN35, thinking_tokenizer


def run(*arguments: str, lines: str | bytes = "") -> Any:
    return CliRunner().invoke(app, ["chat", *arguments], input=lines)


def test_lines_are_turns_of_one_conversation(model: ScriptedBackend) -> None:
    result = run("--system", "Be brief.", lines="first\n\nsecond")
    assert result.exit_code == 0, result.output
    assert result.stdout == "One.\nTwo.\n"
    assert model.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nfirst<|im_end|>\n<|im_start|>assistant\n"
        "One.<|im_end|>\n<|im_start|>user\nsecond<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.is_closed


def test_reset_forgets_all_but_the_system_message(model: ScriptedBackend) -> None:
    result = run("--system", "S", lines="first\n/reset\nsecond\n/unknown\n/exit\nthird\n")
    assert result.exit_code == 0
    assert "first" not in model.prompt
    assert "<|im_start|>system\nS<|im_end|>" in model.prompt
    assert "There is no command '/unknown'" in result.stderr
    assert len(model.requests) == 2


def test_thoughts_are_no_part_of_what_a_pipe_gets(model: ScriptedBackend) -> None:
    model.answers = ["Hm.</think>One.", "Two."]
    model.tokenizer = thinking_tokenizer(QWEN35)
    assert run(lines="first\n").stdout == "One.\n"
    assert run("--reasoning", "off", lines="first\n").stdout == "Two.\n"
    assert model.prompt.endswith("<think>\n\n</think>\n\n")
    refused = run("--reasoning", "low", lines="first\n")
    assert refused.exit_code != 0
    said = "--reasoning low is beyond the chat template of scripted, which knows no efforts, only --reasoning on and"
    assert said in " ".join(refused.output.split())


def test_a_thought_that_leaves_no_room_for_an_answer_is_told(model: ScriptedBackend) -> None:
    model.answers = ["Hm, I wonder, and go on wondering"]
    model.finish_reason = "length"
    model.tokenizer = thinking_tokenizer(QWEN35)
    result = run("--max-new-tokens", "4", lines="first\n")
    assert result.stdout == "\n"
    assert "There is no answer: the thought took all tokens. Raise --max-new-tokens" in result.stderr


def test_a_conversation_goes_on_from_its_file(model: ScriptedBackend, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    assert run("--history", str(path), lines="first\n").exit_code == 0
    assert run("--history", str(path), lines="second\n").exit_code == 0
    assert "user\nfirst<|im_end|>\n<|im_start|>assistant\nOne.<|im_end|>" in model.prompt
    assert [message["type"] for message in json.loads(path.read_text("utf-8"))] == ["human", "ai", "human", "ai"]


@pytest.mark.parametrize(
    "content",
    ["[1]", "{}x", '{"a": 1}', "{}", '"talk"', "[" * 100_000, '[{"type": "human", "data": {}}]'],
    ids=lambda content: content[:32],
)
def test_a_file_that_holds_no_conversation_is_refused(model: ScriptedBackend, tmp_path: Path, content: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content, encoding="utf-8")
    result = run("--history", str(path), lines="first\n")
    assert result.exit_code == 2
    assert "does not hold a conversation" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "https://" not in result.stderr
    assert path.read_text("utf-8") == content


@pytest.mark.parametrize("content", ["", "\n"], ids=["empty", "blank"])
def test_an_empty_file_is_no_conversation_yet(model: ScriptedBackend, tmp_path: Path, content: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content, encoding="utf-8")
    assert run("--history", str(path), lines="first\n").exit_code == 0
    assert [message["type"] for message in json.loads(path.read_text("utf-8"))] == ["human", "ai"]


def test_wrong_parameters_are_refused_before_the_model_is_loaded(model: ScriptedBackend, tmp_path: Path) -> None:
    assert run("--temperature", "-1").exit_code == 2
    assert "There is no folder" in run("--history", str(tmp_path / "no" / "talk.json")).stderr
    assert run(lines=b"\xff\n").exit_code == 2
    assert model.requests == []


def test_a_model_without_a_template_is_refused(model: ScriptedBackend) -> None:
    model.tokenizer.chat_template = None
    result = run(lines="x\n")
    assert result.exit_code == 1
    assert "no chat template" in result.stderr
    model.tokenizer.chat_template = CHATML


def test_a_conversation_that_is_too_long_ends_a_script(model: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: CompletionRequest) -> Any:
        raise PromptTooLongError("The prompt has too many tokens.")

    monkeypatch.setattr(model, "stream", refuse)
    result = run(lines="x\n")
    assert result.exit_code == 2
    assert "too many tokens" in result.stderr
    assert result.stdout == "", "an answer that did not begin has no line"


def test_an_answer_that_fails_halfway_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    for text, shown in (("One", "One\n"), ("", "")):
        with pytest.raises(GenerationError), view.answer():
            if text:
                view.add([Token(0, text, drafted=False)])
            raise GenerationError("no")
        assert capsys.readouterr().out == shown
    with view.answer():
        pass
    assert capsys.readouterr().out == "\n", "one that is empty is an empty line"


def test_a_terminal_shows_drafted_tokens_in_colour_and_no_escape_sequences(
    model: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.answers = ["a\x1b[31m[red]b"]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal_output(monkeypatch) as shown:
        talk = Talk(ChatSpeculative(backend=model), Conversation(), make_view(shows_markdown=False))
        talk.ask("x")
    assert "\x1b[32m" in shown[0]
    assert "\x1b[31m" not in shown[0]
    assert Text.from_ansi(shown[0]).plain.startswith("a\\x1b[31m[red]b")
    assert "tokens/step" in shown[0]


def test_a_terminal_without_colours_shows_no_escape_sequences_either(
    model: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.answers = ["a\x1b[31mb"]
    monkeypatch.setenv("TERM", "dumb")
    with terminal_output(monkeypatch) as shown:
        talk = Talk(ChatSpeculative(backend=model), Conversation(), make_view(shows_markdown=False))
        talk.ask("x")
    assert shown == ["a\\x1b[31mb\n"]


def test_piped_answers_are_as_the_model_wrote_them(model: ScriptedBackend) -> None:
    model.answers = ["a\x1b[31mb"]
    assert run(lines="x\n").stdout == "a\x1b[31mb\n"


def test_a_full_disk_leaves_the_last_conversation(
    model: ScriptedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.json"
    link = tmp_path / "link.json"
    link.symlink_to(kept)
    assert run("--history", str(link), lines="first\n").exit_code == 0
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600, "a conversation is nobody else's to read"
    kept.chmod(0o640)
    before = kept.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("--history", str(link), lines="second\n")
    assert (result.exit_code, result.stderr) == (1, "error: [Errno 28] No space left on device\n")
    assert kept.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [kept, link]
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules["langchain_specdec.cli.chat"], "load_backend", lambda *args, **kwargs: model)
    assert run("--history", str(link), lines="third\n").exit_code == 0
    assert link.is_symlink()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640


def test_messages_of_another_encoding_are_told_and_the_next_is_read(
    model: ScriptedBackend, typed: Callable[..., None]
) -> None:
    typed("caf\udcc3\udca9", "caf\udce9", "/exit")
    result = run()
    assert result.exit_code == 0
    assert result.stdout == "One.\n"
    assert "user\ncafé<|im_end|>" in model.prompt
    assert result.stderr.splitlines()[1:] == ["error: The message is not UTF-8 text. Convert it first."]


@pytest.mark.server
def test_a_server_takes_the_place_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    standin = ChatStandIn(pieces=[delta(content="All "), delta(content="well."), delta("stop")])
    monkeypatch.setenv("SPECDEC_API_KEY", "sesame other")
    with serving(standin.app) as url:
        result = run("--server", url, "--temperature", "0.5", lines="How is the sea?\n/retry\n")
        assert (result.exit_code, result.output.count("All well.")) == (0, 2)
        assert [body["temperature"] for body in standin.asked] == [0.5, 0.5]
        assert standin.key == "Bearer sesame"
        result = run("--server", url, "--model", "other", lines="x\n")
        assert "The server has no model 'other'. It has 'canned'." in result.output
        result = run("--server", "sea", lines="x\n")
        assert "error: --server must be the root address of a server" in result.output
        standin.refusal = 401, "no such key"
        result = run("--server", url, lines="x\n")
        assert "Give its key as the variable SPECDEC_API_KEY. It says: no such key" in result.output
        result = run("--server", url, "--max-length", "64")
    assert result.exit_code == 2
    assert "--max-length is an option of a model that is loaded here" in result.output
