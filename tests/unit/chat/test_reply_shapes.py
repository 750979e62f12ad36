"""One answer, one message: the same by `invoke`, streams, events of each version and callbacks.

By `output_version` v0 the content is the text, and `content_blocks` are that and the calls. By v1 the content is
blocks, texts and calls in the order written. Protocol events (v3) always end in blocks, each where it began; by v0 all
text is one of them. Why a call is broken, LangChain's chunks cannot say; all have it in `response_metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from functools import reduce
from operator import add
from typing import Any

import pytest

from tests.support.backends import AsyncCounter, Counter, scripted, scripted_backend
from tests.support.chat_templates import TEMPLATES
from tests.support.langchain_versions import HAS_EVENTS_V3
from tests.support.tools import weather

FORM = {"type": "json_schema", "json_schema": {"name": "Sky", "schema": {"type": "object", "properties": {}}}}


def as_json(family: str, arguments: Any) -> str:
    return json.dumps({"name": "weather", "parameters" if family == "llama" else "arguments": arguments})


def written(family: str, *arguments: Any) -> str:
    """Calls as a model of the family writes them."""
    each = [as_json(family, argument) for argument in arguments]
    if family == "mistral":
        return f"[TOOL_CALLS][{', '.join(each)}]"
    if family == "llama":
        return "<|python_tag|>" + "; ".join(each)
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in each)


ULM, BONN, BROKEN = {"place": "Ulm"}, {"place": "Bonn"}, 5
# The answers, how they end, and how many calls they hold that can be read, and that cannot.
ANSWERS: dict[str, tuple[Callable[[str], str], str, int, int]] = {
    "text": (lambda _: "It rains.\n\nTake care. ", "eos_token", 0, 0),
    "nothing": (lambda _: "", "eos_token", 0, 0),
    "call": (lambda f: written(f, ULM), "eos_token", 1, 0),
    "two calls": (lambda f: written(f, ULM, BONN), "eos_token", 2, 0),
    "text, call": (lambda f: "Let me see. " + written(f, ULM), "eos_token", 1, 0),
    "call, text": (lambda f: written(f, ULM) + "\nI called.", "eos_token", 1, 0),
    "call, text, call, text": (
        lambda f: written(f, ULM) + "\nAnd Bonn.\n" + written(f, BONN) + "\nThat is all.",
        "eos_token",
        2,
        0,
    ),
    "two calls, text": (lambda f: written(f, ULM, BONN) + "\nI called.", "eos_token", 2, 0),
    "broken call": (lambda f: "First. " + written(f, BROKEN), "eos_token", 0, 1),
    "broken call, call": (lambda f: written(f, BROKEN, ULM), "eos_token", 1, 1),
    "cut text": (lambda _: "It rains in", "length", 0, 0),
    "cut call": (lambda f: "Hm. " + written(f, ULM)[:-20], "length", 0, 1),
}


def merged(chunks: Iterable[Any]) -> Any:
    return reduce(add, chunks)


def is_streamed(event: Any) -> bool:
    return bool(event["event"] == "on_chat_model_stream")


def events_v2(events: list[Any]) -> list[Any]:
    (end,) = [event["data"]["output"] for event in events if event["event"] == "on_chat_model_end"]
    return [merged(event["data"]["chunk"] for event in events if is_streamed(event)), end]


# Each way to ask, with all the messages that it gives of one answer.


async def by_invoke(model: Any) -> list[Any]:
    return [model.invoke("x")]


async def by_ainvoke(model: Any) -> list[Any]:
    return [await model.ainvoke("x")]


async def by_batch(model: Any) -> list[Any]:
    return [*model.batch(["x"]), *await model.abatch(["x"])]


async def by_stream(model: Any) -> list[Any]:
    counter = Counter()
    whole = merged(model.stream("x", config={"callbacks": [counter]}))
    return [whole, counter.ends[0].generations[0][0].message, merged(chunk.message for chunk in counter.chunks)]


async def by_astream(model: Any) -> list[Any]:
    counter = AsyncCounter()
    whole = merged([chunk async for chunk in model.astream("x", config={"callbacks": [counter]})])
    return [whole, counter.seen.ends[0].generations[0][0].message]


async def by_streaming(model: Any) -> list[Any]:
    counter, acounter = Counter(), AsyncCounter()
    answers = [
        model.invoke("x", config={"callbacks": [counter]}, stream=True),
        await model.ainvoke("x", config={"callbacks": [acounter]}, stream=True),
    ]
    return [*answers, *(merged(chunk.message for chunk in seen.chunks) for seen in (counter, acounter.seen))]


async def by_events_v2(model: Any) -> list[Any]:
    return events_v2([event async for event in model.astream_events("x", version="v2")])


async def by_events_v3(model: Any) -> list[Any]:
    stream = model.stream_events("x", version="v3")
    events = list(stream)
    assert [event["index"] for event in events if event["event"] == "content-block-start"] == list(
        range(sum(event["event"] == "content-block-start" for event in events))
    )
    assert stream.text.get() == stream.output.text
    return [stream.output]


async def by_aevents_v3(model: Any) -> list[Any]:
    stream = await model.astream_events("x", version="v3")
    return [await stream.output]


Way = Callable[[Any], Awaitable[list[Any]]]
V0_AND_V1: list[Way] = [by_ainvoke, by_batch, by_stream, by_astream, by_streaming, by_events_v2]
V3: list[Way] = [by_events_v3, by_aevents_v3] if HAS_EVENTS_V3 else []


def numbered(message: Any, items: Iterable[Any]) -> list[Any]:
    """Calls and blocks, each id as the number of the call that it is; without indices of streams, and errors."""
    ids = [call["id"] for call in (*message.tool_calls, *message.invalid_tool_calls)]
    assert len(set(ids)) == len(ids)
    assert all(len(call_id) == 9 for call_id in ids)
    return [
        {
            key: ids.index(value) if key == "id" else value
            for key, value in item.items()
            if key not in ("index", "error")
        }
        for item in items
    ]


def metadata(message: Any) -> dict[str, Any]:
    apart = ("output_version", "time_to_first_token")
    return {key: value for key, value in message.response_metadata.items() if key not in apart}


def facts(message: Any) -> dict[str, Any]:
    """What a message says, whatever its content looks like."""
    return {
        "text": message.text,
        "calls": numbered(message, message.tool_calls),
        "invalid": numbered(message, message.invalid_tool_calls),
        "usage": message.usage_metadata,
        "metadata": metadata(message),
    }


def shape(message: Any) -> dict[str, Any]:
    """All of a message that may not depend on how it was asked for."""
    content = message.content if isinstance(message.content, str) else numbered(message, message.content)
    blocks = numbered(message, message.content_blocks)
    version = message.response_metadata.get("output_version")
    return {**facts(message), "content": content, "blocks": blocks, "version": version}


def asked(family: str, answer: str, finish_reason: str, **options: Any) -> Any:
    """A model that gives the answer; `options` are its own, or of `bind_tools`."""
    own = {name: options.pop(name) for name in ("width", "output_version", "streaming") if name in options}
    model: Any = scripted(answer, template=TEMPLATES[family], seed=7, **own)
    scripted_backend(model).finish_reason = finish_reason  # type: ignore[assignment]
    return model.bind_tools([weather], **options)


async def check_ways(make: Callable[..., Any], version: str | None) -> Any:
    """All ways give one message; that of `invoke`.

    How a text is cut into steps matters to what reads it, which all ways share: one of each kind tries it whole.
    """
    whole = make(output_version=version).invoke("x")
    for width, ways, ways_of_v3 in ((1, [by_invoke, *V0_AND_V1], V3), (1000, [by_invoke, by_stream], V3[:1])):
        model = make(output_version=version, width=width)
        for way in ways:
            for message in await way(model):
                assert shape(message) == shape(whole), (way.__name__, width)
                assert message.id.startswith("lc_run-")
        for way in ways_of_v3:
            for message in await way(model):
                assert facts(message) == facts(whole), (way.__name__, width)
                blocks = numbered(message, message.content)
                if version == "v1":
                    assert blocks == shape(whole)["content"], (way.__name__, width)
                else:
                    valid = [block for block in blocks if block["type"] != "invalid_tool_call"]
                    assert sorted(valid, key=lambda b: b["type"] != "text") == shape(whole)["blocks"], way.__name__
    return whole


# How content becomes blocks is the same code for each family.
@pytest.mark.parametrize(("family", "version"), [("qwen", None), *((family, "v1") for family in TEMPLATES)])
@pytest.mark.parametrize("answer", ANSWERS)
async def test_every_way_gives_one_message(family: str, answer: str, version: str | None) -> None:
    write, finish_reason, num_calls, num_invalid = ANSWERS[answer]
    text = write(family)
    message = await check_ways(lambda **own: asked(family, text, finish_reason, **own), version)
    if not (family == "llama" and "text" in answer.partition("call")[2]):
        # What follows the mark of Llama's calls is read as calls, or as text, as it may be.
        assert (len(message.tool_calls), len(message.invalid_tool_calls)) == (num_calls, num_invalid)
    assert ("form_error" in message.response_metadata) == bool(message.invalid_tool_calls)


@pytest.mark.parametrize("version", [None, "v1"])
@pytest.mark.parametrize("options", [{"tool_choice": "weather"}, {"response_format": FORM}], ids=["any", "format"])
@pytest.mark.parametrize("family", TEMPLATES)
async def test_so_do_answers_of_a_form(family: str, options: dict[str, Any], version: str | None) -> None:
    is_forced = "tool_choice" in options
    # The fixed beginning of a forced call is no part of what is generated; `[` begins the generic one's list.
    text = as_json(family, ULM) if is_forced else "{}"
    message = await check_ways(lambda **own: asked(family, text, "eos_token", **options, **own), version)
    assert message.text == ("" if is_forced else "{}")
    assert [call["args"] for call in message.tool_calls] == ([ULM] if is_forced else [])


@pytest.mark.parametrize("width", [1, 1000])
def test_blocks_stand_in_the_order_written(width: int) -> None:
    text = ANSWERS["call, text, call, text"][0]("qwen") + written("qwen", BROKEN)
    model = asked("qwen", text, "eos_token", output_version="v1", width=width)
    for message in (model.invoke("x"), merged(model.stream("x"))):
        kinds = [block["type"] for block in message.content]
        assert kinds == ["tool_call", "text", "tool_call", "text", "invalid_tool_call"]
        assert [block["text"] for block in message.content if block["type"] == "text"] == [
            "\nAnd Bonn.",
            "\nThat is all.",
        ]
        assert message.content[-1]["error"] == "The arguments are not an object."


def test_the_environment_chooses_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_OUTPUT_VERSION", "v1")
    message = asked("qwen", "Hm. " + written("qwen", ULM), "eos_token").invoke("x")
    assert [block["type"] for block in message.content] == ["text", "tool_call"]


@pytest.mark.parametrize("version", [None, "v1"])
def test_a_chunk_is_text_or_one_call_and_the_last_is_empty(version: str | None) -> None:
    text = "First Ulm. " + written("qwen", ULM, BROKEN) + " Done."
    model = asked("qwen", text, "eos_token", output_version=version, width=1000)
    *chunks, last = model.stream("x")
    assert [(bool(chunk.text), len(chunk.tool_call_chunks)) for chunk in chunks] == [
        (True, 0),
        (False, 1),
        (False, 1),
        (True, 0),
    ]
    assert not last.content
    assert last.chunk_position == "last"
    counts = [chunk.usage_metadata["output_tokens"] for chunk in (*chunks, last)]
    assert counts == [model.invoke("x").usage_metadata["output_tokens"], 0, 0, 0, 0]
    indices = [call["index"] for chunk in chunks for call in chunk.tool_call_chunks]
    assert indices == [1, 2]


@pytest.mark.parametrize("version", [None, "v1"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_a_message_of_either_version_can_be_sent_back(family: str, version: str | None) -> None:
    text = ANSWERS["text, call"][0](family)
    model = asked(family, text, "eos_token", output_version=version)
    message = model.invoke("x")
    model.invoke(["x", message, {"role": "tool", "content": "rain", "tool_call_id": message.tool_calls[0]["id"]}])
    assert "Ulm" in scripted_backend(model).prompt


def test_the_tokens_of_a_step_come_with_its_first_chunk_only() -> None:
    counter = Counter()
    model = asked("qwen", "Hm. " + written("qwen", ULM), "eos_token", width=1000)
    list(model.stream("x", config={"callbacks": [counter]}))
    counts = [len(getattr(chunk, "tokens", ())) for chunk in counter.chunks]
    assert counts[0] > 0
    assert counts[1:] == [0, 0]
