"""`tool_choice="none"`: the prompt is that of the steps before, and no answer is a call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from langchain_specdec import ChatSpeculative, LocalBackend
from tests.support.agents import price, stock
from tests.support.backends import ScriptedBackend, lasting, make_chat_backend, scripted, scripted_backend
from tests.support.chat_templates import CHATML, LLAMA, MISTRAL, QWEN

TOOLS = [stock, price]
CALL = json.dumps({"name": "stock", "arguments": {"item": "x"}})
FORMAT = {"type": "json_schema", "json_schema": {"name": "A", "schema": {"properties": {"n": {"type": "integer"}}}}}


def make_backend(**options: Any) -> LocalBackend:
    return make_chat_backend(QWEN, **{"num_slots": 1, "max_length": 2048, **options})


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with lasting(make_backend(max_tree_nodes=8)) as backend:
        yield backend


def mark_of(backend: LocalBackend) -> int:
    return int(backend.tokenizer.convert_tokens_to_ids("<tool_call>"))


@pytest.mark.parametrize("before", [None, "any", "price"])
def test_the_last_step_reuses_the_prompt_of_those_before(backend: LocalBackend, before: str | None) -> None:
    model = ChatSpeculative(backend=backend, max_new_tokens=60)
    question = [("human", f"How many {before} lamps are there?")]
    asked = model.bind_tools(TOOLS, tool_choice=before).invoke(question)
    last = model.bind_tools(TOOLS, tool_choice="none").invoke(question)
    assert asked.usage_metadata is not None
    assert last.usage_metadata is not None
    # A forced call's begin is part of its prompt.
    num_tokens = last.usage_metadata["input_tokens"]
    assert 0 <= asked.usage_metadata["input_tokens"] - num_tokens <= 4
    assert last.usage_metadata["input_token_details"]["cache_read"] >= num_tokens - 1
    assert last.text
    assert not last.tool_calls


@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "sampled"])
def test_the_model_cannot_begin_a_call_and_drafts_change_nothing(
    backend: LocalBackend, sampled: dict[str, Any]
) -> None:
    mark = mark_of(backend)
    # This model would write nothing else.
    eager: dict[str, Any] = {"logit_bias": {mark: 100.0}, "max_new_tokens": 40, **sampled}
    question = [("human", "How many lamps are there? How many lamps are there?")]
    model = ChatSpeculative(backend=backend, **eager)
    free = model.bind_tools(TOOLS).invoke(question)
    assert free.invalid_tool_calls
    bound = model.bind_tools(TOOLS, tool_choice="none")
    with lasting(make_backend(drafter="none")) as plain:
        expected = ChatSpeculative(backend=plain, **eager).bind_tools(TOOLS, tool_choice="none").invoke(question)
    for answer in (bound.invoke(question), sum_of(bound.stream(question))):
        assert answer.text == expected.text
        assert answer.text
        assert "<tool_call>" not in answer.text
        assert not answer.tool_calls
        assert not answer.invalid_tool_calls


def sum_of(chunks: Iterator[Any]) -> Any:
    first, *others = chunks
    for chunk in others:
        first += chunk
    return first


def test_a_ban_is_stronger_than_a_bias_and_leaves_other_calls_alone(backend: LocalBackend) -> None:
    mark = mark_of(backend)
    model = ChatSpeculative(backend=backend, max_new_tokens=3, logit_bias={mark: 100.0})
    assert model.bind_tools(TOOLS, tool_choice="none").invoke("x").invalid_tool_calls == []
    assert model.bind_tools(TOOLS).invoke("x").invalid_tool_calls
    assert model.invoke("x").text.startswith("<tool_call>")


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (QWEN, f"<tool_call>\n{CALL}\n</tool_call>"),
        (QWEN, CALL),
        (CHATML, f"<tool_call>[{CALL}]</tool_call>"),
        (LLAMA, CALL.replace("arguments", "parameters")),
        (MISTRAL, f"[{CALL}]"),
    ],
)
def test_what_looks_like_a_call_is_text(template: str, answer: str) -> None:
    """In whatever family, also where its calls have no mark that a model could be kept from."""
    free = scripted(answer, template=template).bind_tools(TOOLS)
    forbidden = scripted(answer, template=template).bind_tools(TOOLS, tool_choice="none")
    for message in (forbidden.invoke("x"), sum_of(forbidden.stream("x"))):
        assert message.text == answer
        assert not message.tool_calls
        assert not message.invalid_tool_calls
    free.invoke("x")
    assert scripted_backend(free).prompt == scripted_backend(forbidden).prompt
    assert "How many of an item" in scripted_backend(forbidden).prompt
    (request,) = scripted_backend(free).requests
    assert not request.banned
    tokenizer = scripted_backend(forbidden).tokenizer
    mark = {QWEN: "<tool_call>", CHATML: "<tool_call>", LLAMA: "<|python_tag|>", MISTRAL: "[TOOL_CALLS]"}[template]
    assert list(scripted_backend(forbidden).requests[0].banned) == [tokenizer.convert_tokens_to_ids(mark)]


def test_a_server_gets_the_tools_too() -> None:
    class AsServer(ScriptedBackend):
        needs_properties = True
        takes_calls_or_object = False
        takes_token_ids = False

    answer = f"<tool_call>\n{CALL}\n</tool_call>"
    model = ChatSpeculative(backend=AsServer(answer, template=QWEN)).bind_tools(TOOLS, tool_choice="none")
    message = model.invoke("x")
    assert (message.text, message.tool_calls) == (answer, [])
    prompt = scripted_backend(model).prompt
    assert "How many of an item" in prompt
    assert scripted_backend(model).requests[0].params.logit_bias is None
    # Beside a format, which a server holds where no call may come.
    scripted_backend(model).answers = ['{"n": 1}']
    assert model.invoke("x", response_format=FORMAT).text == '{"n": 1}'


def test_a_format_is_shown_as_in_the_steps_before() -> None:
    model = scripted('{"n": 1}', template=QWEN)
    model.bind_tools(TOOLS, response_format=FORMAT).invoke("x")
    model.bind_tools(TOOLS, response_format=FORMAT, tool_choice="none").invoke("x")
    first, last = scripted_backend(model).requests
    assert first.prompt == last.prompt
    assert last.params.grammar is not None
    assert last.params.grammar.schema is not None
