"""Results of tools, and of other providers' models, that are no text: taken, told as a link, or noted."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, FunctionMessage, HumanMessage, ToolMessage
from langchain_core.messages.content import (
    create_audio_block,
    create_file_block,
    create_image_block,
    create_plaintext_block,
    create_text_block,
    create_video_block,
)
from langchain_core.tools import tool

from langchain_specdec.chat.content_blocks import content_text
from langchain_specdec.errors import InvalidParameterError
from tests.support.backends import scripted, scripted_backend
from tests.support.chat_templates import TEMPLATES

PNG = bytes(range(256)) * 48  # 12.3 kB
DATA = base64.b64encode(PNG).decode()
CSV = base64.b64encode(b"place,rain\nUlm,yes\n").decode()
URL = "https://example.org/a"
LEFT_OUT = "left out: this model reads text]"

# What is in a block, and what the model reads of it.
BLOCKS: dict[str, tuple[Any, str]] = {
    # LangChain's own, as its adapters for MCP make them.
    "text": (create_text_block("a"), "a"),
    "plain text": (create_plaintext_block("a", title="T"), "a"),
    "plain text, encoded": (create_plaintext_block(base64=CSV), "place,rain\nUlm,yes\n"),
    "plain text, linked": (create_plaintext_block(url=URL, title="T"), f"T: {URL}"),
    "picture": (create_image_block(base64=DATA, mime_type="image/png"), f"[image/png, 12.3 kB, {LEFT_OUT}"),
    "picture, linked": (create_image_block(url=URL, mime_type="image/png"), URL),
    "picture, kept": (create_image_block(file_id="file-1"), f"[file-1, image, {LEFT_OUT}"),
    "file": (
        create_file_block(base64=DATA, mime_type="application/pdf", filename="a.pdf"),
        f"[a.pdf, application/pdf, 12.3 kB, {LEFT_OUT}",
    ),
    "file, linked": (create_file_block(url=URL, mime_type="application/pdf"), URL),
    "file of text": (create_file_block(base64=CSV, mime_type="text/csv"), "place,rain\nUlm,yes\n"),
    "file of no text": (create_file_block(base64=DATA, mime_type="text/csv"), f"[text/csv, 12.3 kB, {LEFT_OUT}"),
    "sound": (create_audio_block(base64=DATA, mime_type="audio/wav"), f"[audio/wav, 12.3 kB, {LEFT_OUT}"),
    "video": (create_video_block(url=URL, mime_type="video/mp4"), URL),
    # LangChain's earlier ones.
    "v0 picture": (
        {"type": "image", "source_type": "base64", "data": DATA, "mime_type": "image/png"},
        f"[image/png, 12.3 kB, {LEFT_OUT}",
    ),
    "v0 link": ({"type": "image", "source_type": "url", "url": URL}, URL),
    "v0 text": ({"type": "file", "source_type": "text", "text": "a", "mime_type": "text/plain"}, "a"),
    "v0 id": ({"type": "file", "source_type": "id", "id": "f"}, f"[file, {LEFT_OUT}"),
    # MCP's.
    "MCP link": (
        {"type": "resource_link", "uri": "file:///r.md", "name": "r", "title": "Report", "mimeType": "text/markdown"},
        "Report: file:///r.md",
    ),
    "MCP link without title": ({"type": "resource_link", "uri": URL, "name": "r"}, f"r: {URL}"),
    "MCP text": ({"type": "resource", "resource": {"uri": URL, "mimeType": "text/plain", "text": "a"}}, "a"),
    "MCP bytes": (
        {"type": "resource", "resource": {"uri": URL, "mimeType": "image/png", "blob": DATA}},
        f"[{URL}, image/png, 12.3 kB, {LEFT_OUT}",
    ),
    "MCP picture": ({"type": "image", "data": DATA, "mimeType": "image/png"}, f"[image/png, 12.3 kB, {LEFT_OUT}"),
    "MCP sound": ({"type": "audio", "data": DATA, "mimeType": "audio/wav"}, f"[audio/wav, 12.3 kB, {LEFT_OUT}"),
    # OpenAI's.
    "OpenAI picture": (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}},
        f"[image/png, 12.3 kB, {LEFT_OUT}",
    ),
    "OpenAI link": ({"type": "image_url", "image_url": URL}, URL),
    "OpenAI input": ({"type": "input_image", "image_url": {"url": URL, "detail": "low"}}, URL),
    "OpenAI sound": (
        {"type": "input_audio", "input_audio": {"data": DATA, "format": "mp3"}},
        f"[audio/mp3, 12.3 kB, {LEFT_OUT}",
    ),
    "OpenAI file": (
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{DATA}"}},
        f"[a.pdf, application/pdf, 12.3 kB, {LEFT_OUT}",
    ),
    # Anthropic's.
    "Anthropic picture": (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
        f"[image/png, 12.3 kB, {LEFT_OUT}",
    ),
    "Anthropic link": ({"type": "document", "source": {"type": "url", "url": URL}, "title": "T"}, f"T: {URL}"),
    "Anthropic text": ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}, "a"),
    "Anthropic content": (
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}]}},
        "a",
    ),
    # Google's and Bedrock's.
    "Google picture": ({"type": "media", "mime_type": "image/png", "data": PNG}, f"[image/png, 12.3 kB, {LEFT_OUT}"),
    "Google link": ({"type": "media", "mime_type": "image/png", "file_uri": URL}, URL),
    "Bedrock picture": (
        {"image": {"format": "png", "source": {"bytes": PNG}}},
        f"[image/png, 12.3 kB, {LEFT_OUT}",
    ),
    "nothing": ({"type": "image"}, f"[image, {LEFT_OUT}"),
}


def result(*blocks: Any, **fields: Any) -> ToolMessage:
    return ToolMessage(list(blocks), tool_call_id="x", **fields)


@pytest.mark.parametrize("kind", BLOCKS)
def test_what_a_tool_or_another_model_gave_is_taken_or_noted(kind: str) -> None:
    block, text = BLOCKS[kind]
    for message in (
        result(block),
        FunctionMessage(content=[block], name="f"),
        AIMessage([block]),
        result(block, status="error"),
    ):
        assert content_text(message) == text


READABLE = [kind for kind, (block, text) in BLOCKS.items() if URL not in text and LEFT_OUT not in text]


@pytest.mark.parametrize("kind", sorted(BLOCKS.keys() - {"MCP link"}))
def test_a_person_may_give_files_of_text_only(kind: str) -> None:
    block, text = BLOCKS[kind]
    if kind in READABLE:
        assert content_text(HumanMessage([block])) == text
    else:
        with pytest.raises(InvalidParameterError, match=r"text only(: l|\. L)eave that out, or give what it says"):
            content_text(HumanMessage([block]))


def test_what_is_no_text_stands_on_lines_of_its_own() -> None:
    link, picture = {"type": "file", "url": URL}, {"type": "image", "data": DATA, "mimeType": "image/png"}
    note = f"[image/png, 12.3 kB, {LEFT_OUT}"
    assert content_text(result("a", {"type": "text", "text": "b"}, link, picture, "c")) == f"ab\n{URL}\n{note}\nc"
    assert content_text(result("a\n", link)) == f"a\n{URL}"
    assert content_text(result(link, "", link)) == f"{URL}\n{URL}"


@pytest.mark.parametrize(
    ("num_bytes", "size"), [(0, ""), (3, ", 3 bytes"), (1000, ", 1 kB"), (12345, ", 12.3 kB"), (5_000_000, ", 5 MB")]
)
def test_sizes(num_bytes: int, size: str) -> None:
    for data in (b"x" * num_bytes, base64.b64encode(b"x" * num_bytes).decode()):
        block = {"type": "image", "data": data, "mime_type": "image/png"}
        assert content_text(result(block)) == f"[image/png{size}, {LEFT_OUT}"


def test_no_bytes_stand_in_json() -> None:
    nested = {
        "type": "tool_result",
        "content": [
            {"type": "image", "source": {"type": "base64", "data": DATA}},
            {"raw": PNG, "u": f"data:a/b;base64,{DATA}"},
        ],
        "data": "short",
        "text": "a" * 500,
    }
    read = json.loads(content_text(result(nested)))
    assert read["content"][0]["source"]["data"] == f"[file, 12.3 kB, {LEFT_OUT}"
    assert read["content"][1] == {"raw": f"[bytes, 12.3 kB, {LEFT_OUT}", "u": f"[a/b, 12.3 kB, {LEFT_OUT}"}
    assert read["data"] == "short"
    assert read["text"] == "a" * 500
    assert content_text(result({"type": "json", "json": {"data": "a " * 500}})) == json.dumps({"data": "a " * 500})


@pytest.mark.parametrize(
    "row",
    [
        {"type": "file", "path": "a/b.py", "size": 3},
        {"type": "document", "id": "7", "page_content": "Rain."},
        {"document": "Rain in Ulm.", "score": 0.5},
        {"image": URL, "price": 3, "title": "Umbrella"},
        {"file": "a.py", "line": 7},
    ],
)
def test_rows_of_a_tool_are_told_whole(row: dict[str, Any]) -> None:
    """A listing or a search may have words of blocks in its rows, which hold neither a file nor a link to one."""
    text = content_text(ToolMessage([row, row], tool_call_id="1"))
    assert text.replace("\n", "") == json.dumps(row) * 2


def test_an_error_names_the_tool() -> None:
    endless: dict[str, Any] = {}
    endless["x"] = endless
    message = ToolMessage("", tool_call_id="1")
    message.content = [endless]
    call = AIMessage("", tool_calls=[{"name": "look_up", "args": {}, "id": "1"}])
    with pytest.raises(InvalidParameterError, match="The result of the tool 'look_up' cannot be written as JSON"):
        scripted("x").invoke([HumanMessage("x"), call, message])
    call.tool_calls[0]["args"] = endless
    with pytest.raises(InvalidParameterError, match="A call of the tool 'look_up' has arguments that cannot be"):
        scripted("x").invoke([HumanMessage("x"), call])


@tool(response_format="content_and_artifact")
def look_up(name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Look a file up."""
    found = [
        create_text_block("Found:"),
        create_file_block(url=URL),
        create_image_block(base64=DATA, mime_type="image/png"),
    ]
    return [dict(block) for block in found], {"raw": DATA}


@pytest.mark.transformers
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_thread_goes_on_after_a_result_that_is_no_text(template: str) -> None:
    found = look_up.invoke({"type": "tool_call", "id": "1", "name": "look_up", "args": {"name": "a"}})
    assert isinstance(found.content, list)
    call = AIMessage("", tool_calls=[{"name": "look_up", "args": {"name": "a"}, "id": "1"}])
    thread: list[BaseMessage] = [HumanMessage("x"), call, found]
    model = scripted("ok", template=template)
    for more in ([], [AIMessage("ok"), HumanMessage("y")]):
        assert model.bind_tools([look_up]).invoke([*thread, *more]).text == "ok"
        prompt = scripted_backend(model).prompt
        assert URL in prompt
        assert f"12.3 kB, {LEFT_OUT}" in prompt
        assert DATA[:40] not in prompt
    assert model.get_num_tokens_from_messages(thread) < 500
