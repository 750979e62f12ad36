"""`DraftRecorder` in chains: what it keeps, from threads and event loops, and that `--prompts` reads it."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableConfig

from langchain_specdec import DraftRecorder
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.training.prompt_files import read_prompts

pytestmark = pytest.mark.transformers

CHAT = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")]) | FakeListChatModel(
    responses=["An answer."]
)
PLAIN = PromptTemplate.from_template("Q: {question}\nA:") | FakeListLLM(responses=["An answer."])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def test_prompts_of_chains_are_what_make_draft_reads(path):
    recorder = DraftRecorder(path)
    config: RunnableConfig = {"callbacks": [recorder]}
    CHAT.invoke({"question": "Why?"}, config)
    await CHAT.ainvoke({"question": "How?"}, config)
    PLAIN.batch([{"question": "When?"}, {"question": "Who?"}], config)
    await PLAIN.ainvoke({"question": "What?"}, config)
    asked = read_prompts(path)
    assert [prompt.messages[1]["content"] for prompt in asked[:2]] == ["Why?", "How?"]
    assert {prompt.text for prompt in asked[2:]} == {f"Q: {word}?\nA:" for word in ("When", "Who", "What")}
    assert all("answer" not in row for row in rows(path))
    assert recorder.num_recorded == 5
    assert repr(recorder) == f"DraftRecorder({str(path)!r}): 5 prompts"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_answers_on_request_alone_and_prompts_of_calls_that_fail(path):
    recorder = DraftRecorder(path, with_answers=True)
    CHAT.invoke({"question": "Why?"}, {"callbacks": [recorder]})
    failing = FakeListLLM(responses=[])
    with pytest.raises(IndexError):
        failing.invoke("Of no answer", {"callbacks": [recorder]})
    assert [row.get("answer") for row in rows(path)] == ["An answer.", None]
    assert read_prompts(path)[1].text == "Of no answer"


def test_many_threads_write_whole_lines(path):
    recorder = DraftRecorder(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: PLAIN.invoke({"question": f"{n}" * 500}, {"callbacks": [recorder]}), range(40)))
    assert len(rows(path)) == recorder.num_recorded == 40


def test_images_are_skipped_and_tools_kept(path):
    recorder = DraftRecorder(path)
    model = FakeListChatModel(responses=["x"])
    image = {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}
    model.invoke([HumanMessage([image])], {"callbacks": [recorder]})
    assert (recorder.num_recorded, recorder.num_skipped) == (0, 1)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    model.bind(tools=tools).invoke("Use it", {"callbacks": [recorder]})
    assert read_prompts(path)[0].tools == tuple(tools)


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path):
    with pytest.raises(InvalidParameterError, match=r"cannot be recorded in .*: No such file or directory"):
        DraftRecorder(tmp_path / "none" / "file.jsonl")


def test_a_file_that_is_lost_costs_no_answer(tmp_path, caplog):
    folder = tmp_path / "folder"
    folder.mkdir()
    recorder = DraftRecorder(folder / "file.jsonl")
    recorder.path.unlink()
    folder.rmdir()
    assert CHAT.invoke({"question": "Why?"}, {"callbacks": [recorder]}).content == "An answer."
    assert [record.message.count("cannot be recorded") for record in caplog.records] == [1]
    assert recorder.num_recorded == 0
