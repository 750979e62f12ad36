"""Prompts with images: what transformers' own processors make of the same messages, token for token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from tests.support.seeing import SIGHTS, SeeingBackend, picture, seeing

pytestmark = pytest.mark.transformers

# Short texts of what templates trim, split at and complete.
texts = st.text(" \n<|>aé", min_size=1, max_size=4)
# An image is as wide as the number says.
contents = st.lists(texts | st.integers(1, 4), min_size=1, max_size=5).filter(
    lambda content: any(isinstance(piece, int) or piece.strip() for piece in content)
)
threads = st.lists(st.tuples(contents, texts.filter(str.strip)), min_size=1, max_size=3)
MODELS = {family: seeing("ok", family=family) for family in SIGHTS}


def as_parts(content: list[Any]) -> list[dict[str, Any]] | str:
    """A content as transformers takes it. Texts that follow each other are one, as in LangChain."""
    parts: list[dict[str, Any]] = []
    for piece in content:
        if isinstance(piece, int):
            parts.append({"type": "image"})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += piece
        else:
            parts.append({"type": "text", "text": piece})
    return parts if any(part["type"] == "image" for part in parts) else parts[0]["text"]


@settings(max_examples=60, deadline=None)
@given(thread=threads, system=st.none() | texts.filter(str.strip), question=contents)
@pytest.mark.parametrize("family", SIGHTS)
def test_prompts_are_those_of_the_processors(
    family: str, thread: list[tuple[list[Any], str]], system: str | None, question: list[Any]
) -> None:
    """A processor renders the template, puts what stands for each image in place of its placeholder, and encodes."""
    messages: list[BaseMessage] = [] if system is None else [SystemMessage(system)]
    rows: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    widths: list[int] = []
    for asked, answer in [*thread, (question, "")]:
        blocks = [piece if isinstance(piece, str) else picture(piece) for piece in asked]
        messages.append(HumanMessage(blocks))
        rows.append({"role": "user", "content": as_parts(asked)})
        widths += [piece for piece in asked if isinstance(piece, int)]
        if answer:
            messages.append(AIMessage(answer))
            rows.append({"role": "assistant", "content": answer})
    model, sight = MODELS[family], SIGHTS[family]
    backend = model.backend
    assert isinstance(backend, SeeingBackend)
    rendered = backend.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    first, *rest = rendered.split(sight.placeholder)
    pieces = [sight.begin + sight.part * width + sight.end + text for width, text in zip(widths, rest, strict=True)]
    expected = backend.tokenizer("".join([first, *pieces]), add_special_tokens=False).input_ids
    model.invoke(messages)
    request = backend.requests.pop()
    assert request.prompt == expected
    assert [image.stop - image.start for image in request.images] == widths
    part = backend.tokenizer.convert_tokens_to_ids(sight.part)
    assert all(set(request.prompt[image.start : image.stop]) == {part} for image in request.images)
