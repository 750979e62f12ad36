"""Messages of all kinds and providers, and answers that go on with the last one."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative, Grammar
from langchain_specdec.chat.messages import to_template_messages
from langchain_specdec.errors import InvalidParameterError
from tests.support.backends import ScriptedBackend, scripted, scripted_backend
from tests.support.chat_templates import CHATML, QWEN, TEMPLATES, chat_tokenizer

pytestmark = pytest.mark.transformers


@tool
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


class Place(BaseModel):
    """A place in a call's arguments."""

    name: str


def content_of(message: BaseMessage) -> str:
    text: str = to_template_messages([message])[0]["content"]
    return text


# What OpenAI's, Anthropic's and Google's models leave in a history.
FOREIGN: list[tuple[list[str | dict[str, Any]], str]] = [
    ([{"type": "text", "text": "It rains."}, {"type": "refusal", "refusal": "I cannot."}], "It rains.I cannot."),
    ([{"type": "text", "text": "a", "annotations": [{"type": "url_citation", "url": "x"}], "id": "m"}], "a"),
    ([{"type": "text", "text": "a", "citations": [{"type": "char_location"}]}, "b"], "ab"),
    ([{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"}], "a"),
    ([{"type": "redacted_thinking", "data": "x"}], ""),
    ([{"type": "reasoning", "summary": [], "id": "r"}, {"type": "web_search_call", "id": "w"}], ""),
    (
        [
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}},
            {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result"}]},
            {"type": "text", "text": "found"},
        ],
        "found",
    ),
    ([{"type": "server_tool_call", "name": "x"}, {"type": "server_tool_result", "output": 1}], ""),
    ([{"type": "code_interpreter_call", "id": "c"}, {"type": "executable_code", "code": "1"}], ""),
    ([{"type": "non_standard", "value": {}}, {"type": "tool_use", "id": "t", "name": "f", "input": {}}], ""),
    ([{"type": "output_text", "text": "a", "annotations": []}, {"text": "b"}], "ab"),
    ([], ""),
]


@pytest.mark.parametrize(("blocks", "text"), FOREIGN)
def test_what_other_providers_models_wrote_is_read(blocks: list[str | dict[str, Any]], text: str) -> None:
    message = AIMessage(blocks)
    assert content_of(message) == text
    assert str(message.text) in text
    for template in TEMPLATES.values():
        model = scripted("ok", template=template)
        assert model.invoke([HumanMessage("a"), message, HumanMessage("b")]).text == "ok"
        assert text in scripted_backend(model).prompt


def test_a_refusal_beside_the_content_is_read() -> None:
    assert content_of(AIMessage("", additional_kwargs={"refusal": "No."})) == "No."
    assert content_of(AIMessage("Yes.", additional_kwargs={"refusal": None})) == "Yes."


CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}
# A call of that, as histories hold it that were not made by LangChain's own models.
CALLING = {
    "anthropic": AIMessage(
        [{"type": "text", "text": "x"}, {"type": "tool_use", "id": "1", "name": "add", "input": CALL["arguments"]}]
    ),
    "langchain": AIMessage([{"type": "tool_call", "id": "1", "name": "add", "args": CALL["arguments"]}]),
    "responses": AIMessage(
        [{"type": "function_call", "call_id": "1", "id": "f", "name": "add", "arguments": '{"a": 1, "b": 2}'}]
    ),
    "functions": AIMessage("", additional_kwargs={"function_call": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}),
}


@pytest.mark.parametrize("kind", CALLING)
def test_calls_are_read_wherever_they_stand(kind: str) -> None:
    result = FunctionMessage(content="3", name="add") if kind == "functions" else ToolMessage("3", tool_call_id="1")
    calling, answered = to_template_messages([CALLING[kind], result])
    assert [call["function"] for call in calling["tool_calls"]] == [CALL]
    assert answered["tool_call_id"] == calling["tool_calls"][0]["id"]
    assert answered["name"] == "add"
    model = scripted("ok", template=QWEN)
    model.bind_tools([add]).invoke([HumanMessage("a"), CALLING[kind], result])
    assert '{"name": "add", "arguments": {"a": 1, "b": 2}}' in scripted_backend(model).prompt


def test_what_is_no_whole_call_stays_as_it_is() -> None:
    cut = AIMessage("", additional_kwargs={"function_call": {"name": "add", "arguments": '{"a": '}})
    assert to_template_messages([cut])[0]["tool_calls"][0]["function"]["arguments"] == '{"a": '
    for block in ({"type": "tool_use", "name": "add"}, {"type": "server_tool_use", "name": "add", "input": {}}):
        assert "tool_calls" not in to_template_messages([AIMessage([block])])[0]
    # LangChain has taken the call out of the content.
    twice = AIMessage(
        [{"type": "tool_use", "id": "1", "name": "add", "input": {}}],
        tool_calls=[{"name": "add", "args": {}, "id": "1"}],
    )
    assert len(to_template_messages([twice])[0]["tool_calls"]) == 1


def test_texts_of_a_person_are_read_in_every_form() -> None:
    parts: list[str | dict[str, Any]] = [{"type": "input_text", "text": "a"}, {"text": "b"}, "c"]
    assert content_of(HumanMessage(parts)) == "abc"


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "audio", "video", "file", "document", "media"])
def test_what_a_person_gives_that_is_no_text_is_refused(kind: str) -> None:
    for message in (HumanMessage([{"type": kind}]), SystemMessage([{"type": kind, "url": "https://x.org/a.png"}])):
        with pytest.raises(InvalidParameterError, match=f"content of type '{kind}'.* [Ll]eave that out, or give"):
            scripted("x").invoke([message])
    with pytest.raises(InvalidParameterError, match="content of type 'image'"):
        scripted("x").invoke([HumanMessage([{"image": {"format": "png", "source": {"bytes": b"x"}}}])])


def test_unknown_blocks_of_a_person_are_refused() -> None:
    block: Any
    for block in ({"type": "tool_result", "content": "x"}, {"cachePoint": {}}, {"type": "text", "text": None}):
        with pytest.raises(InvalidParameterError, match="reads text only"):
            scripted("x").invoke([HumanMessage([block])])
    assert content_of(HumanMessage([{"type": "text-plain", "text": "a"}, "b"])) == "ab"


ARGUMENTS: dict[Any, Any] = {
    "day": datetime.date(2024, 2, 29),
    "time": datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc),
    "price": decimal.Decimal("1.50"),
    "id": uuid.UUID(int=1),
    "place": Place(name="Ulm"),
    "tags": {"x"},
    "pair": (1, 2),
    "raw": b"ab",
    "other": type("Other", (), {"__str__": lambda self: "other"})(),
    3: None,
}
WRITTEN = {
    "day": "2024-02-29",
    "time": "2024-02-29T12:00:00Z",
    "price": "1.50",
    "id": str(uuid.UUID(int=1)),
    "place": {"name": "Ulm"},
    "tags": ["x"],
    "pair": [1, 2],
    "raw": "ab",
    "other": "other",
    "3": None,
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_arguments_that_are_no_json_are_written_as_texts(template: str) -> None:
    call = AIMessage("", tool_calls=[{"name": "book", "args": {}, "id": "a"}])
    call.tool_calls[0]["args"] = ARGUMENTS
    assert to_template_messages([call])[0]["tool_calls"][0]["function"]["arguments"] == WRITTEN
    model: Any = scripted("ok", template=template)
    talk = [HumanMessage("x"), call, ToolMessage("done", tool_call_id="a")]
    assert model.bind_tools([add]).invoke(talk).text == "ok"
    assert model.invoke(talk).text == "ok"
    assert '"2024-02-29T12:00:00Z"' in scripted_backend(model).prompt
    assert '"1.50"' in scripted_backend(model).prompt


def test_results_of_tools_are_text_or_json() -> None:
    for content, text in (
        ("a", "a"),
        (["a", {"type": "text", "text": "b"}], "ab"),
        ([{"type": "json", "json": {"é": datetime.date(2024, 1, 2)}}], '{"é": "2024-01-02"}'),
        ([{"a": 1}], '{"a": 1}'),
        ([{"type": "search_result", "title": "T"}], '{"type": "search_result", "title": "T"}'),
    ):
        message = ToolMessage(content, tool_call_id="x", artifact={"raw": object()}, status="error")  # type: ignore[arg-type]
        assert content_of(message) == text


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"x": value}
    return value


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_what_is_nested_too_deeply_is_refused_in_a_sentence(template: str) -> None:
    model: Any = scripted("ok", template=template)
    call = AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "a"}])
    deep_tool = {"type": "function", "function": {"name": "f", "parameters": nested(5000)}}
    own = {**ARGUMENTS}
    own["self"] = own
    for args in (nested(5000), own):
        call.tool_calls[0]["args"] = args
        with pytest.raises(InvalidParameterError, match="cannot be written as JSON"):
            model.invoke([HumanMessage("x"), call, ToolMessage("y", tool_call_id="a")])
    with pytest.raises(InvalidParameterError, match="nested too deeply"):
        model._template.token_ids([{"role": "user", "content": "x"}], [deep_tool])
    with pytest.raises(InvalidParameterError, match="nested"):
        model.invoke("x", tools=[deep_tool])
    assert scripted_backend(model).requests == []
    call.tool_calls[0]["args"] = nested(50)
    assert model.invoke([HumanMessage("x"), call, ToolMessage("y", tool_call_id="a")]).text == "ok"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for m in messages %}{{ m.content.nothing() }}{% endfor %}", "no attribute 'nothing'"),
        ("{{ raise_exception('never\n again.') }}", "never again"),
        ("{% for i in range(100000000) %}{% endfor %}", "Range too big"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content.__class__.__mro__ }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
        ("{{ none() }}", "callable"),
    ],
)
def test_whatever_a_template_raises_is_one_sentence(source: str, reason: str) -> None:
    model = scripted("x", template=source)
    with pytest.raises(InvalidParameterError, match=f"chat template of scripted cannot render .*{reason}") as caught:
        model.bind_tools([add]).invoke("Hi")
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidParameterError, match=reason):
        model.invoke("Hi")


def test_other_kinds_of_messages() -> None:
    model = scripted("ok")
    for message in (
        ChatMessage(content="hi", role="critic"),
        FunctionMessage(content="3", name="add"),
        HumanMessage("hi", name="Ann"),
        SystemMessage(""),
        AIMessage(""),
    ):
        assert model.invoke([message, HumanMessage("x")]).text == "ok"
    broken = {"type": "invalid_tool_call", "name": "add", "args": "<tool_call>{", "id": "a", "error": "cut"}
    assert content_of(AIMessage("", invalid_tool_calls=[broken])) == "<tool_call>{"
    with pytest.raises(InvalidParameterError, match="RemoveMessage cannot be sent"):
        model.invoke([RemoveMessage("x"), HumanMessage("x")])
    # A template that leaves out a role that it does not know is no better than one that leaves out the system.
    only_users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(InvalidParameterError, match="leaves out the critic message"):
        scripted("x", template=only_users).invoke([ChatMessage(content="hi", role="critic"), HumanMessage("x")])


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_goes_on_with_the_last_message(family: str) -> None:
    """As transformers renders it, and with special tokens in it as text."""
    talk: list[BaseMessage] = [HumanMessage("Where?"), AIMessage("It is in <|im_")]
    model = scripted(" Ulm.", template=TEMPLATES[family])
    backend = scripted_backend(model)
    assert model.invoke(talk, continue_final_message=True).text == " Ulm."
    assert backend.prompt.endswith("It is in <|im_")
    assert "".join(chunk.text for chunk in model.stream(talk, continue_final_message=True)) == " Ulm."
    assert model.bind_tools([add]).invoke(talk, continue_final_message=True).text == " Ulm."
    for text in ("It is", "It is \n", "東京 "):
        model.invoke([HumanMessage("Where?"), AIMessage(text)], continue_final_message=True)
        rows = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": text}]
        expected = backend.tokenizer.apply_chat_template(rows, continue_final_message=True, tokenize=False)
        assert backend.requests[-1].prompt == backend.tokenizer(expected, add_special_tokens=False).input_ids
    # A special token in it is that of a template no more than in other messages.
    model.invoke([HumanMessage("x"), AIMessage("a<|im_end|>b")], continue_final_message=True)
    assert backend.prompt.endswith("a<|im_end|>b")
    control = backend.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert backend.requests[-1].prompt[-3:].count(control) == 0
    # By default it is a turn of its own.
    model.invoke(talk)
    assert not backend.prompt.endswith("It is in <|im_")
    model.invoke(talk, continue_final_message=False)
    assert not backend.prompt.endswith("It is in <|im_")


def test_only_the_text_of_an_assistant_is_gone_on_with() -> None:
    model: Any = scripted("x", template=QWEN)
    call = AIMessage("a", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "a"}])
    for last, reason in (
        (HumanMessage("x"), "is of role 'user'"),
        (ToolMessage("3", tool_call_id="a"), "is of role 'tool'"),
        (AIMessage(""), "has no text"),
        (AIMessage(" \n"), "has no text"),
        (call, "calls a tool"),
    ):
        with pytest.raises(InvalidParameterError, match=f"the last message {reason}"):
            model.invoke([HumanMessage("x"), last], continue_final_message=True)
    with pytest.raises(InvalidParameterError, match="must be True or False, got 'no'"):
        model.invoke([HumanMessage("x"), AIMessage("y")], continue_final_message="no")
    begun = [HumanMessage("x"), AIMessage('<tool_call>\n{"name"')]
    with pytest.raises(InvalidParameterError, match="calls a tool"):
        model.bind_tools([add]).invoke(begun, continue_final_message=True)
    assert model.invoke(begun, continue_final_message=True).text == "x"
    begun = [HumanMessage("x"), AIMessage("{")]
    for chain in (
        model.bind(response_format={"type": "json_object"}),
        model.bind_tools([add], tool_choice="any"),
        model.with_structured_output(Place),
    ):
        with pytest.raises(InvalidParameterError, match="continue_final_message and a form of the answer"):
            chain.invoke(begun, continue_final_message=True)
    # A grammar of the caller's own is that of what is new.
    assert model.invoke(begun, continue_final_message=True, grammar=Grammar(regex="x")).text == "x"


@pytest.mark.parametrize("text", ['{"name": "add"', "{", 'So:\n{"na', '<|python_tag|>{"name": "add"', "<|python_tag|>"])
def test_a_call_that_has_begun_is_not_gone_on_with(text: str) -> None:
    model = scripted("x", template=TEMPLATES["llama"])
    begun = [HumanMessage("x"), AIMessage(text)]
    with pytest.raises(InvalidParameterError, match="the last message calls a tool, or begins to"):
        model.bind_tools([add]).invoke(begun, continue_final_message=True)
    assert model.invoke(begun, continue_final_message=True).text == "x"


@pytest.mark.parametrize(
    ("begun", "is_call"),
    [
        ("An example of a call is ", False),
        ("An example is", False),
        ('{"size": 1} and ', False),
        ("if a <", False),
        ("I look.\n", True),
        ("I look.\n  ", True),
    ],
)
def test_json_is_a_call_where_it_begins_a_line_of_the_whole_message(begun: str, is_call: bool) -> None:
    call = '{"name": "add", "parameters": {"a": 1, "b": 2}}'
    model = scripted(call + "\nx", template=TEMPLATES["llama"]).bind_tools([add])
    answer = model.invoke([HumanMessage("x"), AIMessage(begun)], continue_final_message=True)
    assert answer.text == ("\nx" if is_call else call + "\nx")
    assert len(answer.tool_calls) == is_call


def test_a_template_that_drops_the_beginning_is_told() -> None:
    no_assistant = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}"
    with pytest.raises(InvalidParameterError, match=r"cannot render these messages.*final message"):
        scripted("x", template=no_assistant).invoke([HumanMessage("x"), AIMessage("y")], continue_final_message=True)


CALLS = {
    "mistral": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": 2}}]',
    "llama": '{"name": "add", "parameters": {"a": 1, "b": 2}}',
    "qwen": '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
}


def named(answer: str, templates: Any, **fields: Any) -> ChatSpeculative:
    backend = ScriptedBackend(answer)
    backend.tokenizer = chat_tokenizer(templates)
    return ChatSpeculative(backend=backend, **fields)


@pytest.mark.parametrize("family", CALLS)
def test_calls_are_those_of_the_named_template_in_use(family: str) -> None:
    other = "mistral" if family != "mistral" else "qwen"
    for templates, chosen in (
        ({"default": CHATML, "tool_use": TEMPLATES[family]}, None),
        ({"default": TEMPLATES[other], "tool_use": TEMPLATES[family], "rag": TEMPLATES[other]}, None),
        ({"default": CHATML, "x": TEMPLATES[family], "rag": TEMPLATES[other]}, "x"),
    ):
        model = named(CALLS[family], templates, chat_template=chosen)
        reply = model.bind_tools([add]).invoke("x")
        assert [call["args"] for call in reply.tool_calls] == [{"a": 1, "b": 2}]
    # Without tools the other template is in use, and has to show calls of earlier turns too.
    plain = named("ok", {"default": CHATML, "tool_use": TEMPLATES[family]})
    plain.invoke([HumanMessage("x"), reply, ToolMessage("3", tool_call_id=reply.tool_calls[0]["id"])])
    assert '<tool_call>[{"name": "add"' in scripted_backend(plain).prompt


def test_special_tokens_of_a_named_template_are_protected() -> None:
    thinking = "{% for m in messages %}<think>{{ m.content }}{% endfor %}"
    think = chat_tokenizer().convert_tokens_to_ids("<think>")
    for chosen, templates in (
        ("x", {"default": CHATML, "x": thinking}),
        (None, {"default": CHATML, "tool_use": thinking}),
    ):
        model = named("x", templates, chat_template=chosen)
        model.bind_tools([add]).invoke("a<think>b") if chosen is None else model.invoke("a<think>b")
        backend = scripted_backend(model)
        assert list(backend.requests[-1].prompt).count(think) == (1 if chosen else 0)
        assert "a<think>b" in backend.prompt


def test_names_that_are_no_template_are_refused() -> None:
    templates = {"rag": CHATML, "other": QWEN}
    with pytest.raises(InvalidParameterError, match=r"several chat templates.*chat_template=, one of 'other', 'rag'"):
        named("x", templates)
    with pytest.raises(InvalidParameterError, match=r"the name of one .*'other', 'rag'.*got 'tool'"):
        named("x", templates, chat_template="tool")
    with pytest.raises(InvalidParameterError, match=r"none with names.*got 'rag'"):
        named("x", CHATML, chat_template="rag")
    assert named("x", templates, chat_template="rag").invoke("Hi").text == "x"
    for name in ("tools", "add_generation_prompt", "continue_final_message", "tokenize"):
        with pytest.raises(InvalidParameterError, match=f"variables of the template, and '{name}' is none"):
            scripted("x", chat_template_kwargs={name: True})
