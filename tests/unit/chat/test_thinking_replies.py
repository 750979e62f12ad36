"""What a model thinks is told apart from what it answers and calls, however it is asked, and forms come after it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import pytest
import torch
from langchain_core.messages import ToolMessage
from pydantic import BaseModel, Field

from langchain_specdec import ChatSpeculative, Grammar, LocalBackend
from langchain_specdec.chat.reasoning_options import REASONING_OPTIONS
from langchain_specdec.chat.replies import ReplyReader
from langchain_specdec.chat.tool_calls import HermesParser
from langchain_specdec.cli.generate import _request
from langchain_specdec.cli.options import Given
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.sampling.params import SamplingParams
from tests.support.backends import EchoBackend, lasting, scripted, scripted_backend
from tests.support.langchain_versions import needs_events_v3
from tests.support.scripted_agents import call, forced_call
from tests.support.thinking import (
    GEMMA4,
    GRANITE,
    MINISTRAL,
    QWEN3,
    QWEN35,
    QWEN_THINKING,
    thinking,
    thinking_tokenizer,
)
from tests.support.tiny_models import tiny_model
from tests.support.tool_templates import HARMONY
from tests.support.tools import weather

pytestmark = pytest.mark.transformers

THOUGHT = "I could write <tool_call> or { here."
# How families write it, after prompts that begin the thought, or not.
WRITTEN = {
    "qwen3": (QWEN3, f"<think>\n{THOUGHT}\n</think>\n\n"),
    "qwen3.5": (QWEN35, f"{THOUGHT}\n</think>\n\n"),
    "granite": (GRANITE, f"<think>{THOUGHT}</think>\n<response>"),
    "ministral": (MINISTRAL, f"[THINK]{THOUGHT}[/THINK]"),
    "gemma4": (GEMMA4, f"<|channel>thought\n{THOUGHT}<channel|>"),
}


class Sky(BaseModel):
    """The sky."""

    colour: str = Field(max_length=20)


SKY = '{"colour": "blue"}'


def asked(model: Any, way: str) -> Any:
    """The answer, asked for in some way."""
    if way == "invoke":
        return model.invoke("x")
    if way == "ainvoke":
        return asyncio.run(model.ainvoke("x"))
    if way == "stream":
        return reduce(add, model.stream("x"))
    stream = model.stream_events("x", version="v3")
    list(stream)
    return stream.output


@pytest.mark.parametrize("width", [1, 7])
@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", pytest.param("events", marks=needs_events_v3)])
@pytest.mark.parametrize("family", WRITTEN)
def test_a_thought_is_told_apart_however_it_is_asked_for(family: str, way: str, version: str, width: int) -> None:
    template, begun = WRITTEN[family]
    model = thinking(f"{begun}It is blue.", template=template, width=width, output_version=version)
    answer = asked(model, way)
    assert answer.text == "It is blue."
    blocks = [{key: block[key] for key in block if key != "index"} for block in answer.content_blocks]
    assert blocks == [{"type": "reasoning", "reasoning": THOUGHT}, {"type": "text", "text": "It is blue."}]
    assert (answer.content == "It is blue.") == (version == "v0" and way != "events")
    if way != "events":
        assert answer.additional_kwargs == {"reasoning_content": THOUGHT}
    details = answer.usage_metadata["output_token_details"]
    assert len(THOUGHT) - len("<tool_call>") <= details["reasoning"] < answer.usage_metadata["output_tokens"] - 10


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_a_call_at_the_end_of_a_thought_that_was_not_ended_is_meant(version: str) -> None:
    """As reported of Qwen3.5, which then ends its turn: a client would be left without an answer and without a call."""
    mentioned, meant = call("weather", place="Bonn"), call("weather", place="Ulm")
    text = f"First {mentioned} comes to mind. No: {meant}"

    def called(written: str, reason: Any = "eos_token") -> list[list[Any]]:
        model = thinking(written, output_version=version)
        scripted_backend(model).finish_reason = reason
        answers = [asked(model.bind_tools([weather]), way) for way in ("invoke", "stream")]
        assert all(answer.text == "" and answer.additional_kwargs["reasoning_content"] for answer in answers)
        return [[each["args"] for each in answer.tool_calls] for answer in answers]

    assert called(text) == [[{"place": "Ulm"}]] * 2
    assert called(f"Hm.</think>\n<think>{meant}\n{mentioned}") == [[{"place": "Ulm"}, {"place": "Bonn"}]] * 2
    for other in (f"{text} I wonder.", f"{text}</think>"):
        assert called(other) == [[]] * 2
    assert called(text, "length") == [[]] * 2


@needs_events_v3
def test_events_of_v3_have_the_reasoning() -> None:
    stream = thinking(f"{THOUGHT}\n</think>\n\nBlue.").stream_events("x", version="v3")
    assert "".join(stream.reasoning) == THOUGHT
    assert "".join(stream.text) == "Blue."


def test_a_thought_that_never_ends_is_no_answer() -> None:
    model = thinking("Two and two make")
    scripted_backend(model).finish_reason = "length"
    answer = model.invoke("x")
    assert (answer.text, answer.additional_kwargs["reasoning_content"]) == ("", "Two and two make")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_token_details"]["reasoning"] == answer.usage_metadata["output_tokens"]


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_several_thoughts_stand_in_order(version: str) -> None:
    text = f"One.</think>Let me see. <think>Two.</think>{call('weather', place='Ulm')}"
    model = thinking(text, output_version=version)
    whole, streamed = (asked(model.bind_tools([weather]), way) for way in ("invoke", "stream"))
    for answer in (whole, streamed):
        assert answer.additional_kwargs["reasoning_content"] == "One.\n\nTwo."
        assert [each["args"] for each in answer.tool_calls] == [{"place": "Ulm"}]
        assert answer.text == "Let me see."
    if version == "v1":
        assert [block["type"] for block in whole.content] == ["reasoning", "text", "reasoning", "tool_call"]
        assert [block.get("reasoning") for block in streamed.content_blocks][::2] == ["One.", "Two."]


def test_a_call_that_is_only_mentioned_in_a_thought_is_none() -> None:
    mentioned = call("weather", place="Bonn")
    model = thinking(f"Not {mentioned}, but Ulm.</think>\n\n{call('weather', place='Ulm')}")
    for option in (None, False):
        answer = asked(model.bind_tools([weather], parallel_tool_calls=option), "invoke")
        assert [each["args"] for each in answer.tool_calls] == [{"place": "Ulm"}]
        assert mentioned in answer.additional_kwargs["reasoning_content"]


def test_marks_within_a_call_are_part_of_it() -> None:
    answer = thinking(f"Hm.</think>{call('weather', place='<think>Ulm</think>')}").bind_tools([weather]).invoke("x")
    assert answer.tool_calls[0]["args"] == {"place": "<think>Ulm</think>"}


def test_an_answer_ends_after_its_first_call_and_not_within_a_thought() -> None:
    first, rest = call("weather", place="Ulm"), call("weather", place="Bonn")
    model = thinking(f"Not {rest}.</think>{first}{rest}", width=5)
    answer = asked(model.bind_tools([weather], parallel_tool_calls=False), "stream")
    assert [each["args"] for each in answer.tool_calls] == [{"place": "Ulm"}]
    assert answer.response_metadata["finish_reason"] == "stop_sequence"


def test_stop_strings_count_in_the_answer_unless_asked_for() -> None:
    text = "One. Two.</think>\n\nThree. Four."
    assert thinking(text).invoke("x", stop=["."]).text == "Three"
    answer = thinking(text).invoke("x", stop=["."], stop_in_reasoning=True)
    assert (answer.text, answer.additional_kwargs["reasoning_content"]) == ("", "One")
    model = thinking(text, stop=["."], stop_in_reasoning=True)
    assert model.invoke("x").text == ""
    assert model.invoke("x", stop_in_reasoning=False).text == "Three"


def test_models_that_write_no_thoughts_count_none() -> None:
    answer = scripted("Blue <think>.").invoke("x")
    assert answer.text == "Blue <think>."
    assert "output_token_details" not in (answer.usage_metadata or {})


@pytest.mark.one_version
@pytest.mark.parametrize("seed", range(200))
def test_no_reply_raises(seed: int) -> None:
    """Whatever is written, in whatever steps, and cut wherever: the same message, whole and in chunks."""
    rng = random.Random(seed)
    scraps = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        '{"name": "weather", "arguments": {}}',
        "\n",
        " a",
        "<",
        "th",
    ]
    tokens = [Token(n, rng.choice(scraps)[: rng.choice([1, 3, 99])], False) for n in range(rng.randrange(14))]
    reason: Any = rng.choice(["eos_token", "length", "stop_sequence"])
    how = Thoughts(("<think>",), "</think>", is_open=rng.random() < 0.5)

    def events(width: int) -> list[Any]:
        steps: list[Any] = [TokenEvent(tuple(tokens[i : i + width])) for i in range(0, len(tokens), width)]
        return [*steps, FinishEvent(reason, 3, len(tokens), 0)]

    def reader() -> ReplyReader:
        return ReplyReader(lambda: "m", HermesParser({"weather": {}}), None, SamplingParams(), thoughts=how)

    whole: Any = reader().generation(events(1)).message
    found = whole.text, whole.additional_kwargs, [each["args"] for each in whole.tool_calls], whole.usage_metadata
    for width in (1, 2, 5, 99):
        own = reader()
        chunks = [chunk.message for event in events(width) for chunk in own.chunks(event)]
        merged: Any = reduce(add, chunks)
        calls = [each["args"] for each in merged.tool_calls]
        assert (merged.text, merged.additional_kwargs, calls) == found[:3]
        assert merged.usage_metadata["output_token_details"] == whole.usage_metadata["output_token_details"]


# -- forms of answers


def limits(model: Any) -> Thoughts:
    how = scripted_backend(model).requests[-1].thoughts
    assert how is not None
    return how


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("template", [QWEN3, QWEN35, QWEN_THINKING])
def test_structured_answers_come_after_the_thought(template: str, method: Any) -> None:
    is_call = method == "function_calling"
    arguments = forced_call("Sky", colour="blue") if is_call else SKY
    model = thinking(f"{THOUGHT}\n</think>\n\n{'<tool_call>' * is_call}\n{arguments}", template=template)
    answer = model.with_structured_output(Sky, method=method, include_raw=True).invoke("x")
    assert answer["parsed"] == Sky(colour="blue")
    assert answer["raw"].additional_kwargs["reasoning_content"] == THOUGHT
    # The prompt ends where the thought begins, and the form's fixed text is written after it.
    assert scripted_backend(model).prompt.endswith("<|im_start|>assistant\n<think>\n")
    how = limits(model)
    assert how.following == "\n\n<tool_call>\n" if is_call else "\n\n"
    assert how.closing == "\n</think>"
    assert how.is_single
    assert how.max_tokens == 128


def test_a_form_comes_at_once_where_the_model_does_not_think() -> None:
    model = thinking(SKY, forced_call("Sky", colour="blue"))
    assert model.with_structured_output(Sky, reasoning=False).invoke("x") == Sky(colour="blue")
    assert scripted_backend(model).prompt.endswith("<think>\n\n</think>\n\n")
    forced = model.bind_tools([Sky], tool_choice="any", reasoning=False).invoke("x")
    assert [each["args"] for each in forced.tool_calls] == [{"colour": "blue"}]
    assert scripted_backend(model).prompt.endswith("</think>\n\n<tool_call>\n")
    assert all(request.thoughts is None for request in scripted_backend(model).requests)


def test_a_model_that_its_system_message_tells_to_think_does_so_before_a_form() -> None:
    """Ministral's templates have no switch, and a system message that stands unless there is another one."""
    model = thinking(f"{THOUGHT}[/THINK]{SKY}", SKY, f"{THOUGHT}[/THINK]{SKY}", template=MINISTRAL)
    answer = model.with_structured_output(Sky, include_raw=True).invoke("x")
    assert answer["parsed"] == Sky(colour="blue")
    assert answer["raw"].additional_kwargs["reasoning_content"] == THOUGHT
    assert scripted_backend(model).prompt.endswith("[/INST][THINK]")
    # Another one takes its place, and says nothing of thoughts; or asks for them itself.
    of_one_s_own = [("system", "Be brief."), ("human", "x")]
    assert model.with_structured_output(Sky).invoke(of_one_s_own) == Sky(colour="blue")
    assert scripted_backend(model).prompt.endswith("[/INST]")
    assert scripted_backend(model).requests[-1].thoughts is None
    assert model.with_structured_output(Sky, reasoning=True).invoke(of_one_s_own) == Sky(colour="blue")
    assert scripted_backend(model).prompt.endswith("[/INST][THINK]")
    forced = thinking(f"{THOUGHT}[/THINK]<tool_call>[{forced_call('weather', place='Ulm')}", template=MINISTRAL)
    called = forced.bind_tools([weather], tool_choice="any").invoke([("system", "[THINK]a[/THINK]"), ("human", "x")])
    assert called.additional_kwargs["reasoning_content"] == THOUGHT


def test_marks_in_json_are_text() -> None:
    model = thinking('Hm.</think>{"colour": "<think>b</think>"}')
    assert model.with_structured_output(Sky).invoke("x") == Sky(colour="<think>b</think>")


def test_a_forced_call_comes_after_the_thought() -> None:
    model = thinking(f"{THOUGHT}</think>\n\n<tool_call>\n{forced_call('weather', place='Ulm')}")
    for way in ("invoke", "stream"):
        answer = asked(model.bind_tools([weather], tool_choice="any"), way)
        assert [each["args"] for each in answer.tool_calls] == [{"place": "Ulm"}]
        assert answer.additional_kwargs["reasoning_content"] == THOUGHT
        assert answer.text == ""


def test_a_cut_answer_is_told_whatever_was_thought() -> None:
    model = thinking('{"a": 1}</think>{"colour": "bl')
    scripted_backend(model).finish_reason = "length"
    answer = model.bind(response_format={"type": "json_object"}).invoke("x")
    assert "was cut at max_new_tokens" in answer.response_metadata["form_error"]


def test_thoughts_are_limited_where_asked_for() -> None:
    model = thinking("<think>Hm.</think>\n\nBlue.", template=QWEN3, max_reasoning_tokens=20)
    assert model.invoke("x").text == "Blue."
    assert (limits(model).max_tokens, limits(model).is_single) == (20, False)
    # The model begins its thought itself, as it does without a limit.
    assert scripted_backend(model).prompt.endswith("<|im_start|>assistant\n")
    model.with_structured_output(Sky, include_raw=True, max_reasoning_tokens=7).invoke("x")
    assert limits(model).max_tokens == 7
    model.invoke("x", reasoning=False)
    assert scripted_backend(model).prompt.endswith("</think>\n\n")


def test_no_thought_is_begun_in_an_answer_that_goes_on() -> None:
    model = thinking("</think>\n\nBlue.", "Blue.", template=QWEN3, max_reasoning_tokens=20)
    begun = [("human", "x"), ("ai", "<think>Hm.")]
    answer = model.invoke(begun, continue_final_message=True)
    assert (answer.text, limits(model).is_open, limits(model).max_tokens) == ("Blue.", True, 20)
    answer = model.invoke([("human", "x"), ("ai", "It is")], continue_final_message=True)
    assert (answer.text, limits(model).is_open, limits(model).max_tokens) == ("Blue.", False, None)
    assert scripted_backend(model).prompt.endswith("It is")
    model.invoke([("human", "x"), ("ai", "It is")], continue_final_message=True, grammar=Grammar(regex="a"))
    assert scripted_backend(model).requests[-1].thoughts is None


class Remote(EchoBackend):
    """A backend whose grammars hold a text from its beginning, as a server's."""

    def __init__(self, template: str) -> None:
        super().__init__()
        self.template = template

    @property
    def tokenizer(self) -> Any:
        return thinking_tokenizer(self.template)


def test_a_backend_that_cannot_have_thoughts_first_does_without_or_refuses() -> None:
    model = ChatSpeculative(backend=Remote(QWEN3))
    model.bind(response_format={"type": "json_object"}, _keep_malformed=True).invoke("x")
    backend = model.backend
    assert isinstance(backend, Remote)
    assert str(backend.requests[-1].prompt).endswith("<think>\n\n</think>\n\n")
    for template, options, words in (
        (QWEN3, {"reasoning": True}, "A thought before an answer of a given form cannot be honoured by Remote"),
        (QWEN3, {"max_reasoning_tokens": 5}, "max_reasoning_tokens cannot be honoured by Remote"),
        (QWEN_THINKING, {}, "thinks before each answer, and Remote cannot hold"),
        (MINISTRAL, {"max_reasoning_tokens": 5}, "from its beginning. Use a LocalBackend.$"),
    ):
        model = ChatSpeculative(backend=Remote(template))
        with pytest.raises(InvalidParameterError, match=words):
            model.bind(response_format={"type": "json_object"}, **options).invoke("x")


@pytest.mark.parametrize(
    ("template", "free_end", "end"),
    [
        (QWEN35, "<think>\n", "</think>\n\n"),
        (QWEN_THINKING, "<think>\n", "<think>\n\n</think>\n\n"),
        (HARMONY, "<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>"),
    ],
)
def test_the_command_line_has_an_answer_of_a_given_form_begin_at_once(template: str, free_end: str, end: str) -> None:
    backend: Any = scripted_backend(thinking("x", template=template))
    for grammar, wanted in ((None, free_end), (Grammar(regex="yes"), end)):
        given = Given("m", {}, SamplingParams(grammar=grammar), False, dict.fromkeys(REASONING_OPTIONS))
        request = _request("x", None, backend, None, given)
        assert backend.tokenizer.decode(request.prompt).endswith(wanted)


# -- a real model, whose thoughts are random


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with lasting(tiny_backend(QWEN35)) as backend:
        yield backend


def tiny_backend(template: str, **options: Any) -> LocalBackend:
    tokenizer = thinking_tokenizer(template)
    model = tiny_model(2, dtype=torch.float64, vocab_size=len(tokenizer), max_position_embeddings=4096)
    defaults = {"num_slots": 4, "max_length": 1024, "dtype": torch.float64, "step_cost": StepCost.flat()}
    return LocalBackend(model, tokenizer, **{**defaults, **options})


@pytest.mark.parametrize(("template", "temperature"), [(QWEN3, 0.0), (QWEN35, 1.0), (GEMMA4, 0.0), (MINISTRAL, 1.0)])
def test_forms_hold_after_thoughts_of_a_real_model(template: str, temperature: float) -> None:
    sampling: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_tokens": 120, "max_reasoning_tokens": 30}
    answers = []
    options: dict[str, Any]
    for options in ({"drafter": "none"}, {"max_tree_nodes": 8}):
        with lasting(tiny_backend(template, **options)) as backend:
            model = ChatSpeculative(backend=backend, **sampling)
            on: dict[str, Any] = {"reasoning": True}
            answer: Any = model.with_structured_output(Sky, include_raw=True, **on).invoke("x")
            called: Any = model.bind_tools([weather], tool_choice="any", **on).invoke("x")
            answers.append((answer["parsed"], answer["raw"].usage_metadata, called.text, called.tool_calls[0]["args"]))
            assert isinstance(answer["parsed"], Sky)
            # Its end is no part of what may be written in it.
            assert 30 <= answer["raw"].usage_metadata["output_token_details"]["reasoning"] <= 30 + 12
    without_cache = [(a, {**u, "input_token_details": None}, *rest) for a, u, *rest in answers]
    assert without_cache[0] == without_cache[1]


def test_a_grammar_of_one_s_own_comes_after_the_thought(backend: LocalBackend) -> None:
    model = ChatSpeculative(backend=backend, max_tokens=60, grammar=Grammar(regex="yes|no"))
    answer = model.invoke("x")
    assert answer.text in ("yes", "no")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_token_details"]["reasoning"] >= 30


def test_a_thought_of_limited_length_is_ended_and_the_answer_goes_on(backend: LocalBackend) -> None:
    answer: Any = ChatSpeculative(backend=backend, max_tokens=60, ignore_eos=True, max_reasoning_tokens=20).invoke("x")
    details = answer.usage_metadata["output_token_details"]
    assert details["reasoning"] == 20 + len("\n") + 1
    assert answer.usage_metadata["output_tokens"] == 60
    assert answer.text


def test_the_next_turn_begins_with_the_prompt_of_the_one_before(backend: LocalBackend) -> None:
    """Between calls, where the template keeps thoughts, all that was read and written is still there."""
    model = ChatSpeculative(backend=backend, max_tokens=120, max_reasoning_tokens=30)
    called: Any = model.bind_tools([weather], tool_choice="any").invoke("x")
    result = ToolMessage("wet", tool_call_id=called.tool_calls[0]["id"])
    second: Any = model.bind_tools([weather], tool_choice="any").invoke([("human", "x"), called, result])
    usage = called.usage_metadata
    assert second.usage_metadata["input_token_details"]["cache_read"] >= usage["input_tokens"]


# -- agents


@pytest.mark.parametrize("strategy", ["ProviderStrategy", "ToolStrategy"])
def test_agents_end_with_an_object_after_thoughts(strategy: str) -> None:
    pytest.importorskip("langchain")
    from langchain.agents import create_agent
    from langchain.agents import structured_output as strategies

    is_tool = strategy == "ToolStrategy"
    last = f"<tool_call>\n{forced_call('Sky', colour='blue')}" if is_tool else SKY
    first = f"<tool_call>\n{forced_call('weather', place='Ulm')}" + "\n</tool_call>" * (not is_tool)
    model = thinking(f"I ask.</think>\n\n{first}", f"It is blue.</think>\n\n{last}")
    agent: Any = create_agent(model, [weather], response_format=getattr(strategies, strategy)(Sky))
    state = agent.invoke({"messages": [("human", "How is it in Ulm?")]}, {"recursion_limit": 8})
    assert state["structured_response"] == Sky(colour="blue")
    thoughts = [m.additional_kwargs.get("reasoning_content") for m in state["messages"] if m.type == "ai"]
    assert thoughts == ["I ask.", "It is blue."]
    assert all("think" not in m.text for m in state["messages"])
    # The second prompt goes on where the first one ended: the thought is shown between calls.
    first_prompt, second_prompt = scripted_backend(model).prompts
    assert second_prompt.startswith(first_prompt + "I ask.\n</think>\n\n<tool_call>")
