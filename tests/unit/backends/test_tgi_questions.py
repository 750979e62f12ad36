"""What is asked of a TGI server before a chat can be rendered, and what becomes of a model that was replaced."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from langchain_specdec import ChatSpeculative, SpeculativeLLM
from langchain_specdec.backends.remote import facts, retries
from langchain_specdec.backends.tgi import parameters
from langchain_specdec.errors import (
    BackendUnavailableError,
    CompletionTimeoutError,
    EngineClosedError,
    InvalidParameterError,
)
from tests.standin.clients import LIMITS, TEXT, ask, assert_in_time
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread
from tests.support.tiny_models import byte_tokenizer

pytestmark = [pytest.mark.server, pytest.mark.transformers]

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def folder_with(path, template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def folders(tmp_path):
    """Two models of this machine, whose templates differ."""
    square = TEMPLATE.replace("<", "[").replace(">", "]")
    return folder_with(tmp_path / "model", TEMPLATE), folder_with(tmp_path / "other", square)


@pytest.fixture
def server(folders):
    model = FakeModel()
    model.model_id = folders[0]
    with ServerThread(model, LIMITS) as server:
        yield server


def sent(server):
    return [r["body"]["inputs"] for r in server.standin.requests if "parameters" in r.get("body", {})]


# Cancelled, out of time, closed


def threads_of_the_default_executor():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("asyncio_")]


async def by_ainvoke(chat):
    await chat.ainvoke("Hi")


async def by_astream(chat):
    async for _ in chat.astream("Hi"):
        pass


@pytest.mark.parametrize("call", [by_ainvoke, by_astream])
@pytest.mark.parametrize("is_up", [True, False])
async def test_calls_that_wait_for_the_model_can_be_cancelled(server, client, make_backend, monkeypatch, call, is_up):
    server.set_faults("slow-info:seconds=2")
    url = server.url if is_up else "http://127.0.0.1:9"
    # What is down is asked ten times more.
    monkeypatch.setattr(retries, "_FIRST_DELAY", 0.3)
    chat = ChatSpeculative(backend=make_backend(url, client=client, max_retries=0 if is_up else 10, read_timeout=2.0))
    tasks = [asyncio.create_task(call(chat)) for _ in range(8)]
    await asyncio.sleep(0.2)
    assert threads_of_the_default_executor() == [], "threads of the program's wait for the server"
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 8
    assert sent(server) == []


@pytest.mark.parametrize("field", [True, False])
def test_the_timeout_of_a_call_is_that_of_the_question_too(server, client, make_backend, field):
    server.set_faults("slow-info:seconds=3")
    backend = make_backend(server.url, client=client, read_timeout=2.0, max_retries=0)
    chat = ChatSpeculative(backend=backend, timeout=0.2 if field else None)
    given: Any = {} if field else {"timeout": 0.2}
    for call in (
        lambda: chat.invoke("Hi", **given),
        lambda: list(chat.stream("Hi", **given)),
        lambda: asyncio.run(chat.ainvoke("Hi", **given)),
    ):
        with pytest.raises(CompletionTimeoutError, match=r"timeout=0\.2 seconds, before .* tokenizer=") as caught:
            call()
        assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_trace_takes_no_part_of_the_timeout(server, client, make_backend):
    server.set_faults("slow-info:seconds=0.5")
    backend = make_backend(server.url, client=client)
    chat = ChatSpeculative(backend=backend)
    assert chat._get_ls_params(timeout=9.0)["ls_model_name"] == server.url
    assert_in_time(lambda: backend.model_name == server.standin.model.model_id, "the name does not come")
    assert chat._get_ls_params(timeout=9.0)["ls_model_name"] == server.standin.model.model_id


async def test_a_closed_backend_ends_the_wait(server, client, make_backend):
    server.set_faults("slow-info:seconds=2")
    backend = make_backend(server.url, client=client, read_timeout=2.0)
    task = asyncio.create_task(ChatSpeculative(backend=backend).ainvoke("Hi"))
    await asyncio.sleep(0.1)
    backend.close()
    with pytest.raises(EngineClosedError, match="closed before its model was known"):
        await task


def test_what_can_be_refused_is_refused_before_the_server_is_asked(server, client, make_backend):
    chat = ChatSpeculative(backend=make_backend(server.url, client=client))
    tool = {"title": "add", "type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": tool}}
    for wrong in (
        {"no_such": 1},
        {"tools": [tool], "response_format": form},
        {"tools": [tool], "response_format": form, "tool_choice": "any"},
    ):
        with pytest.raises(InvalidParameterError):
            chat._prepare([], None, wrong)
    assert server.standin.counts["info"] == 0


# The name of the model


async def test_an_answer_names_its_model_where_an_event_loop_runs(server, folders, client):
    """As in a notebook, where `invoke` is called in a loop that cannot wait for the name."""
    with ChatSpeculative.from_tgi(server.url, client=client, tokenizer=folders[0], max_tokens=60) as chat:
        message = chat.invoke("Hi")
        assert message.response_metadata["model_name"] == folders[0]


# Another model at the same address


def test_after_some_idling_the_model_is_asked_for_again(server, folders, client, make_backend, monkeypatch):
    backend = make_backend(server.url, client=client)
    chat = ChatSpeculative(backend=backend, max_new_tokens=60)
    chat.invoke("Hi")
    server.standin.model.model_id = folders[1]
    # While it answers, it is not asked.
    chat.invoke("Hi")
    assert (sent(server)[-1], server.standin.counts["info"]) == ("<user>Hi", 1)
    monkeypatch.setattr(facts, "_FRESH_SECONDS", 0.0)
    message = chat.invoke("Hi")
    assert sent(server)[-1] == "[user]Hi"
    assert [message.response_metadata["model_name"], backend.model_name, backend.identity["model"]] == [folders[1]] * 3


def test_a_name_is_asked_for_again_after_some_idling(server, folders, client, make_backend, monkeypatch):
    backend = make_backend(server.url, client=client)
    backend.complete([ask()])
    server.standin.model.model_id = folders[1]
    assert backend.model_name == folders[0]
    monkeypatch.setattr(facts, "_FRESH_SECONDS", 0.0)
    assert backend.model_name == folders[1]
    # One that does not answer keeps its name.
    server.close()
    assert backend.model_name == folders[1]


def test_a_prompt_by_the_template_of_an_earlier_model_is_not_sent(server, folders, client, make_backend):
    backend = make_backend(server.url, client=client, max_retries=1)
    chat = ChatSpeculative(backend=backend, max_new_tokens=60)
    chat.invoke("Hi")
    server.set_faults("unavailable:times=1")
    server.standin.model.model_id = folders[1]
    num_sent = len(sent(server))
    with pytest.raises(BackendUnavailableError, match=r"has another model by now, '.*other'.*Call again"):
        chat.invoke("Hi")
    assert len(sent(server)) <= num_sent + 1, "it was sent to the other model"
    assert chat.invoke("Hi").content == TEXT
    assert sent(server)[-1] == "[user]Hi"
    # A text that no template wrote is for any model.
    assert SpeculativeLLM(backend=backend, max_new_tokens=60).invoke("x") == TEXT


def test_top_k_is_held_against_the_model_it_is_sent_to(server, folders, client, make_backend, monkeypatch):
    monkeypatch.setattr(parameters, "SAFE_TOP_K", 10)
    backend = make_backend(server.url, client=client, max_retries=1)
    ChatSpeculative(backend=backend).get_num_tokens_from_messages([HumanMessage("Hi")])
    request = ask(top_k=200, temperature=1.0)
    backend.complete([request])
    server.set_faults("unavailable:times=1")
    server.standin.model.model_id = "some/other"
    with pytest.raises(InvalidParameterError, match="top_k=200 may be more than the vocabulary"):
        backend.complete([request])
    ks = [r["body"]["parameters"].get("top_k") for r in server.standin.requests if "parameters" in r.get("body", {})]
    assert len(ks) <= 2, "it was sent to the other model"


def test_no_call_blocks_an_event_loop(server):
    blockbuster = pytest.importorskip("blockbuster")

    async def call():
        # The loop of the connection is watched too.
        with blockbuster.blockbuster_ctx():
            chat, llm = ChatSpeculative.from_tgi(server.url), SpeculativeLLM.from_tgi(server.url)
            answers = [(await chat.ainvoke("hi")).text, *await llm.abatch(["a", "b"])]
            answers += ["".join([chunk.text async for chunk in chat.astream("hi")])]
        return chat, llm, answers

    chat, llm, answers = asyncio.run(call())
    assert answers == [TEXT] * 4
    chat.close()
    llm.close()
