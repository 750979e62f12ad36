"""Images in messages: every form that users send, where they stand in prompts, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import runpy
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative
from langchain_specdec.chat.content_blocks import content_text
from langchain_specdec.chat.images import Images
from langchain_specdec.errors import InvalidParameterError, PromptTooLongError
from langchain_specdec.models.image_reader import ImageReader, ReadImages
from tests.support.backends import scripted, scripted_backend
from tests.support.seeing import GEMMA4_OLD, SIGHTS, SeeingBackend, Sight, picture, png, seeing
from tests.support.source_code import ROOT

pytestmark = pytest.mark.transformers

EXAMPLES = ROOT / "docs/examples"
FILE = png(3)
DATA = base64.b64encode(FILE).decode()
TYPE = {"mime_type": "image/png"}
URL = f"data:image/png;base64,{DATA}"
FORMS: dict[str, dict[str, Any]] = {
    "v1": {"type": "image", "base64": DATA, **TYPE},
    "v1, data URL": {"type": "image", "url": URL},
    "v1, bytes": {"type": "image", "base64": FILE, **TYPE},
    "v0": {"type": "image", "source_type": "base64", "data": DATA, "mime_type": "image/png"},
    "v0, cached": {
        "type": "image",
        "source_type": "base64",
        "data": DATA,
        "mime_type": "image/png",
        "cache_control": {},
    },
    "file": {"type": "file", "base64": DATA, **TYPE},
    "OpenAI": {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
    "OpenAI, short": {"type": "image_url", "image_url": URL},
    "OpenAI, responses": {"type": "input_image", "image_url": URL},
    "Anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
    "Google": {"type": "media", "mime_type": "image/png", "data": FILE},
    "Google, base64": {"type": "media", "mime_type": "image/PNG", "data": DATA},
    "Bedrock": {"image": {"format": "png", "source": {"bytes": FILE}}},
    "MCP": {"type": "image", "data": DATA, "mimeType": "image/png"},
    "MCP resource": {"type": "resource", "resource": {"uri": "a:b", "mimeType": "image/png", "blob": DATA}},
    "processor": {"type": "image", "image": URL},
    "processor, bytes": {"type": "image", "image": FILE},
    "another alphabet": {"type": "image", "base64": base64.urlsafe_b64encode(FILE).decode().rstrip("="), **TYPE},
    "lines": {"type": "image", "base64": "\n".join(DATA[i : i + 10] for i in range(0, len(DATA), 10)) + "\n", **TYPE},
    "within a document": {"type": "document", "source": {"type": "content", "content": [picture(3)]}},
}
PADS = "<|vision_start|>" + "<|image_pad|>" * 3 + "<|vision_end|>"


def images_of(model: Any) -> list[tuple[int, Any]]:
    """The images of the last prompt: how many tokens stand for each, and its colour."""
    request = scripted_backend(model).requests[-1]
    return [(image.stop - image.start, image.inputs["pixel"]) for image in request.images]


def prompt_of(model: ChatSpeculative) -> str:
    return scripted_backend(model).prompt


RED, BLUE = (255, 0, 0), (0, 0, 255)


def note(width: int, color: str = "red") -> str:
    return f"[image/png, {len(png(width, color))} bytes, left out: it cannot be shown here]"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_becomes_its_bytes(form: str) -> None:
    for message in (HumanMessage, SystemMessage, lambda content: ChatMessage(content=content, role="user")):
        images = Images("")
        text = content_text(message(["Look: ", FORMS[form], "!"]), images=images)
        assert (text[:6], text[-1]) == ("Look: ", "!")
        assert images.data(0) == FILE
    model = seeing("ok")
    assert model.invoke([HumanMessage(["Look: ", FORMS[form], "!"])]).text == "ok"
    assert prompt_of(model) == (f"<|im_start|>user\nLook: {PADS}!<|im_end|>\n<|im_start|>assistant\n")
    assert images_of(model) == [(3, RED)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_files_of_every_kind(kind: str) -> None:
    model = seeing("ok")
    model.invoke([HumanMessage([{"type": "image", "base64": base64.b64encode(png(4, kind=kind)).decode(), **TYPE}])])
    assert images_of(model)[0][0] == 4


REFUSED: dict[str, tuple[Any, str]] = {
    "address": ({"type": "image", "url": "https://a.de/x.png"}, r"by its address, 'https://a\.de/x\.png'\. Nothing is"),
    "OpenAI": ({"type": "image_url", "image_url": {"url": "http://a.de/x"}}, "Read the image yourself, and give its b"),
    "Anthropic": ({"type": "image", "source": {"type": "url", "url": "https://a.de/x"}}, '{"type": "image", "base64"'),
    "Google": ({"type": "media", "mime_type": "image/png", "file_uri": "gs://a/b"}, "'gs://a/b'"),
    "file": ({"type": "image", "url": "file:///etc/passwd"}, "'file:///etc/passwd'"),
    "folder": ({"type": "image", "path": "/etc/x.png"}, "An image has no data"),
    "processor": ({"type": "image", "image": "x.png"}, "'x.png'"),
    "long": ({"type": "image", "url": "https://a.de/" + "x" * 500}, r"x\.\.\.'\. Nothing is fetched"),
    "no base64": ({"type": "image", "url": "data:image/svg+xml,<svg/>"}, "data URL .* which is not in base64"),
    "damaged": ({"type": "image", "base64": "%%%", **TYPE}, "base64 of an image is damaged: "),
    "cut": ({"type": "image", "base64": "AAAAA", **TYPE}, "base64 of an image is damaged: "),
    "address as data": ({"type": "image", "base64": "https://a.de/x.png", **TYPE}, "base64 of an image is damaged: "),
    "empty": ({"type": "image", "base64": "", **TYPE}, "An image has no data"),
    "blank": ({"type": "image", "base64": " \n", **TYPE}, "An image has no data"),
    "empty URL": ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "An image has no data"),
    "nothing": ({"type": "image"}, "An image has no data"),
    "id": ({"type": "image", "file_id": "file-1"}, "no id of another provider"),
    "object": ({"type": "image", "image": object()}, "as an object of type object"),
    "number": ({"type": "image", "base64": 7, **TYPE}, "as an object of type int"),
    "no image": (
        {"type": "image", "base64": base64.b64encode(b"text").decode(), **TYPE},
        "Image 1 of the prompt is none that Pillow can re",
    ),
    "cut file": (
        {"type": "image", "base64": base64.b64encode(FILE[:40]).decode(), **TYPE},
        "Image 1 of the prompt is none",
    ),
    "sound": (
        {"type": "audio", "base64": DATA, "mime_type": "audio/wav"},
        "'audio'. The model reads text and images only",
    ),
    "film": ({"type": "video", "base64": DATA}, "'video'. The model reads text and images only: leave that out"),
    "paper": ({"type": "file", "base64": DATA, "mime_type": "application/pdf"}, "reads text and images only"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_of_a_person(kind: str) -> None:
    block, reason = REFUSED[kind]
    model = seeing("ok")
    with pytest.raises(InvalidParameterError, match=reason):
        model.invoke([HumanMessage(["Look: ", block])])
    with pytest.raises(InvalidParameterError, match=reason):
        asyncio.run(model.ainvoke([SystemMessage(["Look: ", block])]))
    assert not scripted_backend(model).requests


@pytest.mark.parametrize("kind", REFUSED)
def test_a_thread_goes_on_whatever_a_tool_found(kind: str) -> None:
    """What is no image of a tool's result is told as where the model reads text only, or said to be left out."""
    block = REFUSED[kind][0]
    model = seeing("ok")
    found = content_text(ToolMessage([block], tool_call_id="1"))
    for result in (ToolMessage(["Look: ", block], tool_call_id="1"), FunctionMessage(content=[block], name="look")):
        assert model.invoke([HumanMessage("x"), CALL, result]).text == "ok"
        prompt = prompt_of(model)
        assert found in prompt or found.replace("this model reads text", "it cannot be shown here") in prompt
        assert not scripted_backend(model).requests[-1].images


CALL = AIMessage("", tool_calls=[{"name": "look", "args": {"where": "up"}, "id": "1"}])


def test_where_the_model_is_given_no_images_the_reason_is_told() -> None:
    model = scripted("ok")
    reason = f"the model can be given no images: {scripted_backend(model).why_no_images}\\. Leave that out"
    with pytest.raises(InvalidParameterError, match=reason):
        model.invoke([HumanMessage([picture()])])
    with pytest.raises(InvalidParameterError, match=reason):
        model.get_num_tokens_from_messages([HumanMessage([picture()])])
    assert not scripted_backend(model).requests
    assert model.invoke([HumanMessage("x"), AIMessage([picture()]), HumanMessage("y")]).text == "ok"
    assert "left out: this model reads text]" in prompt_of(model)


def test_images_of_an_answer_stay_notes() -> None:
    model = seeing("ok")
    model.invoke([HumanMessage([picture(1)]), AIMessage(["See: ", picture(3)]), HumanMessage("y")])
    assert f"See: \n{note(3)}" in prompt_of(model)
    assert images_of(model) == [(1, RED)]


CONTROLS = "<|image_pad|><start_of_image><image_soft_token><|image|><|vision_start|><|image"


@pytest.mark.parametrize("family", SIGHTS)
def test_a_placeholder_that_somebody_types_is_text(family: str) -> None:
    model = seeing("ok", family=family)
    backend = scripted_backend(model)
    rows: list[BaseMessage] = [
        SystemMessage(CONTROLS),
        HumanMessage([CONTROLS, picture(2), CONTROLS]),
        AIMessage(CONTROLS),
        HumanMessage([picture(3, "blue"), CONTROLS]),
    ]
    model.invoke(rows)
    assert images_of(model) == [(2, RED), (3, BLUE)]
    prompt = backend.requests[-1].prompt
    sight = SIGHTS[family]
    part = backend.tokenizer.convert_tokens_to_ids(sight.part)
    inside = {place for image in backend.requests[-1].images for place in range(image.start, image.stop)}
    assert inside == {place for place, token in enumerate(prompt) if token == part}
    assert backend.prompt.count(CONTROLS) == 5
    model.invoke([HumanMessage(CONTROLS)])
    assert not backend.requests[-1].images
    assert part not in backend.requests[-1].prompt


def test_what_a_template_writes_for_an_image_completes_nothing() -> None:
    template = SIGHTS["qwen3-vl"].template.replace("<|vision_start|><|image_pad|>", "_pad|><|image_pad|>")
    model = seeing("ok", chat_template=template)
    model.invoke([HumanMessage(["<|image", picture(2), "<|image", picture(1)])])
    assert [width for width, _ in images_of(model)] == [2, 1]
    assert "<|image_pad|><|image_pad|><|image_pad|><|vision_end|><|image_pad|><|image_pad|>" in prompt_of(model)


def test_marks_of_another_process_are_text() -> None:
    """What stands for an image within a prompt that is being made cannot be written by anybody."""
    typed = "".join(map(chr, range(0xFDD0, 0xFDF0))) + "\ufdee\ufdd0\ufdef"
    model = seeing("ok")
    model.invoke([HumanMessage([typed, picture(1), typed])])
    assert prompt_of(model).count(typed) == 2
    assert images_of(model) == [(1, RED)]


SHOWN = {
    "gemma3": "<start_of_turn>user\nS.\n\nA\n\n<start_of_image><image_soft_token><end_of_image>\n\nB\n\n"
    "<start_of_image><image_soft_token><image_soft_token><end_of_image>\n\n<end_of_turn>\n",
    "gemma4, old": "<|turn>system\nS.<turn|>\n<|turn>user\nA\n\n<|image><|image|><image|>\n\nB\n\n<|image><|image|>"
    "<|image|><image|>\n\n<turn|>\n",
    "gemma4": "<|turn>user\nA<|image><|image|><image|>B<|image><|image|><|image|><image|><turn|>\n",
    "qwen2-vl": "<|im_start|>user\nA <|vision_start|><|image_pad|><|vision_end|> B <|vision_start|><|image_pad|>"
    "<|image_pad|><|vision_end|><|im_end|>\n",
    "qwen3-vl": "<|im_start|>user\nA <|vision_start|><|image_pad|><|vision_end|> B <|vision_start|><|image_pad|>"
    "<|image_pad|><|vision_end|><|im_end|>\n",
}


@pytest.mark.parametrize("family", SIGHTS)
def test_texts_and_images_stand_as_each_family_has_them(family: str) -> None:
    model = seeing("ok", family=family)
    model.invoke([SystemMessage("S."), HumanMessage(["A ", picture(1), " B ", picture(2)])])
    assert SHOWN[family] in prompt_of(model)


@pytest.mark.parametrize("family", SIGHTS)
def test_an_image_of_the_system_is_shown_wherever_there_is_a_place(family: str) -> None:
    model = seeing("ok", family=family)
    thread = [
        SystemMessage(["S.", picture(1)]),
        HumanMessage([picture(2, "blue"), "Q."]),
        AIMessage("A."),
        HumanMessage("R."),
    ]
    model.invoke(thread)
    assert images_of(model) == [(1, RED), (2, BLUE)]
    prompt = prompt_of(model)
    assert all(prompt.count(text) == 1 for text in ("S.", "Q.", "A.", "R."))


def test_pictures_are_numbered_where_the_template_does_so() -> None:
    model = seeing("ok", family="qwen2-vl", chat_template_kwargs={"add_vision_id": True})
    model.invoke([HumanMessage([picture(1), picture(2)]), AIMessage("A."), HumanMessage([picture(3)])])
    prompt = prompt_of(model)
    assert [prompt.count(f"Picture {number}: <|vision_start|>") for number in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert [width for width, _ in images_of(model)] == [1, 2, 3]


def test_a_template_without_a_place_is_refused() -> None:
    plain = "{% for message in messages %}{{ '<|im_start|>' ~ message.content ~ '<|im_end|>' }}{% endfor %}"
    twice = SIGHTS["qwen3-vl"].template.replace("<|image_pad|>", "<|image_pad|><|image_pad|>")
    for template in (plain, twice):
        model = seeing("ok", chat_template=template)
        assert model.invoke("x").text == "ok"
        with pytest.raises(InvalidParameterError, match="cannot render these messages: it has no place for images"):
            model.invoke([HumanMessage(["x", picture()])])


@tool
def look(where: str) -> list[Any]:
    """Look somewhere."""
    return [{"type": "text", "text": "Seen: "}, picture(2, "blue")]


def found(model: ChatSpeculative, *more: BaseMessage) -> str:
    call = CALL.tool_calls[0]
    model.bind_tools([look]).invoke(
        [HumanMessage(["Q.", picture(1)]), CALL, look.invoke({**call, "type": "tool_call"}), *more]
    )
    return prompt_of(model)


@pytest.mark.parametrize("family", SIGHTS)
def test_images_that_tools_found(family: str) -> None:
    """They are shown where the template has a place for them, and noted elsewhere; the profile says which."""
    model = seeing("ok", family=family)
    is_shown = family != "gemma4, old"
    # LangChain 1.0 has no profiles.
    if profile := getattr(model, "profile", None):
        assert profile["image_tool_message"] is is_shown
    for more in ([], [AIMessage("A."), HumanMessage([picture(3)])]):
        prompt = found(model, *more)
        assert prompt.count(f"Seen: \n{note(2, 'blue')}") == (not is_shown)
        assert prompt.count("Seen:") == 1
        shown = [(2, BLUE)] if is_shown else []
        assert images_of(model) == [(1, RED), *shown, *[(3, RED)] * bool(more)]


def test_images_keep_their_results_where_these_are_moved() -> None:
    """A template that takes one call a message gets each result behind its own call, and the images with them."""
    one_call = SIGHTS["qwen3-vl"].template.replace(
        "{% for call in message.tool_calls or [] %}",
        "{% if message.tool_calls and message.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
        "{% for call in message.tool_calls or [] %}",
    )
    calls = [{"name": "look", "args": {"where": where}, "id": where} for where in ("up", "down")]
    results = [ToolMessage([where, picture(width)], tool_call_id=where) for where, width in (("down", 4), ("up", 3))]
    model = seeing("ok", chat_template=one_call)
    model.bind_tools([look]).invoke([HumanMessage("Q."), AIMessage("", tool_calls=calls), *results])
    assert [width for width, _ in images_of(model)] == [3, 4]
    prompt = prompt_of(model)
    assert prompt.index('"up"') < prompt.index("up" + PADS) < prompt.index('"down"') < prompt.index("down<|vision")


def test_damaged_images_of_tools_become_notes_and_others_stay() -> None:
    broken = {"type": "image", "base64": base64.b64encode(b"no image").decode(), "mime_type": "image/png"}
    model = seeing("ok")
    result = ToolMessage([picture(1), broken, picture(2)], tool_call_id="1")
    model.invoke([HumanMessage([picture(4)]), CALL, result])
    assert [width for width, _ in images_of(model)] == [4, 1, 2]
    assert "\n[image/png, 8 bytes, left out: it cannot be shown here]\n" in prompt_of(model)
    with pytest.raises(InvalidParameterError, match="Image 1 of the prompt is none that Pillow can read"):
        model.invoke([HumanMessage([broken]), CALL, result])


def test_tokens_are_counted_with_images() -> None:
    model = seeing("ok")
    for messages in ([HumanMessage(["x", picture(7)])], [SystemMessage("S."), HumanMessage([picture(1), picture(5)])]):
        model.invoke(messages)
        assert model.get_num_tokens_from_messages(messages) == len(scripted_backend(model).requests[-1].prompt)
    small, large = [HumanMessage([picture(1)])], [HumanMessage([picture(900)])]
    assert model.get_num_tokens_from_messages(large) - model.get_num_tokens_from_messages(small) == 899
    thread = [*large, AIMessage("A."), HumanMessage("B."), AIMessage("C."), *small]
    kept = trim_messages(thread, max_tokens=200, token_counter=model, start_on="human")
    assert kept == thread[2:]


def test_a_prompt_that_its_images_make_too_long_is_refused() -> None:
    model = seeing("ok")
    with pytest.raises(PromptTooLongError, match=r"max_length, which is 4096"):
        model.invoke([HumanMessage(["x", picture(60_000)])])


def test_the_cache_tells_images_apart() -> None:
    model = seeing("first", "second", "third", cache=InMemoryCache())
    forms: list[Any] = [picture(1), picture(1, "blue"), {"type": "image", "base64": png(1), **TYPE}]
    for form, answer in zip(forms, ("first", "second", "third"), strict=True):
        assert model.invoke([HumanMessage([form])]).text == answer
    assert model.invoke([HumanMessage([picture(1)])]).text == "first"
    assert len(scripted_backend(model).requests) == 3


def test_images_are_read_in_a_thread_of_an_event_loop() -> None:
    class Noting(ImageReader):
        threads: ClassVar[set[int]] = set()

        def read(self, images: Sequence[bytes]) -> ReadImages:
            self.threads.add(threading.get_ident())
            return super().read(images)

    model = seeing("ok")
    backend = scripted_backend(model)
    assert isinstance(backend, SeeingBackend)
    backend.reader.__class__ = Noting

    async def run() -> None:
        messages = [HumanMessage([picture(1)])]
        await model.ainvoke("x")
        for _ in range(2):
            await model.ainvoke(messages)
        assert "".join([chunk.text async for chunk in model.astream(messages)]) == "ok"
        assert [answer.text for answer in await model.abatch([messages, messages])] == ["ok", "ok"]

    asyncio.run(run())
    assert Noting.threads
    assert threading.get_ident() not in Noting.threads


def test_streams_and_batches() -> None:
    model = seeing("one two")
    inputs = [[HumanMessage([picture(width)])] for width in (1, 2, 3)]
    assert "".join(chunk.text for chunk in model.stream(inputs[0])) == "one two"
    assert [answer.text for answer in model.batch(inputs)] == ["one two"] * 3
    assert sorted(len(request.prompt) for request in scripted_backend(model).requests[1:]) == [
        model.get_num_tokens_from_messages(each) for each in inputs
    ]


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
def test_a_history_keeps_images() -> None:
    history = InMemoryChatMessageHistory()
    model = seeing("A.")
    chain = RunnableWithMessageHistory(model, lambda session: history)
    for width in (1, 2, 3):
        chain.invoke([HumanMessage(["Q.", picture(width)])], {"configurable": {"session_id": "x"}})
    assert [width for width, _ in images_of(model)] == [1, 2, 3]


def test_a_prompt_template_with_images() -> None:
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,{data}"}}
    own = {"type": "image", "base64": "{data}", "mime_type": "image/png"}
    model = seeing("A.")
    for block in (url, own):
        prompt = ChatPromptTemplate([("system", "S."), ("human", ["{question}", block])])
        (prompt | model).invoke({"question": "Q.", "data": DATA})
        assert f"Q.{PADS}<|im_end|>" in prompt_of(model)


def test_answers_that_go_on() -> None:
    model = seeing("ok")
    messages = [HumanMessage(["Q.", picture(2)]), AIMessage("Well")]
    model.invoke(messages, continue_final_message=True)
    assert prompt_of(model).endswith("<|vision_end|><|im_end|>\n<|im_start|>assistant\nWell")
    assert images_of(model) == [(2, RED)]


class Seen(BaseModel):
    color: str


def test_forms_and_forced_calls_with_images() -> None:
    messages = [HumanMessage(["Q.", picture(2)])]
    model = seeing('{"color": "red"}')
    assert model.with_structured_output(Seen).invoke(messages) == Seen(color="red")
    assert images_of(model) == [(2, RED)]
    call = '<tool_call>\n{"name": "look", "arguments": {"where": "up"}}\n</tool_call>'
    for answer in (call, call.partition("\n")[2]):
        model = seeing(answer)
        model.bind_tools([look], tool_choice="any").invoke(messages)
        assert images_of(model) == [(2, RED)]


@pytest.mark.parametrize("family", SIGHTS)
def test_an_agent_looks_at_what_it_asked_for(family: str) -> None:
    agents = pytest.importorskip("langchain.agents")
    call = '<tool_call>\n{"name": "look", "arguments": {"where": "up"}}\n</tool_call>'
    if "gemma4" in family:
        call = '<|tool_call>call:look{where:<|"|>up<|"|>}<tool_call|>'
    elif family != "qwen3-vl":
        call = '<tool_call>[{"name": "look", "arguments": {"where": "up"}}]</tool_call>'
    model = seeing(call, "Blue.", family=family)
    agent = agents.create_agent(model, [look], middleware=[agents.middleware.ModelCallLimitMiddleware(run_limit=3)])
    result = agent.invoke({"messages": [HumanMessage(["Q.", picture(1)])]})
    assert result["messages"][-1].text == "Blue."
    assert len(result["messages"]) == 4
    shown = [] if family == "gemma4, old" else [(2, BLUE)]
    assert images_of(model) == [(1, RED), *shown]


THINKS = SIGHTS["qwen3-vl"].template.replace(
    "'<|im_start|>assistant\n' }}{% endif %}", "'<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def test_thoughts_about_images() -> None:
    model = seeing("It is red.\n</think>\n\nRed.", chat_template=THINKS)
    answer = model.invoke([HumanMessage(["Q.", picture(1)])])
    assert answer.text == "Red."
    assert answer.additional_kwargs["reasoning_content"] == "It is red."
    assert images_of(model) == [(1, RED)]
    model.invoke([HumanMessage([picture(1)]), answer, HumanMessage([picture(2)])])
    assert [width for width, _ in images_of(model)] == [1, 2]


@pytest.mark.parametrize("family", SIGHTS)
def test_the_profile(family: str) -> None:
    pytest.importorskip("langchain_core.language_models.model_profile")
    profile: Any = seeing("x", family=family).profile
    assert (profile["image_inputs"], profile["image_url_inputs"]) == (True, False)
    profile = scripted("x").profile
    assert [profile[key] for key in ("image_inputs", "image_url_inputs", "image_tool_message")] == [False] * 3


def test_old_results_of_gemma_keep_their_place() -> None:
    """Its images are left out of results only: the note stands where the image stood."""
    sight = Sight(GEMMA4_OLD, *SIGHTS["gemma4"][1:])
    model = ChatSpeculative(backend=SeeingBackend("ok", sight=sight))
    assert '<|tool_response>response:look{value:<|"|>Seen: \n[image/png' in found(model)


def test_the_example_asks_about_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    names = runpy.run_path(str(EXAMPLES / "look.py"))
    file = tmp_path / "photo.jpg"
    file.write_bytes(png(5, kind="JPEG"))
    model = seeing("A cat.")
    assert names["main"](model, file, "What is it?") == "A cat."
    assert capsys.readouterr().out == "A cat.\n"
    assert images_of(model)[0][0] == 5
    assert "<|vision_end|>What is it?<|im_end|>" in prompt_of(model)
