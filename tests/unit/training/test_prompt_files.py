"""Files of prompts, and the folder that a draft is made in: what is read, and what is refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.training.prompt_files import GivenPrompt, PromptFiles, read_prompts
from langchain_specdec.training.work_folder import WorkFolder

QUESTION = {"role": "user", "content": "Why?"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prompts"


def write(file: Path, *rows: object) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


class TestFiles:
    def test_plain_text_has_one_on_each_line(self, file):
        assert read_prompts(write(file, "\ufeffOne.", "", "  Two. ")) == [GivenPrompt("One."), GivenPrompt("Two.")]

    def test_json_lines_of_three_kinds(self, file):
        system = {"role": "system", "content": "Be brief."}
        tools = [{"type": "function", "function": {"name": "f"}}]
        write(
            file,
            {"prompt": "A \u2028 b"},
            {"question_id": 1, "category": "qa", "turns": ["First", "second"]},
            {"messages": [system, QUESTION, {"role": "assistant", "content": "Because."}], "tools": tools},
        )
        assert read_prompts(file) == [
            GivenPrompt("A \u2028 b"),
            GivenPrompt("First", later_turns=("second",)),
            GivenPrompt("", (system, QUESTION), tuple(tools)),
        ]

    def test_messages_as_openai_writes_them(self, file):
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
        parts = {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]}
        (prompt,) = read_prompts(write(file, {"messages": [parts, call, QUESTION], "tools": None}))
        assert prompt.messages == (QUESTION, {**call, "content": ""}, QUESTION)

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"question": "x"}, "has the fields 'question', and none of these"),
            ({}, "has the fields of nobody"),
            ("{broken", "line 2 holds no prompt"),
            ({"prompt": " "}, "line 2 holds no prompt"),
            ({"prompt": 5}, "line 2 holds no prompt"),
            ({"turns": []}, "line 2 holds no prompt"),
            ({"turns": ["x", " "]}, "line 2 holds no prompt"),
            ({"turns": ["x", 5]}, "line 2 holds no prompt"),
            ({"messages": [{"role": "user"}]}, "line 2 holds no prompt"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "line 2 holds no prompt"),
            ({"messages": [QUESTION], "tools": ["f"]}, "line 2 holds no prompt"),
            ({"messages": [{"role": "assistant", "content": "x"}]}, "line 2 holds no prompt"),
        ],
    )
    def test_lines_that_hold_none(self, file, row, said):
        with pytest.raises(InvalidParameterError, match=said):
            read_prompts(write(file, {"prompt": "x"}, row))

    def test_files_that_hold_none(self, file, tmp_path):
        with pytest.raises(InvalidParameterError, match=r"is empty\. Give a file"):
            read_prompts(write(file, " ", ""))
        with pytest.raises(InvalidParameterError, match="cannot be read: No such file"):
            read_prompts(tmp_path / "none")
        with pytest.raises(InvalidParameterError, match="is a JSON array"):
            read_prompts(write(file, json.dumps([{"prompt": "x"}], indent=1)))
        file.write_bytes(b"caf\xe9")
        with pytest.raises(InvalidParameterError, match=r"not UTF-8 text \(byte 3\)"):
            read_prompts(file)

    def test_each_prompt_once(self, file, tmp_path):
        files = PromptFiles.read([write(file, "a", "b", "a ")], [write(tmp_path / "eval", "c", "c")])
        assert [prompt.text for prompt in files.prompts] == ["a", "b"]
        assert [prompt.text for prompt in files.eval_prompts] == ["c"]
        assert files.digest != PromptFiles.read([file], []).digest
        write(file, {"turns": ["a", "b"]}, {"prompt": "c"}, {"turns": ["a ", "x", "y"]}, {"turns": ["a", "z", "y"]})
        assert [prompt.later_turns for prompt in PromptFiles.read([file], []).prompts] == [("x", "y"), ()]
        assert PromptFiles.read([], []).digest == ""


class TestFolder:
    def test_work_goes_on_where_it_was_and_is_the_users_alone(self, tmp_path):
        out = tmp_path / "new" / "draft"
        begun = WorkFolder(out, {"seed": 1}, goes_on=False)
        begun.append("rows.jsonl", {"a": 1})
        begun.append("rows.jsonl", {"a": 2})
        assert stat.S_IMODE(begun.path.stat().st_mode) == 0o700
        assert stat.S_IMODE((begun.path / "rows.jsonl").stat().st_mode) == 0o600
        with (begun.path / "rows.jsonl").open("ab") as file:
            file.write(b'{"a": 3')  # a line that was cut off
        again = WorkFolder(out, {"seed": 1}, goes_on=True)
        assert again.rows("rows.jsonl") == [{"a": 1}, {"a": 2}]
        again.append("rows.jsonl", {"a": 4})
        assert again.rows("rows.jsonl")[-1] == {"a": 4}
        again.remove()
        assert list(out.iterdir()) == []

    def test_other_settings_and_other_contents_are_refused(self, tmp_path):
        out = tmp_path / "draft"
        with pytest.raises(InvalidParameterError, match=r"nothing in .* to go on with"):
            WorkFolder(out, {}, goes_on=True)
        WorkFolder(out, {"seed": 2}, goes_on=False)
        # One that was refused before anything was done is no work.
        work = WorkFolder(out, {"seed": 1, "epochs": 2}, goes_on=False)
        work.append("answers.jsonl", {})
        with pytest.raises(InvalidParameterError, match=r"not finished\. Go on with it by --resume"):
            WorkFolder(out, {"seed": 1, "epochs": 2}, goes_on=False)
        with pytest.raises(InvalidParameterError, match="was begun with epochs 2, and not 3"):
            WorkFolder(out, {"seed": 1, "epochs": 3}, goes_on=True)
        other = tmp_path / "other"
        other.mkdir()
        write(other / "notes.txt", "x")
        with pytest.raises(InvalidParameterError, match=r"holds something else \(notes.txt\)"):
            WorkFolder(other, {}, goes_on=False)
        write(other / "model.safetensors", "x")
        with pytest.raises(InvalidParameterError, match="holds a finished draft"):
            WorkFolder(other, {}, goes_on=False)
        with pytest.raises(InvalidParameterError, match="is no folder"):
            WorkFolder(other / "notes.txt", {}, goes_on=False)
