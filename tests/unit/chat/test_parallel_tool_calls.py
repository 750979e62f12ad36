"""`parallel_tool_calls=False`: an answer ends after its first call, and nothing is decoded after it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import pytest
import torch
from langchain_core.tools import StructuredTool

from langchain_specdec import ChatSpeculative, Grammar, LocalBackend, SamplingParams, TGIBackend
from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.calls_or_object import CallsFirst, CallsOrObjectForm, form_of_calls_or_object
from langchain_specdec.chat.schemas import as_tool
from langchain_specdec.chat.structured_output import form_of_response
from langchain_specdec.chat.tool_calls import GenericParser, HermesParser, LlamaParser, MistralParser, ToolCall
from langchain_specdec.completions.completion import CompletionRequest, collect
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import GenerationError, InvalidParameterError
from langchain_specdec.grammar.call_grammar import CallGrammar
from langchain_specdec.grammar.text_check import TextCheck
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.clients import CLIENTS
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread
from tests.support.backends import Counter, is_idle, lasting, scripted, scripted_backend
from tests.support.chat_templates import LLAMA, QWEN, TEMPLATES, chat_tokenizer
from tests.support.tiny_models import tiny_model
from tests.support.tools import weather


def as_json(place: Any, key: str = "arguments") -> str:
    return json.dumps({"name": "weather", key: {"place": place}})


def tagged(place: Any) -> str:
    return f"<tool_call>\n{as_json(place)}\n</tool_call>"


ULM, BONN = as_json("Ulm"), as_json("Bonn")
ULM_LLAMA, BONN_LLAMA = as_json("Ulm", "parameters"), as_json("Bonn", "parameters")
BROKEN = '{"name": "weather", "arguments": 5}'
# Up to the end of the first call, and what comes after it; by family.
ANSWERS = [
    ("qwen", tagged("Ulm"), "\n" + tagged("Bonn")),
    ("qwen", "Let me see.\n" + tagged("Ulm"), " I called, and tell the rest."),
    ("qwen", f"<tool_call>[{ULM}", f", {BONN}]</tool_call>"),
    ("qwen", f"<tool_call>\n{BROKEN}\n</tool_call>", tagged("Bonn")),
    ("chatml", f"<tool_call>[{ULM}", f", {BONN}]</tool_call>"),
    ("chatml", tagged("Ulm"), tagged("Bonn")),
    ("chatml", ULM, "\n" + BONN),
    ("chatml", f"Hm.\n[{ULM}", f",\n {BONN}]"),
    ("chatml", f"```json\n{ULM}", f"\n{BONN}\n```"),
    ("mistral", f"[TOOL_CALLS][{ULM}", f", {BONN}]"),
    ("mistral", f"Hm. [TOOL_CALLS] [ {ULM}", "] and text"),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"place": "Ulm"}', '[TOOL_CALLS]weather[ARGS]{"place": "Bonn"}'),
    ("llama", ULM_LLAMA, f"; {BONN_LLAMA}"),
    ("llama", f"<|python_tag|>{ULM_LLAMA}", f"; {BONN_LLAMA}"),
    ("llama", f"<|python_tag|>[{ULM_LLAMA}", f", {BONN_LLAMA}]"),
    ("llama", "Hm.\n" + ULM_LLAMA, "\nI called."),
]
# As the tokens of the tests' tokenizers, which are bytes and marks.
WIDTHS = [1, 4, 1000]


def asked(family: str, answer: str, *, width: int = 1, **options: Any) -> Any:
    model: Any = scripted(answer, template=TEMPLATES[family], width=width, seed=7)
    return model.bind_tools([weather], **options)


async def answers(model: Any) -> list[Any]:
    """The message by each way to ask."""
    return [
        model.invoke("x"),
        await model.ainvoke("x"),
        reduce(add, model.stream("x")),
        reduce(add, [chunk async for chunk in model.astream("x")]),
        *model.batch(["x", "x"]),
        *await model.abatch(["x", "x"]),
        model.invoke("x", config={"callbacks": [Counter()]}, stream=True),
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("family", "first", "rest"), ANSWERS)
async def test_an_answer_ends_with_its_first_call(family: str, first: str, rest: str, width: int) -> None:
    model = asked(family, first + rest, width=width, parallel_tool_calls=False)
    num_tokens = len(scripted_backend(model).tokenizer(first, add_special_tokens=False).input_ids)
    for message in await answers(model):
        calls = [call["args"] for call in message.tool_calls]
        if BROKEN in first:
            assert (calls, len(message.invalid_tool_calls)) == ([], 1)
        else:
            assert (calls, message.invalid_tool_calls) == ([{"place": "Ulm"}], [])
        assert message.text == re.split(r"\s*(?:<tool|\[TOOL|\[?\{|<\||```)", first)[0]
        assert message.response_metadata["finish_reason"] == "stop_sequence"
        assert message.usage_metadata["output_tokens"] == num_tokens


@pytest.mark.parametrize("option", [None, True])
@pytest.mark.parametrize("family", TEMPLATES)
def test_otherwise_it_holds_as_many_as_the_model_writes(family: str, option: Any) -> None:
    first, rest = next((first, rest) for name, first, rest in ANSWERS if name == family)
    message = asked(family, first + rest, parallel_tool_calls=option).invoke("x")
    assert [call["args"] for call in message.tool_calls] == [{"place": "Ulm"}, {"place": "Bonn"}]
    assert message.response_metadata["finish_reason"] == "eos_token"


def test_text_without_calls_and_a_cut_call_are_as_ever() -> None:
    message = asked("qwen", "It rains. {}", parallel_tool_calls=False).invoke("x")
    assert (message.text, message.response_metadata["finish_reason"]) == ("It rains. {}", "eos_token")
    model = asked("qwen", tagged("Ulm") + tagged("Bonn"), parallel_tool_calls=False)
    scripted_backend(model).finish_reason = "length"
    message = model.invoke("x", max_tokens=30)
    assert message.response_metadata["finish_reason"] == "length"
    assert "max_new_tokens=30" in message.invalid_tool_calls[0]["error"]


def test_a_call_that_the_last_token_completes_is_whole() -> None:
    model = asked("llama", ULM_LLAMA + "; " + BONN_LLAMA, parallel_tool_calls=False)
    message = model.invoke("x", max_tokens=len(ULM_LLAMA))
    assert [call["args"] for call in message.tool_calls] == [{"place": "Ulm"}]
    assert message.response_metadata["finish_reason"] == "stop_sequence"


@pytest.mark.parametrize("option", [None, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_list_that_begins_with_no_call_is_text(width: int, option: bool | None) -> None:
    text = f'[\n  {{"name": "Ulm"}},\n  {ULM_LLAMA}\n]\nThese two.'
    message = asked("llama", text, width=width, parallel_tool_calls=option).invoke("x")
    assert (message.text, message.tool_calls, message.invalid_tool_calls) == (text, [], [])


@pytest.mark.parametrize("value", ["no", 0, 1, [], {"enabled": False}])
def test_other_values_are_refused(value: Any) -> None:
    message = r"parallel_tool_calls must be True or None .* or False .*, got "
    with pytest.raises(InvalidParameterError, match=message):
        asked("qwen", "x", parallel_tool_calls=value)
    model = asked("qwen", "x")
    with pytest.raises(InvalidParameterError, match=message):
        model.invoke("x", parallel_tool_calls=value)
    assert scripted_backend(model).requests == []


def test_it_can_be_given_per_call_and_without_tools() -> None:
    text = tagged("Ulm") + tagged("Bonn")
    assert len(asked("qwen", text).invoke("x", parallel_tool_calls=False).tool_calls) == 1
    assert scripted(text, template=QWEN).invoke("x", parallel_tool_calls=False).text == text
    assert asked("qwen", text, tool_choice="none", parallel_tool_calls=False).invoke("x").tool_calls == []


def check_of(model: Any) -> TextCheck:
    """Checks texts against the grammar of the last request."""
    grammar = scripted_backend(model).requests[-1].params.grammar
    assert grammar is not None
    return TextCheck(grammar)


SEVERAL_FORCED = {
    "qwen": f"{ULM}\n</tool_call>\n<tool_call>\n{BONN}\n</tool_call>",
    "chatml": f"{ULM}, {BONN}]</tool_call>",
    "mistral": f"{ULM}, {BONN}]",
}


@pytest.mark.parametrize("option", [None, True])
@pytest.mark.parametrize("choice", ["any", "required", True])
@pytest.mark.parametrize(("family", "text"), SEVERAL_FORCED.items())
async def test_a_forced_answer_may_have_several_calls(family: str, text: str, choice: Any, option: Any) -> None:
    model = asked(family, text, tool_choice=choice, parallel_tool_calls=option)
    for message in await answers(model):
        assert [call["args"] for call in message.tool_calls] == [{"place": "Ulm"}, {"place": "Bonn"}]
        assert (message.text, message.invalid_tool_calls) == ("", [])
    check = check_of(model)
    assert check.fit(text).is_whole
    # The model writes the end itself, and ends there or goes on.
    assert not check.fit(ULM).is_whole


@pytest.mark.parametrize("options", [{"tool_choice": "weather"}, {"tool_choice": "any", "parallel_tool_calls": False}])
def test_one_call_is_forced_by_name_and_where_one_is_asked_for(options: dict[str, Any]) -> None:
    model = asked("qwen", ULM, **options)
    assert len(model.invoke("x").tool_calls) == 1
    check = check_of(model)
    assert check.fit(ULM).is_whole
    assert not check.fit(f"{ULM}\n</tool_call>").is_begun


def test_a_response_of_an_agent_is_one_call() -> None:
    """An agent takes two for an error, and would ask again without end."""
    response = StructuredTool(name="Sky", description="The sky.", args_schema={"type": "object", "properties": {}})
    for tools, option, is_one in (
        ([weather], None, False),
        ([weather, response], None, True),
        ([response], True, False),
    ):
        model: Any = scripted(ULM, template=QWEN)
        bound = model.bind_tools(tools, tool_choice="any", parallel_tool_calls=option)
        bound.invoke("x")
        grammar = scripted_backend(bound).requests[-1].params.grammar
        assert isinstance(grammar, CallGrammar) != is_one


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_forced_call_is_one_call(family: str) -> None:
    text = ULM_LLAMA if family == "llama" else ULM
    model = asked(family, text, tool_choice="any", parallel_tool_calls=False)
    for message in (model.invoke("x"), reduce(add, model.stream("x"))):
        assert [call["args"] for call in message.tool_calls] == [{"place": "Ulm"}]
        assert message.response_metadata["finish_reason"] == "eos_token"


@pytest.mark.parametrize("parser", [HermesParser, GenericParser, MistralParser, LlamaParser])
def test_beside_a_response_format_the_grammar_has_one_call(parser: Any) -> None:
    response = form_of_response({"type": "json_schema", "json_schema": {"schema": {"type": "object"}}})
    assert response is not None
    several = form_of_calls_or_object(response, [as_tool(weather)], parser, Backend.check_grammar)
    one = form_of_calls_or_object(response, [as_tool(weather)], parser, Backend.check_grammar, takes_one_call=True)
    assert isinstance(one, CallsOrObjectForm)
    assert (several.separator, one.separator) == (parser.call_separator, None)


@pytest.mark.parametrize("size", [1, 1000])
def test_what_looks_like_a_call_within_an_object_ends_nothing(size: int) -> None:
    text = json.dumps({"example": tagged("Ulm")}).replace("\\", "")
    parser = HermesParser({"weather": {}})
    parser.expect_one_call()
    reader = CallsFirst(parser)
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(str(piece) for chunk in chunks for piece in reader.feed(chunk)) == text
    assert not reader.is_done


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_parser_gives_one_call_however_the_text_is_cut(size: int) -> None:
    kinds: dict[str, Any] = {
        "qwen": HermesParser,
        "chatml": GenericParser,
        "mistral": MistralParser,
        "llama": LlamaParser,
    }
    for family, first, rest in ANSWERS:
        parser = kinds[family]({"weather": {}})
        parser.expect_one_call()
        chunks = [(first + rest)[start : start + size] for start in range(0, len(first + rest), size)]
        pieces = [piece for chunk in chunks for piece in parser.feed(chunk)]
        assert parser.is_done
        assert [*parser.feed(first), *parser.close()] == []
        calls = [piece for piece in pieces if not isinstance(piece, str)]
        assert len(calls) == 1
        assert isinstance(calls[0], ToolCall) == (BROKEN not in first)
        assert pieces[-1] is calls[0]


@pytest.fixture(scope="module", params=["auto", "none"])
def backend(request: pytest.FixtureRequest) -> Iterator[LocalBackend]:
    tokenizer = chat_tokenizer()
    model = tiny_model(2, dtype=torch.float64, vocab_size=len(tokenizer), max_position_embeddings=2048)
    options: dict[str, Any] = {"num_slots": 2, "max_length": 1024, "dtype": torch.float64, "step_cost": StepCost.flat()}
    with lasting(LocalBackend(model, tokenizer, drafter=request.param, **options)) as backend:
        yield backend


def test_the_engine_decodes_nothing_after_the_call(backend: LocalBackend) -> None:
    """Also where the text after it is drafted and forced."""
    first, rest = ULM_LLAMA, "; " + BONN_LLAMA
    grammar = Grammar(regex=re.escape(first + rest))
    model: Any = ChatSpeculative(backend=backend, chat_template=LLAMA, max_new_tokens=300, grammar=grammar)
    both = model.bind_tools([weather]).invoke("x")
    assert len(both.tool_calls) == 2
    one = model.bind_tools([weather], parallel_tool_calls=False)
    for message in (one.invoke("x"), *one.batch(["x", "y", "z"]), reduce(add, one.stream("x"))):
        assert [call["args"] for call in message.tool_calls] == [{"place": "Ulm"}]
        assert message.text == ""
        num_tokens = message.usage_metadata["output_tokens"]
        assert num_tokens <= len(first) < both.usage_metadata["output_tokens"]
        assert message.response_metadata["speculation"]["num_steps"] <= num_tokens
        assert message.response_metadata["finish_reason"] == "stop_sequence"
        assert is_idle(backend)


def test_beside_a_response_format_the_engine_ends_after_one_call(backend: LocalBackend) -> None:
    tokenizer = backend.tokenizer
    mark = tokenizer("<tool_call>", add_special_tokens=False).input_ids[0]
    model: Any = ChatSpeculative(backend=backend, chat_template=QWEN, max_new_tokens=200, logit_bias={mark: 100.0})
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {}}}}
    message = model.bind_tools([weather], response_format=form, parallel_tool_calls=False).invoke("x")
    assert len(message.tool_calls) == 1
    assert is_idle(backend)


@pytest.mark.server
@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_is_asked_no_further(client: str) -> None:
    first, rest = "Hm. " + tagged("Ulm"), "\n" + tagged("Bonn") + " Done." * 50
    limits = Limits(max_concurrent_requests=1, max_input_tokens=900, max_total_tokens=2048)
    with ServerThread(FakeModel(answer=first + rest), limits) as server:
        server.set_faults("slow:seconds=0.001")
        backend = TGIBackend(server.url, client=client, tokenizer=chat_tokenizer(QWEN))
        with ChatSpeculative(backend=backend, max_new_tokens=600) as chat:
            model = chat.bind_tools([weather], parallel_tool_calls=False)
            # One request at a time: each begins only once the one before has ended.
            messages = [model.invoke("x"), asyncio.run(model.ainvoke("x")), *model.batch(["x", "x"])]
            messages.append(reduce(add, model.stream("x")))
        for message in messages:
            assert (message.text, [call["args"] for call in message.tool_calls]) == ("Hm.", [{"place": "Ulm"}])
            assert message.response_metadata["finish_reason"] == "stop_sequence"
            assert message.usage_metadata is not None
            assert message.usage_metadata["output_tokens"] == len(first)
            assert message.usage_metadata["input_tokens"] > 0


def test_a_check_that_fails_harms_nobody_else(backend: LocalBackend) -> None:
    def make_end_check() -> Any:
        def fail(text: str) -> bool:
            raise ValueError(text)

        return fail

    params = SamplingParams(max_new_tokens=8)
    failing = CompletionRequest("x", params, make_end_check=make_end_check)
    streams = backend.start([failing, CompletionRequest("x", params)])
    with pytest.raises(GenerationError):
        list(streams[0])
    assert collect(streams[1]).tokens
    assert is_idle(backend)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_schema_beside_tools_takes_it_too(width: int) -> None:
    model: Any = scripted(tagged("Ulm") + "\n" + tagged("Bonn"), template=QWEN, width=width)
    schema = {"title": "Sky", "type": "object", "properties": {"rains": {"type": "boolean"}}}
    structured = model.with_structured_output(schema, tools=[weather], include_raw=True, parallel_tool_calls=False)
    assert [call["args"] for call in structured.invoke("x")["raw"].tool_calls] == [{"place": "Ulm"}]
