"""`specdec summarize`: several files, what it prints where, progress, and files that are no text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_specdec.cli.app import app
from langchain_specdec.errors import GenerationError
from tests.support.backends import ScriptedBackend

pytestmark = pytest.mark.transformers

LONG = "\n\n".join(f"Part {number}. " + "There was a text that went on. " * 20 for number in range(9))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """The model that is loaded whatever is asked for; answers with the first words of the prompt's text."""
    backend = ScriptedBackend(lambda prompt: "On: " + prompt.split("user\n")[-1].strip()[:12])
    monkeypatch.setattr("langchain_specdec.cli.summarize.load_backend", lambda *args, **kwargs: backend)
    return backend


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("Alpha text.\n", encoding="utf-8")
    Path("b.md").write_text("\ufeffBeta text.\r\n", encoding="utf-8")
    Path("long.txt").write_text(LONG, encoding="utf-8")
    return tmp_path


def summarize(*arguments: object, stdin: str | bytes | None = None) -> Any:
    return CliRunner().invoke(app, ["summarize", *map(str, arguments)], stdin)


def test_several_files_have_one_summary(model: ScriptedBackend) -> None:
    result = summarize("a.txt", "b.md", "--max-new-tokens", 50)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "On: Alpha text.\n", "Reading the text\n")
    assert "user\nAlpha text.\n\n\nBeta text." in model.prompt
    assert "Summarize the text above" in model.prompt


def test_each_has_one_of_its_own_on_request(model: ScriptedBackend) -> None:
    result = summarize("a.txt", "b.md", "--each")
    assert result.stdout == "==> a.txt <==\nOn: Alpha text.\n\n==> b.md <==\nOn: Beta text.\n"
    assert summarize("a.txt", "--each").stdout == "On: Alpha text.\n"
    lines = summarize("a.txt", "b.md", "--each", "--json").stdout.splitlines()
    assert [json.loads(line)["files"] for line in lines] == [["a.txt"], ["b.md"]]


def test_standard_input_is_a_file_too(model: ScriptedBackend) -> None:
    assert summarize(stdin="Piped text.").stdout == "On: Piped text.\n"
    assert summarize("a.txt", "-", stdin="Piped text.").exit_code == 0
    assert "Alpha text.\n\n\nPiped text." in model.prompt


def test_a_long_file_is_read_in_pieces_with_progress_on_stderr(model: ScriptedBackend) -> None:
    result = summarize("long.txt", "--json")
    facts = json.loads(result.stdout)
    assert facts["text"].startswith("On: On: Part 0.")
    assert facts["files"] == ["long.txt"]
    assert facts["num_prompts"] == len(model.requests) == 3
    assert facts["completion_tokens"] > 0 < facts["prompt_tokens"]
    assert result.stderr == "Summarising pieces of the text: 0 of 2\nSummarising the summaries\n"


def test_ways_instructions_and_system_messages(model: ScriptedBackend) -> None:
    result = summarize("long.txt", "--method", "refine", "-i", "List {names}.", "-s", "Be {terse}.")
    assert result.stderr == "Refining the summary with each piece: 0 of 2\n"
    assert "system\nBe {terse}.<|im_end|>" in model.prompt
    assert "List {names}.<|im_end|>" in model.prompt
    assert "Summary of the parts before it:" in model.prompt
    assert summarize("a.txt", "--raw", "-o", "max_tokens", 7).exit_code == 0
    assert model.prompt.endswith("\n\nSummary:\n")
    assert "<|im_start|>" not in model.prompt
    assert model.requests[-1].params.max_new_tokens == 7


def test_a_file_that_fails_does_not_keep_the_others_from_their_summaries(model: ScriptedBackend) -> None:
    def answer(prompt: str) -> str:
        if "Alpha" in prompt:
            raise GenerationError("no luck")
        return "Fine."

    model.answers = [answer]
    result = summarize("a.txt", "b.md", "--each")
    assert result.exit_code == 1
    assert result.stdout == "==> a.txt <==\n\n==> b.md <==\nFine.\n"
    assert "error: a.txt: no luck\n" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"%PDF-1.7 x", "x.y is a PDF. Extract its text first: pdftotext x.y - | specdec summarize -"),
        (b"PK\x03\x04x", "x.y is an archive or an office document. Save its text as a .txt file first."),
        (b"\xd0\xcf\x11\xe0", "x.y is an office document. Save its text as a .txt file first."),
        (b"\xff\xfea\0", "x.y is UTF-16. Convert it first: iconv -f UTF-16 -t UTF-8 x.y | specdec summarize -"),
        (b"a\0b", "x.y is a binary file. Only text can be summarised."),
        (b"caf\xe9", "x.y is not UTF-8 text (byte 3). Convert it first, from Latin-1 for example: iconv"),
        (b" \n", "x.y is empty. Give text to summarise."),
        (b"", "x.y is empty. Give text to summarise."),
    ],
)
def test_what_is_no_text_is_told_before_a_model_is_loaded(content: bytes, message: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("langchain_specdec.cli.summarize.load_backend", lambda *a, **k: pytest.fail("it was loaded"))
    Path("x.y").write_bytes(content)
    result = summarize("a.txt", "x.y")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.txt"], "There is no file nothing.txt. Check its name"),
        (["."], ". is a folder. Name a file in it, such as: specdec summarize ./notes.txt"),
        (["-", "-"], "give - once"),
        (["-"], "Standard input is empty. Give text to summarise."),
        ([], "Standard input is empty. Give text to summarise."),
        (["a.txt", "--method", "mapreduce"], "--method must be one of 'auto', 'stuff', 'map_reduce', 'refine'"),
        (["a.txt", "-i", " "], "--instruction is empty"),
        (["a.txt", "--temperature", "-1"], "--temperature must be"),
    ],
)
def test_wrong_use(arguments: list[str], message: str) -> None:
    result = summarize(*arguments, stdin="")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_errors_of_room_name_flags(model: ScriptedBackend) -> None:
    result = summarize("long.txt", "--method", "stuff")
    assert result.exit_code == 2
    assert (
        "beside the 256 of the summary (--max-new-tokens). Take --method map_reduce or --method refine" in result.stderr
    )
    model.max_length = 300
    result = summarize("long.txt")
    assert "To make room: lower --max-new-tokens" in result.stderr
    model.max_length = 20
    result = summarize("long.txt")
    assert "To make room: " in result.stderr
    assert "lower" not in result.stderr, "that alone does not help"


def test_control_characters_of_a_name_reach_no_terminal(model: ScriptedBackend) -> None:
    result = summarize("no\x1b[31m.txt")
    assert "\x1b" not in result.stderr
