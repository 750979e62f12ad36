"""Every `specdec generate`, `chat` and `summarize` that the pages show runs as it stands and prints text.

tests/unit/test_page_commands.py holds that the pages show no command that no test knows.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from langchain_specdec.cli.app import app
from langchain_specdec.models.embedded import is_available
from tests.support.page_commands import shown_commands

# A loop's is none by itself: its line comes from a variable.
COMMANDS = list(
    dict.fromkeys(
        shown.line
        for shown in shown_commands(frozenset({"specdec"}))
        if shown.words[1] in ("generate", "chat", "summarize") and len(shown.words) > 2 and "$line" not in shown.words
    )
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
# What a command's answer has in it, where that is known.
ANSWERS = {"--regex": r"(yes|no)\n", "--schema": r'\{"name": "Mary Ann", "age": 34\b.*\}\n'}


def test_the_commands_are_found():
    assert len(COMMANDS) >= 10
    assert sum("specdec chat" in line for line in COMMANDS) >= 2


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.skipif(not is_available(), reason="needs the embedded model")
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_prints_text(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my-notes.txt").write_text("The lamp was lit in 1698.\n", encoding="utf-8")
    for name in ("report.txt", "notes-1.md", "notes-2.md"):
        Path(name).write_text(
            "The lamp of Cordouan was lit in 1611. Louis de Foix built the tower.\n", encoding="utf-8"
        )
    Path("person.json").write_text(json.dumps(PERSON), encoding="utf-8")
    piped, _, command = line.rpartition(" | ")
    given = {"echo": lambda text: f"{text}\n", "cat": lambda path: Path(path).read_text(encoding="utf-8")}
    words = shlex.split(piped)
    stdin = given[words[0]](words[1]) if words else "Hello!\n" if " chat " in command else None
    _, *arguments = shlex.split(command)
    # The model that comes along in the place of others.
    arguments = [
        "embedded" if before in ("-m", "--model") else word
        for before, word in zip(["", *arguments[:-1]], arguments, strict=True)
    ]
    result = CliRunner().invoke(
        app, [*arguments, *([] if "--max-new-tokens" in line else ["--max-new-tokens", "24"])], stdin
    )
    assert result.exit_code == 0, result.output
    pattern = next((pattern for flag, pattern in ANSWERS.items() if flag in line), None)
    if pattern is not None:
        assert re.fullmatch(pattern, result.stdout)
    answers = [json.loads(answer)["text"] for answer in result.stdout.splitlines()] if "--json" in line else None
    assert all(text.strip() for text in answers or [result.stdout])
    # A summary tells there how far it is.
    assert bool(result.stderr) == ("--stats" in line or " summarize " in line)
