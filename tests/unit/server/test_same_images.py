"""Images in chats with a model in this process, and with the same behind `specdec serve`: the same answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from langchain_specdec import ChatSpeculative, LocalBackend
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.server.run import Server
from langchain_specdec.server.settings import ServerSettings
from tests.support import image_models as images

pytestmark = [pytest.mark.server, pytest.mark.transformers]

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}"
    f"{images.BEGIN}{images.PART}{images.END}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def picture(seed: int) -> dict[str, Any]:
    return {"type": "image", "base64": base64.b64encode(images.picture(seed)).decode(), "mime_type": "image/png"}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[ChatSpeculative, ChatSpeculative]]:
    processor = images.processor("qwen2_5_vl")
    processor.tokenizer.chat_template = TEMPLATE
    with closing(LocalBackend(images.model("qwen2_5_vl"), processor, num_slots=2, max_length=512)) as backend:
        here = ChatSpeculative(backend=backend, max_tokens=16, ignore_eos=True)
        # Its thread runs from here on.
        here.invoke("a")
        # The tokenizer is not asked for: no prompt of text carries an image.
        with (
            Server(ServerSettings(port=0)).start(backend) as server,
            ChatSpeculative.from_server(server.url, max_tokens=16, ignore_eos=True) as there,
        ):
            yield here, there


SEEN = [HumanMessage(["Left: ", picture(1), " right: ", picture(2)])]
CALL = {"name": "look", "args": {"place": "sea"}, "id": "abcdefghi"}
FOUND = [
    HumanMessage(["What is there?", picture(3)]),
    AIMessage("", tool_calls=[CALL]),
    ToolMessage(["Found: ", picture(4)], tool_call_id="abcdefghi"),
]


@pytest.mark.parametrize("messages", [SEEN, FOUND], ids=["seen", "found by a tool"])
@pytest.mark.parametrize(
    "call", [{}, {"temperature": 1.0, "seed": 5, "stop": ["e", "\x01"]}], ids=["greedy", "sampled"]
)
def test_an_answer_is_the_same(pair, messages, call):
    ours, theirs = [chat.invoke(messages, **call) for chat in pair]
    assert theirs.content == ours.content == "".join(piece.text for piece in pair[1].stream(messages, **call))
    for name in ("finish_reason", "seed") if call else ("finish_reason",):
        assert theirs.response_metadata[name] == ours.response_metadata[name]
    counts = [{**answer.usage_metadata, "input_token_details": None} for answer in (ours, theirs)]
    assert counts[0] == counts[1]
    assert theirs.response_metadata["speculation"]["num_steps"] is not None


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"type": "image", "url": "https://a.de/x.png"}, "Nothing is fetched"),
        ({"type": "image", "base64": "bm8gaW1hZ2U=", "mime_type": "image/png"}, "none that Pillow can read"),
    ],
)
def test_what_is_no_image_is_refused(pair, block, said):
    for chat in pair:
        with pytest.raises(InvalidParameterError, match=said):
            chat.invoke([HumanMessage(["x", block])])
