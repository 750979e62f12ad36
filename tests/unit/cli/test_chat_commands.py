"""Commands of `specdec chat`, and what a failed answer leaves behind."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_specdec.cli.app import app
from langchain_specdec.cli.chat_commands import COMMANDS, command_of, message_of
from langchain_specdec.errors import EngineClosedError, PromptTooLongError
from tests.support.backends import ScriptedBackend


def run(*arguments: str, lines: str = "") -> Any:
    return CliRunner().invoke(app, ["chat", *arguments], input=lines)


@pytest.mark.parametrize(
    ("text", "command", "message"),
    [
        ("hello /help", None, "hello /help"),
        ("//usr is a folder", None, "/usr is a folder"),
        ("/reset", ("/reset", ""), None),
        ("/save  my talk.md", ("/save", "my talk.md"), None),
        ("/system Be brief.\n\nAnd kind.", ("/system", "Be brief.\n\nAnd kind."), None),
        ("/system\nBe brief.", ("/system", "Be brief."), None),
        ("/ x", ("/", "x"), None),
    ],
)
def test_a_slash_begins_a_command_and_two_a_message(
    text: str, command: tuple[str, str] | None, message: str | None
) -> None:
    assert command_of(text) == command
    if message is not None:
        assert message_of(text) == message


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("no/talk.md", "There is no folder 'no' to save it in."),
        ("file/talk.md", "'file/talk.md' cannot be written: Not a directory."),
        (f"{'x' * 300}.md", "cannot be written: File name too long."),
        ("a\0b.md", "cannot be written: embedded null byte."),
    ],
    ids=["no folder", "a file for a folder", "long", "null"],
)
def test_a_file_that_cannot_be_made_is_told_and_ends_nothing(
    model: ScriptedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = run(lines=f"first\n/save {name}\nsecond\n")
    assert (result.exit_code, result.stdout) == (0, "One.\nTwo.\n")
    assert error in result.stderr
    assert "Errno" not in result.stderr


def test_help_names_every_command_and_key(model: ScriptedBackend) -> None:
    said = run(lines="/help\n").stderr
    assert all(name in said for name in (*COMMANDS, "Alt-Enter", "Ctrl-C", "Ctrl-D", "pasted lines are one message"))
    assert not model.requests


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/rest", "There is no command '/rest'. Did you mean /reset?"),
        ("/sysem x", "Did you mean /system?"),
        ("/usr/bin/python is slow", "a message that begins with a slash is written with two: //"),
        ("/" + "x" * 99 + "\x1b[31m", f"'/{'x' * 39}…'"),
        ("/reset all", "/reset takes nothing after it."),
        ("/save", "/save needs the name of a file"),
        ("/save talk.txt", "must end in .md, to be read, or in .json"),
        ("/save talk.md", "Nothing has been said yet"),
        ("/save ~nobody-of-that-name/talk.md", "there is no such user"),
        ("/retry", "There is no question to ask again."),
        ("/plain", "Answers are plain text here"),
    ],
)
def test_a_wrong_command_is_told_and_the_talk_goes_on(model: ScriptedBackend, line: str, told: str) -> None:
    result = run(lines=f"{line}\nhello\n")
    assert (result.exit_code, result.stdout) == (0, "One.\n")
    assert result.stderr.startswith("error: ")
    assert told in result.stderr
    assert "\x1b" not in result.stderr


def test_the_system_message_is_shown_set_and_taken_away(model: ScriptedBackend) -> None:
    result = run(lines='/system\n/system Be brief.\nfirst\n/system\n/system ""\nsecond\n')
    assert result.stderr.splitlines() == [
        "There is no system message but the model's own.",
        "The system message is set.",
        "System message: Be brief.",
        "The system message is taken away.",
    ]
    first, second = model.prompts
    assert first.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nfirst")
    assert "Be brief" not in second
    assert "user\nfirst<|im_end|>\n<|im_start|>assistant\nOne." in second, "the conversation goes on"


def test_a_system_message_on_the_command_line_holds_for_a_kept_conversation_too(
    model: ScriptedBackend, tmp_path: Path
) -> None:
    path = str(tmp_path / "talk.json")
    assert run("--history", path, "-s", "Be brief.", lines="first\n").exit_code == 0
    assert run("--history", path, "-s", "Be kind.", lines="second\n").exit_code == 0
    assert model.prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nfirst")
    assert "Be brief" not in model.prompt


def test_a_retry_asks_with_another_seed(model: ScriptedBackend) -> None:
    result = run("--temperature", "0.7", "--seed", "5", lines="q\n/retry\n/retry\n")
    assert (result.exit_code, result.stdout) == (0, "One.\nTwo.\nThree.\n")
    assert [request.params.seed for request in model.requests] == [5, 6, 7]
    assert len(set(model.prompts)) == 1, "the answer before is not in the prompt"


def test_a_retry_draws_a_seed_where_none_is_given(model: ScriptedBackend) -> None:
    run("--temperature", "0.7", lines="q\n/retry\n")
    assert [request.params.seed for request in model.requests] == [None, None]


def test_a_greedy_retry_would_be_the_same_and_says_so(model: ScriptedBackend, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    result = run("--history", str(path), lines="q\n/retry\n/system Be kind.\n/retry\n")
    assert result.stdout == "One.\nTwo.\n"
    assert "Without sampling the same question has the same answer." in result.stderr
    kept = [(message["type"], message["data"]["content"]) for message in json.loads(path.read_text("utf-8"))]
    assert kept == [("system", "Be kind."), ("human", "q"), ("ai", "Two.")]


def test_a_question_that_was_asked_before_is_a_question_of_its_own(model: ScriptedBackend) -> None:
    run("--temperature", "1", lines="q\nq\n/retry\n")
    assert model.prompts[1] == model.prompts[2]
    assert model.prompts[1].count("user\nq<|im_end|>") == 2


def test_a_talk_is_saved_to_be_read(model: ScriptedBackend, tmp_path: Path) -> None:
    path = tmp_path / "my talk.md"
    result = run("-s", "Be brief.", lines=f'first\nsecond\n/save "{path}"\n/save {path}\n')
    assert result.stderr.splitlines() == [
        f"Saved in {path}.",
        f"error: {path} is there already. Give another name, or delete it first.",
    ]
    assert path.read_text("utf-8") == (
        "# A talk with scripted\n\n## System\n\nBe brief.\n\n## You\n\nfirst\n\n## scripted\n\nOne.\n\n"
        "## You\n\nsecond\n\n## scripted\n\nTwo.\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_talk_is_saved_to_go_on(model: ScriptedBackend, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    run(lines=f"first\n/save {path}\n")
    run("--history", str(path), lines="second\n")
    assert "user\nfirst<|im_end|>\n<|im_start|>assistant\nOne.<|im_end|>" in model.prompt


def test_a_file_that_cannot_be_written_is_told(
    model: ScriptedBackend, typed: Callable[..., None], tmp_path: Path
) -> None:
    typed("first", f"/save {tmp_path / 'no' / 'talk.md'}", "second")
    result = run()
    assert (result.exit_code, result.stdout) == (0, "One.\nTwo.\n")
    assert "There is no folder" in result.stderr


def test_a_failed_answer_leaves_its_question(
    model: ScriptedBackend, typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failures = model._start, [EngineClosedError("The engine\x1b[31m broke."), None, None]

    def start(request: Any) -> Any:
        if (failure := failures.pop(0)) is not None:
            raise failure
        return whole(request)

    monkeypatch.setattr(model, "_start", start)
    typed("first", "/retry", "second")
    result = run()
    assert (result.exit_code, result.stdout) == (0, "One.\nTwo.\n")
    assert r"error: The engine\x1b[31m broke. /retry asks again." in result.stderr
    assert "user\nfirst<|im_end|>\n<|im_start|>assistant\nOne.<|im_end|>" in model.prompt


def test_a_talk_that_is_too_long_names_flags_and_the_way_out(
    model: ScriptedBackend, typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model._start

    def start(request: Any) -> Any:
        if "user\nlong" in model._text_of(request):
            raise PromptTooLongError("max_new_tokens is 512. Lower max_new_tokens, or give a larger max_length.")
        return whole(request)

    monkeypatch.setattr(model, "_start", start)
    typed("first", "long", "second", "/reset", "third")
    result = run()
    assert (result.exit_code, result.stdout) == (0, "One.\nTwo.\nThree.\n")
    told = next(line for line in result.stderr.splitlines() if line.startswith("error"))
    assert told == (
        "error: --max-new-tokens is 512. Lower --max-new-tokens, or give a larger --max-length. "
        "/reset forgets the conversation."
    )
    assert "user\nfirst" in model.prompts[1]
    assert "user\nlong" not in model.prompts[1], "a question without an answer is no part of the talk"
    assert "first" not in model.prompts[2]


def test_ctrl_c_at_an_empty_line_says_how_to_leave(model: ScriptedBackend, typed: Callable[..., None]) -> None:
    typed(KeyboardInterrupt, "hello")
    result = run()
    assert (result.exit_code, result.stdout) == (0, "One.\n")
    assert result.stderr.splitlines()[1:] == ["Ctrl-D or /exit ends the talk."]
