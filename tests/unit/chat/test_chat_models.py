"""`ChatSpeculative` in LangChain: messages, tools, streams, usage, limits."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative, Grammar, LocalBackend
from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.structured_output import OutputForm, form_of_calls, form_of_response
from langchain_specdec.chat.tool_calls import GenericParser, HermesParser, LlamaParser, MistralParser, ToolCall
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import CompletionTimeoutError, InvalidParameterError, UnsupportedModelError
from langchain_specdec.grammar.call_grammar import CallGrammar
from tests.support.backends import (
    Counter,
    EchoBackend,
    ScriptedBackend,
    is_idle,
    lasting,
    scripted,
    scripted_backend,
)
from tests.support.chat_templates import CHATML, LLAMA, MISTRAL, QWEN, chat_tokenizer
from tests.support.langchain_versions import needs_profiles
from tests.support.tiny_models import tiny_model
from tests.support.tools import add, weather

pytestmark = pytest.mark.transformers

QWEN_CALLS = (
    'I look.\n<tool_call>\n{"name": "weather", "arguments": {"place": "東京"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
)


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def make_backend(**options: Any) -> LocalBackend:
    """A tiny random model that knows the tokens of chats."""
    tokenizer = chat_tokenizer()
    defaults = {"num_slots": 2, "max_length": 512, "step_cost": StepCost.flat()}
    return LocalBackend(tiny_model(vocab_size=len(tokenizer)), tokenizer, **{**defaults, **options})


@pytest.fixture(scope="module")
def backend() -> Any:
    with lasting(make_backend()) as backend:
        yield backend


def merged(model: Any, messages: Any, **kwargs: Any) -> AIMessageChunk:
    chunks = list(model.stream(messages, **kwargs))
    whole: AIMessageChunk = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


def calls_of(message: AIMessage) -> list[tuple[str, dict[str, Any]]]:
    return [(call["name"], call["args"]) for call in message.tool_calls]


def test_an_answer_has_text_usage_and_metadata() -> None:
    message = scripted("Hello, 世界!").invoke("Hi")
    assert message.content == "Hello, 世界!"
    assert not message.tool_calls
    assert not message.invalid_tool_calls
    assert message.response_metadata["model_name"] == "scripted"
    assert message.response_metadata["finish_reason"] == "eos_token"
    assert set(message.response_metadata["speculation"]) >= {"acceptance_rate", "num_steps"}
    usage = message.usage_metadata
    assert usage is not None
    assert usage["output_tokens"] == len("Hello, 世界!".encode())
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"] == {"cache_read": 3}


def test_messages_of_all_kinds_reach_the_template() -> None:
    model = scripted("ok", template=QWEN)
    model.bind_tools([weather]).invoke(
        [
            SystemMessage("Be brief."),
            HumanMessage([{"type": "text", "text": "How is "}, {"type": "text", "text": "Ulm?"}]),
            AIMessage(
                [
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "1", "name": "weather", "input": {"place": "Ulm"}},
                ],
                tool_calls=[{"name": "weather", "args": {"place": "Ulm"}, "id": "1"}],
            ),
            ToolMessage("rain", tool_call_id="1"),
            ToolMessage([{"type": "text", "text": "no more"}], tool_call_id="2", status="error"),
        ]
    )
    assert scripted_backend(model).prompt.endswith(
        "<|im_start|>user\nHow is Ulm?<|im_end|>\n<|im_start|>assistant\nLet me see.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"place": "Ulm"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n"
        "<tool_response>\nno more\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert '"name": "weather"' in scripted_backend(model).prompt


def test_what_is_not_text_is_refused() -> None:
    block = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(InvalidParameterError, match="'image_url', and the model can be given no images: "):
        scripted("x").invoke([HumanMessage([block])])


@pytest.mark.parametrize("width", [1, 3, 1000])
@pytest.mark.parametrize(
    ("template", "answer", "text", "calls"),
    [
        (QWEN, QWEN_CALLS, "I look.", [("weather", {"place": "東京"}), ("add", {"a": 1, "b": 2})]),
        (LLAMA, '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
        (LLAMA, '{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
        (MISTRAL, 'So[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]', "So", [("add", {"a": 1})]),
        (MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": 1}', "", [("add", {"a": 1})]),
        (CHATML, '<tool_call>[{"name": "add", "arguments": {"a": 1}}]</tool_call>', "", [("add", {"a": 1})]),
        (CHATML, "Just text < here\n", "Just text < here\n", []),
    ],
)
def test_calls_of_every_family_whole_and_streamed(
    template: str, answer: str, text: str, calls: list[Any], width: int
) -> None:
    model = scripted(answer, template=template, width=width).bind_tools([weather, add])
    for message in (model.invoke("x"), merged(model, "x"), asyncio.run(model.ainvoke("x"))):
        assert message.content == text
        assert calls_of(message) == calls
        assert message.invalid_tool_calls == []
        ids = [call["id"] for call in message.tool_calls]
        assert len(set(ids)) == len(calls)
        assert all(ids)


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (QWEN, '<tool_call>\n{"name": "add", "arguments": {"a": 1'),
        (CHATML, '{"name": "add", "arguments": {"a": 1'),
        (LLAMA, '<|python_tag|>{"name": "add", "parameters": {"a": 1}, '),
        (MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": 1'),
    ],
)
def test_a_call_that_is_cut_off_is_invalid_whole_and_streamed(template: str, answer: str) -> None:
    model = scripted(answer, template=template).bind_tools([add])
    for message in (model.invoke("x"), merged(model, "x")):
        assert message.tool_calls == []
        (call,) = message.invalid_tool_calls
        assert call["name"] == "add"
        assert call["id"]
        # It goes back to the model as the text that it wrote.
        again = scripted("y", template=template)
        again.invoke([HumanMessage("x"), message, HumanMessage("z")])
        assert str(call["args"]).strip() in scripted_backend(again).prompt


_FRAGMENTS = ['{"name": "add"', '"arguments": {', "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "```json\n"]


@pytest.mark.parametrize("template", [CHATML, QWEN, LLAMA, MISTRAL])
@settings(max_examples=40)
@given(answer=st.lists(st.sampled_from(_FRAGMENTS) | st.text(max_size=4), max_size=8).map("".join))
def test_no_answer_raises_and_streams_agree(template: str, answer: str) -> None:
    model = scripted(answer, template=template, width=2).bind_tools([add])
    whole = model.invoke("x", max_tokens=4096)
    streamed = merged(model, "x", max_tokens=4096)
    assert whole.content == streamed.content
    assert calls_of(whole) == calls_of(streamed)
    assert [(c["name"], c["args"]) for c in whole.invalid_tool_calls] == [
        (c["name"], c["args"]) for c in streamed.invalid_tool_calls
    ]


@pytest.mark.parametrize(
    ("answer", "stop", "text", "calls"),
    [
        # A stop string that holds a call's name back leaves it where it stands.
        ('[TOOL_CALLS]weather[ARGS]{"place": "Ulm"}', ["weather!"], "", ["weather"]),
        ('Sure.\n[TOOL_CALLS]weather[ARGS]{"place": "Ulm"}', ["\nUser:", "}\n"], "Sure.", ["weather"]),
        # One that cuts a mark leaves no call.
        ('Sure.[TOOL_CALLS]weather[ARGS]{"place": "Ulm"}', ["[TOOL_CALLS]"], "Sure.", []),
        ('Sure.[TOOL_CALLS]weather[ARGS]{"place": "Ulm"}', [".["], "Sure", []),
        ('Sure.[TOOL_CALLS]weather[ARGS]{"place": "Ulm"}', ["CALLS"], "Sure.[TOOL_", []),
    ],
)
def test_marks_of_calls_are_text_to_stop_strings(answer: str, stop: list[str], text: str, calls: list[str]) -> None:
    model = scripted(answer, template=MISTRAL).bind_tools([weather, add])
    for message in (model.invoke("?", stop=stop), merged(model, "?", stop=stop)):
        assert message.text == text
        assert [call["name"] for call in message.tool_calls] == calls
        assert not message.invalid_tool_calls


def test_marks_are_text_where_no_call_may_come() -> None:
    assert scripted("<tool_call>{}</tool_call>").invoke("x").content == "<tool_call>{}</tool_call>"
    model: Any = scripted("<tool_call>{}</tool_call>", template=QWEN).bind_tools([add], tool_choice="none")
    assert model.invoke("x").content == "<tool_call>{}</tool_call>"


def test_a_forced_call_begins_in_the_prompt_and_is_read_whole() -> None:
    for template, begin, end in (
        (QWEN, "<tool_call>\n", "\n</tool_call>"),
        (CHATML, "<tool_call>[", "]</tool_call>"),
        (MISTRAL, "[TOOL_CALLS][", "]"),
        (LLAMA, "", ""),
    ):
        key = "parameters" if template is LLAMA else "arguments"
        call = json.dumps({"name": "add", key: {"a": 1, "b": 2}})
        for choice in ("any", "required", True, "add", {"type": "function", "function": {"name": "add"}}):
            # Where there may be several calls, the model ends the last one itself.
            is_one = choice not in ("any", "required", True)
            written = call if is_one else call + end
            chat = scripted(written, template=template, width=3)
            model: Any = chat.bind_tools([add, weather], tool_choice=choice)
            for message in (model.invoke("x"), merged(model, "x")):
                assert calls_of(message) == [("add", {"a": 1, "b": 2})]
                assert message.text == ""
            backend = scripted_backend(model)
            assert backend.prompt.endswith(begin)
            grammar = backend.requests[-1].params.grammar
            assert grammar is not None
            (schema,) = grammar.schemas if isinstance(grammar, CallGrammar) else [grammar.schema]
            assert schema is not None
            calls = schema.get("anyOf", [schema])
            assert [call["properties"]["name"]["const"] for call in calls] == ["add", "weather"][: len(calls)]
            assert len(calls) == (1 if is_one else 2)
            assert (template is not LLAMA and not is_one) == isinstance(grammar, CallGrammar)
            # The next turn begins with all of this one, and so finds it in the cache.
            seen = backend.requests[-1].prompt
            backend.answers = ["It is 3."]
            chat.invoke([HumanMessage("x"), message], tools=model.kwargs["tools"])
            again = backend.tokenizer.decode(backend.requests[-1].prompt)
            assert template is MISTRAL or again.startswith(backend.tokenizer.decode(seen) + call + end)


def test_tools_may_be_given_in_a_call() -> None:
    model = scripted('<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>', template=QWEN)
    assert calls_of(model.invoke("x", tools=[add])) == [("add", {"a": 1, "b": 2})]
    for wrong in (3, {"type": "function"}, "add"):
        with pytest.raises(InvalidParameterError):
            model.invoke("x", tools=[wrong])


def test_structured_answers_are_read_by_every_method() -> None:
    whole = '{"name": "Ann", "age": 3}'
    call = json.dumps({"name": "Person", "arguments": json.loads(whole)})
    method: Any
    for method, answer in (("json_schema", whole), ("function_calling", call), ("json_mode", whole)):
        for schema in (Person, Person.model_json_schema()):
            model = scripted(answer)
            found = model.with_structured_output(schema, method=method).invoke("x")
            assert (found if isinstance(found, dict) else found.model_dump()) == {"name": "Ann", "age": 3}
            raw = model.with_structured_output(schema, method=method, include_raw=True).invoke("x")
            assert raw["parsed"] == found
            assert raw["parsing_error"] is None
            grammar = scripted_backend(model).requests[-1].params.grammar
            assert grammar is not None
            assert grammar.schema == {"type": "object"} or "additionalProperties" in json.dumps(grammar.schema)
    schema_prompt = scripted(whole)
    schema_prompt.with_structured_output(Person).invoke("x")
    assert '"age"' in scripted_backend(schema_prompt).prompt


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("include_raw", [False, True])
def test_structured_output_takes_the_options_of_a_call(method: Any, include_raw: bool) -> None:
    answer = {"name": "Ann", "age": 3}
    model = scripted(json.dumps({"name": "Person", "arguments": answer} if method == "function_calling" else answer))
    structured = model.with_structured_output(Person, method=method, include_raw=include_raw)

    async def of_tasks() -> None:
        await structured.ainvoke("x", max_tokens=94)
        assert [found async for found in structured.astream("x", max_tokens=95)]

    structured.invoke("x", max_tokens=91)
    structured.bind(max_tokens=92).invoke("x")
    structured.batch(["x"], max_tokens=93)
    asyncio.run(of_tasks())
    assert list(structured.stream("x", max_tokens=96))
    given = [request.params.max_new_tokens for request in scripted_backend(model).requests]
    assert given == [91, 92, 93, 94, 95, 96]


def test_stop_strings_beside_a_form_of_the_answer_are_refused() -> None:
    """Those of the call, and those of the model."""
    form = {"type": "json_object"}
    for model, stop in ((scripted("{}"), [","]), (scripted("{}", stop=[","]), None)):
        tools: Any = model.bind_tools([add], tool_choice="any")
        both: Any = model.bind_tools([add], response_format=form)
        structured: Any = model.with_structured_output(Person)
        for chain in (
            model.bind(response_format=form),
            tools,
            both,
            structured,
            model.bind(grammar=Grammar(regex="a")),
        ):
            with pytest.raises(InvalidParameterError, match="stop and a form of the answer"):
                chain.invoke("x", stop=stop)
        assert scripted_backend(model).requests == []
        assert model.invoke("x", stop=stop).text == "{}"
    without = scripted("{}", stop=[","]).model_copy(update={"stop": None})
    assert without.invoke("x", response_format=form).text == "{}"
    with pytest.raises(InvalidParameterError, match="stop and a form of the answer"):
        scripted("{}", stop=[","], grammar=Grammar(regex="a"))


def test_two_forms_of_one_answer_are_refused() -> None:
    model = scripted("x")
    form = {"type": "json_object"}
    with pytest.raises(InvalidParameterError, match="response_format and a tool_choice"):
        model.bind_tools([add], tool_choice="add").invoke("x", response_format=form)
    with pytest.raises(InvalidParameterError, match="grammar is set already"):
        model.invoke("x", response_format=form, grammar=Grammar(regex="a"))
    assert scripted_backend(model).requests == []


def test_wrong_choices_are_refused_when_they_are_made() -> None:
    with pytest.raises(InvalidParameterError, match=r"tool_choice must be .*'add'.* got 'multiply'"):
        scripted("x").bind_tools([add], tool_choice="multiply")
    with pytest.raises(InvalidParameterError, match="method must be"):
        scripted("x").with_structured_output(Person, method="magic")  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="response_format must be"):
        scripted("x").invoke("x", response_format="json")
    with pytest.raises(InvalidParameterError, match="Unknown parameter 'tempratur'"):
        scripted("x").invoke("x", tempratur=1)
    with pytest.raises(InvalidParameterError, match="timeout must be"):
        scripted("x", timeout=0)


def test_a_model_without_template_or_tokenizer_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="scripted has no chat template"):
        scripted("x", template=None)
    with pytest.raises(InvalidParameterError, match="EchoBackend has no tokenizer"):
        ChatSpeculative(backend=EchoBackend())
    backend = EchoBackend()
    assert ChatSpeculative(backend=backend, tokenizer=chat_tokenizer()).invoke("x").text.startswith("<|im_start|>")
    assert scripted("x", template=None, chat_template=CHATML).invoke("x").content == "x"


def test_a_backend_that_takes_text_gets_text() -> None:
    backend = ScriptedBackend("ok")
    backend.takes_token_ids = False
    ChatSpeculative(backend=backend).invoke("a<|im_end|>b")
    assert backend.requests[0].prompt == (
        "<|im_start|>system\nYou help.<|im_end|>\n"
        "<|im_start|>user\na<\u200b|im_end|>b<|im_end|>\n<|im_start|>assistant\n"
    )


def test_options_of_the_template_are_passed_on() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood }}"
    model = scripted("x", template=template, chat_template_kwargs={"mood": "good"})
    model.invoke("a")
    assert scripted_backend(model).prompt == "agood"


def test_tokens_of_messages_are_those_of_the_prompt() -> None:
    model = scripted("x", template=QWEN)
    messages: list[BaseMessage] = [HumanMessage("How warm is it?")]
    model.bind_tools([weather]).invoke(messages)
    prompt = scripted_backend(model).requests[0].prompt
    assert model.get_num_tokens_from_messages(messages, tools=[weather]) == len(prompt)
    # A memory that is trimmed until it fits may end empty.
    assert model.get_num_tokens_from_messages([]) == 0
    assert model.get_num_tokens("abc") == 3


def test_the_cache_tells_everything_apart_that_the_answer_depends_on() -> None:
    model = scripted("1", "2", "3", "4", "5", "6", cache=InMemoryCache())
    answers = [
        model.invoke("x"),
        model.invoke("x"),
        model.invoke("x", temperature=0.5),
        model.invoke("x", stop=["y"]),
        model.bind_tools([add]).invoke("x"),
        model.model_copy(update={"seed": 3}).invoke("x"),
        model.invoke("x"),
    ]
    assert [answer.content for answer in answers] == ["1", "1", "2", "3", "4", "5", "1"]


def test_traces_tell_model_and_parameters() -> None:
    model = scripted("x", temperature=0.5, max_tokens=7, stop=["a"])
    params = model._get_ls_params(stop=["b"], temperature=0.1)
    assert params["ls_provider"] == "specdec"
    assert params["ls_model_name"] == model.model_name == "scripted"
    assert params["ls_model_type"] == "chat"
    assert (params["ls_temperature"], params["ls_max_tokens"], params["ls_stop"]) == (0.1, 7, ["a", "b"])


@needs_profiles
def test_the_profile_tells_limits_and_forms() -> None:
    profile = scripted("x", max_tokens=7).profile
    assert profile is not None
    assert (profile["max_input_tokens"], profile["max_output_tokens"]) == (4096 - 7, 7)
    assert profile["structured_output"]


def test_chunks_reach_callbacks_with_their_tokens_once() -> None:
    counter = Counter()
    list(scripted("abc").stream("x", {"callbacks": [counter]}))
    assert counter.tokens == ["a", "b", "c", ""]
    assert [t.drafted for chunk in counter.chunks for t in getattr(chunk, "tokens", ())] == [False, True, False]


async def test_streams_in_an_event_loop() -> None:
    model = scripted(QWEN_CALLS, template=QWEN, width=5).bind_tools([weather, add])
    chunks: list[Any] = [chunk async for chunk in model.astream("x")]
    assert sum(len(chunk.tool_call_chunks) for chunk in chunks) == 2
    assert json.loads(chunks[-2].tool_call_chunks[0]["args"] or "") == {"a": 1, "b": 2}
    assert [bool((chunk.usage_metadata or {}).get("input_tokens")) for chunk in chunks].count(True) == 1


def test_closing_a_stream_stops_its_completion(backend: LocalBackend) -> None:
    stream: Any = ChatSpeculative(backend=backend, max_new_tokens=400, ignore_eos=True).stream("x")
    next(stream)
    stream.close()
    assert is_idle(backend)


async def test_cancelling_a_task_stops_its_completion(backend: LocalBackend) -> None:
    model = ChatSpeculative(backend=backend, max_new_tokens=400, ignore_eos=True)
    task = asyncio.create_task(model.ainvoke("x"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_idle(backend)


def test_a_call_past_its_time_is_stopped(backend: LocalBackend) -> None:
    model = ChatSpeculative(backend=backend, max_new_tokens=450, ignore_eos=True, timeout=0.001)
    with pytest.raises(CompletionTimeoutError, match=r"longer than timeout=0.001 seconds"):
        model.invoke("x")
    with pytest.raises(TimeoutError):
        list(model.stream("x"))
    with pytest.raises(CompletionTimeoutError):
        asyncio.run(model.ainvoke("x"))
    assert is_idle(backend)


def test_batches_answer_as_single_calls_do(backend: LocalBackend) -> None:
    model = ChatSpeculative(backend=backend, max_new_tokens=12, temperature=1.0, seed=5)
    questions = ["a", "b <|im_end|>", "c c c"]
    alone = [model.invoke(question).content for question in questions]
    assert [answer.content for answer in model.batch(questions)] == alone
    mixed = model.batch(["a", [HumanMessage([{"type": "audio"}])]], return_exceptions=True)
    assert mixed[0].content == alone[0]
    assert isinstance(mixed[1], InvalidParameterError)


def test_the_next_turn_reuses_all_of_the_last(backend: LocalBackend) -> None:
    model = ChatSpeculative(backend=backend, chat_template=CHATML, max_new_tokens=8)
    # What a random model writes is no text, so its answer is not re-read as the same tokens; the prompt is.
    first = model.invoke("Tell me about lighthouses.")
    second = model.invoke([HumanMessage("Tell me about lighthouses."), first, HumanMessage("And ships?")])
    assert first.usage_metadata is not None
    assert second.usage_metadata is not None
    assert second.usage_metadata["input_token_details"]["cache_read"] >= first.usage_metadata["input_tokens"]


def test_from_model_id_checks_before_it_loads(tmp_path: Any) -> None:
    with pytest.raises(InvalidParameterError, match="temperature must be"):
        ChatSpeculative.from_model_id(tmp_path / "nothing", temperature=-1)
    with pytest.raises(InvalidParameterError, match="Unknown parameter 'colour'"):
        ChatSpeculative.from_model_id(tmp_path / "nothing", colour="red")  # type: ignore[call-arg]
    with pytest.raises(UnsupportedModelError, match="has no chat template"):
        ChatSpeculative.from_model_id(tiny_model(), tokenizer=chat_tokenizer(None), num_slots=1, max_length=64)


def test_an_agent_runs_a_loop_of_two_tools() -> None:
    agents = pytest.importorskip("langchain.agents")
    model = scripted(
        '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"place": "Ulm"}}\n</tool_call>',
        "Five, and rain.",
        template=QWEN,
    )
    agent = agents.create_agent(model, tools=[add, weather], system_prompt="Use the tools.")
    state = agent.invoke({"messages": [HumanMessage("2 + 3, and the weather of Ulm?")]})
    results = [message.content for message in state["messages"] if isinstance(message, ToolMessage)]
    assert results == ["5", "It rains in Ulm."]
    assert state["messages"][-1].content == "Five, and rain."
    assert "It rains in Ulm." in scripted_backend(model).prompt


def test_copies_share_the_backend_and_have_their_own_template(backend: LocalBackend) -> None:
    model = ChatSpeculative(backend=backend, max_new_tokens=4)
    answer = model.invoke("x").content
    assert copy.deepcopy(model).invoke("x").content == answer
    assert model.model_copy(deep=True).backend is backend
    other = model.model_copy(update={"chat_template": MISTRAL})
    assert other._identifying_params != model._identifying_params
    assert other.get_num_tokens_from_messages([HumanMessage("x")]) < model.get_num_tokens_from_messages(
        [HumanMessage("x")]
    )
    configured = model.configurable_fields(max_new_tokens=ConfigurableField(id="n")).with_config(configurable={"n": 1})
    usage = configured.invoke("x").usage_metadata
    assert usage is not None
    assert usage["output_tokens"] == 1


@needs_profiles
def test_copies_need_no_profile() -> None:
    """langchain-core 1.0 has none."""
    model = scripted("It rains.")
    del model.__dict__["profile"]
    assert not hasattr(model, "profile")
    assert model.model_copy(update={"max_new_tokens": 4}).max_new_tokens == 4
    assert model.bind(stop=["x"]).invoke("x").text == "It rains."


def test_a_form_of_calls_is_what_the_parser_reads() -> None:
    class Inner(BaseModel):
        x: int

    class Outer(BaseModel):
        """Nested."""

        inner: Inner

    nested = {**convert_to_openai_tool(add), "function": {"name": "Outer", "parameters": Outer.model_json_schema()}}
    tools = [convert_to_openai_tool(add), nested]
    for parser in (HermesParser, GenericParser, LlamaParser, MistralParser):
        form = form_of_calls(tools, parser, Backend.check_grammar)
        names = [call["properties"]["name"]["const"] for call in form.schema["anyOf"]]
        assert names == ["add", "Outer"]
        references = re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(form.schema))
        assert set(references) == set(form.schema["$defs"]) == {"tool1_Inner"}
        key = "parameters" if parser is LlamaParser else "arguments"
        for good in ({"name": "add", key: {"a": 1, "b": 2}}, {"name": "Outer", key: {"inner": {"x": 1}}}):
            reader = parser({"add": {}, "Outer": {}})
            pieces = reader.feed(form.begin + json.dumps(good) + form.end) + reader.close()
            assert [(p.name, p.arguments) for p in pieces if isinstance(p, ToolCall)] == [(good["name"], good[key])]


def test_a_response_format_becomes_a_schema() -> None:
    schema = Person.model_json_schema()
    described = {"type": "json_schema", "json_schema": {"name": "Person", "schema": schema}}
    assert form_of_response(described) == OutputForm(schema)
    assert form_of_response({"type": "json_object"}) == OutputForm({"type": "object"})
    assert form_of_response({"type": "text"}) is form_of_response(None) is None
    for wrong in ("json", {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}):
        with pytest.raises(InvalidParameterError, match="response_format must be"):
            form_of_response(wrong)


def test_closing_closes_the_backend() -> None:
    with scripted("x") as model:
        other = model.model_copy(update={"temperature": 0.3})
    assert scripted_backend(other).is_closed


async def test_a_concurrency_that_runs_nothing_is_refused() -> None:
    model = scripted("x")
    for limit in (0, -1, "2"):
        config: Any = {"max_concurrency": limit}
        with pytest.raises(InvalidParameterError, match="max_concurrency must be a whole number from 1"):
            model.batch(["a", "b"], config)
        with pytest.raises(InvalidParameterError, match="max_concurrency must be a whole number from 1"):
            await model.abatch(["a", "b"], config, return_exceptions=True)
    assert [answer.text for answer in await model.abatch(["a", "b"], {"max_concurrency": 1})] == ["x", "x"]


def _example(name: str) -> Any:
    path = Path(__file__).resolve().parents[3] / "docs" / "examples" / f"{name}.py"
    return runpy.run_path(str(path), run_name="example")["main"]


def test_the_example_of_an_agent_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("langchain")
    model = scripted(
        '<tool_call>\n{"name": "stock", "arguments": {"item": "lens"}}\n</tool_call>',
        '<tool_call>\n{"name": "price", "arguments": {"item": "lens", "count": 3}}\n</tool_call>',
        "Three, for 720.",
        template=QWEN,
    )
    assert _example("agent")(model) == "Three, for 720."
    assert "tool: 720.0" in capsys.readouterr().out


def test_the_example_of_retrieval_runs() -> None:
    model = scripted("An answer.")
    assert _example("rag")(model) == ["An answer."] * 2
    prompts = {scripted_backend(model).tokenizer.decode(request.prompt) for request in scripted_backend(model).requests}
    assert sum("John Smeaton finished" in prompt for prompt in prompts) >= 1


def test_the_example_of_extraction_runs() -> None:
    model = scripted('{"builder": "John Smeaton", "place": "Eddystone Rocks", "year": 1759}')
    assert _example("extract")(model).year == 1759
