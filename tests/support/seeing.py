"""Chat templates in the shape of families that read images, and scripted models that are given images.

Their marks, and how they treat parts of a content, are those of the templates that the models are published with:
Gemma 3, Gemma 4 before and after it knew a role of tools (both in
https://github.com/ggml-org/llama.cpp/tree/master/models/templates), Qwen2-VL and Qwen2.5-VL, and Qwen3-VL.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from tokenizers import AddedToken

from langchain_specdec import ChatSpeculative
from langchain_specdec.models.image_reader import ImageReader, ImageTokens
from tests.support.backends import Answer, ScriptedBackend
from tests.support.chat_templates import chat_tokenizer

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
_PARTS = (
    "{% if message.content is string %}{{ message.content | trim }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}{{ 'IMAGE' }}{% elif item.type == 'text' %}{{ item.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% if messages[0].content is string %}"
    "{% set prefix = messages[0].content + '\n\n' %}{% else %}{% set prefix = messages[0].content[0].text + '\n\n' %}"
    "{% endif %}{% set rest = messages[1:] %}{% else %}{% set prefix = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{{ prefix if loop.first else '' }}" + _PARTS.replace("IMAGE", "<start_of_image>") + "{{ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_GEMMA4_CALLS = (
    "{% for call in message.tool_calls or [] %}{{ '<|tool_call>call:' + call.function.name + '{' }}"
    "{% for key, value in call.function.arguments | dictsort %}{{ key + ':<|\"|>' + value + '<|\"|>' }}{% endfor %}"
    "{{ '}<tool_call|>' }}{% endfor %}"
)
_GEMMA4_TOOLS = (
    "{% if tools or messages[0].role == 'system' %}{{ '<|turn>system\n' }}{% if messages[0].role == 'system' %}"
    "{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}{% for tool in tools or [] %}"
    "{{ '<|tool>declaration:' + tool.function.name + '<tool|>' }}{% endfor %}{{ '<turn|>\n' }}{% endif %}"
)
_GEMMA4_OPEN = "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
GEMMA4_OLD = (
    "{{ bos_token }}" + _GEMMA4_TOOLS + "{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    + _GEMMA4_CALLS
    + "{% for result in message.tool_responses or [] %}{{ '<|tool_response>response:' + result.name }}"
    "{{ '{value:<|\"|>' + result.response }}{{ '<|\"|>}<tool_response|>' }}{% endfor %}"
    + _PARTS.replace("IMAGE", "\n\n<|image|>\n\n")
    + "{{ '<turn|>\n' }}{% endfor %}"
    + _GEMMA4_OPEN
)
"""Has results with their calls, and no place for images there."""
GEMMA4 = (
    "{{ bos_token }}" + _GEMMA4_TOOLS + "{% for message in messages %}{% if message.role == 'tool' %}"
    "{{ '<|tool_response>response:' + message.name + '{value:<|\"|>' }}{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for item in message.content %}{{ item.text or '' }}{% endfor %}{% endif %}"
    "{{ '<|\"|>}<tool_response|>' }}{% if message.content is not string %}{% for item in message.content %}"
    "{% if item.type == 'image' %}{{ '<|image|>' }}{% endif %}{% endfor %}{% endif %}{% else %}"
    "{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    + _GEMMA4_CALLS
    + _PARTS.replace("IMAGE", "<|image|>")
    + "{{ '<turn|>\n' }}{% endif %}{% endfor %}"
    + _GEMMA4_OPEN
)
"""Has images of a result after it."""
QWEN2_VL = (
    "{% set count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' }}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for item in message.content %}{% if item.type == 'image' or 'image' in item or 'image_url' in item %}"
    "{% set count.value = count.value + 1 %}{% if add_vision_id %}{{ 'Picture ' ~ count.value ~ ': ' }}{% endif %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% elif 'text' in item %}{{ item.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Knows no tools."""
QWEN3_VL = (
    "{% macro content_of(content) %}{% if content is string %}{{ content }}{% else %}{% for item in content %}"
    "{% if 'image' in item or 'image_url' in item or item.type == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% elif 'text' in item %}{{ item.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
    "{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}"
    "{{ content_of(messages[0].content) + '\n\n' }}{% endif %}{{ '# Tools\n<tools>' }}{% for tool in tools %}"
    "{{ '\n' }}{{ tool | tojson }}{% endfor %}"
    "{{ '\n</tools>\nAnswer within <tool_call></tool_call> tags.<|im_end|>\n' }}"
    "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + content_of(messages[0].content) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% set content = content_of(message.content) %}"
    "{% if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}"
    "{% elif message.role == 'assistant' %}{{ '<|im_start|>assistant\n' + content }}"
    '{% for call in message.tool_calls or [] %}{{ \'\n<tool_call>\n{"name": "\' + call.function.name }}'
    "{{ '\", \"arguments\": ' }}{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% elif message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Shows images wherever they stand."""


class Sight(NamedTuple):
    """How a family shows images: its template, its placeholder, and what takes its place; `*` is repeated."""

    template: str
    placeholder: str
    begin: str
    part: str
    end: str


SIGHTS = {
    "gemma3": Sight(GEMMA3, "<start_of_image>", "\n\n<start_of_image>", "<image_soft_token>", "<end_of_image>\n\n"),
    "gemma4, old": Sight(GEMMA4_OLD, "<|image|>", "<|image>", "<|image|>", "<image|>"),
    "gemma4": Sight(GEMMA4, "<|image|>", "<|image>", "<|image|>", "<image|>"),
    "qwen2-vl": Sight(QWEN2_VL, "<|image_pad|>", "", "<|image_pad|>", ""),
    "qwen3-vl": Sight(QWEN3_VL, "<|image_pad|>", "", "<|image_pad|>", ""),
}

_SPECIALS = (
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<image_soft_token>", "<end_of_image>"),
    *("<|turn>", "<turn|>", "<|image>", "<|image|>", "<image|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>', "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
)


def seeing_tokenizer(template: str) -> Any:
    """The tokenizer of chats, with the special tokens of these templates too."""
    tokenizer = chat_tokenizer(template)
    added = [AddedToken(text, special=True, normalized=False) for text in _SPECIALS]
    tokenizer.add_tokens(added, special_tokens=True)
    return tokenizer


def make_reader(sight: Sight, tokenizer: Any) -> ImageReader:
    """Reads images: as many parts stand for one as it is wide."""

    def process(images: Sequence[Any], return_tensors: str) -> dict[str, Any]:
        return {"width": images[0].width, "pixel": images[0].getpixel((0, 0))}

    def text_of(made: Mapping[str, Any]) -> str:
        return sight.begin + sight.part * int(made["width"]) + sight.end

    part = tokenizer.convert_tokens_to_ids(sight.part)
    return ImageReader(process, ImageTokens(sight.placeholder, part, text_of, lambda made: made["width"]), ["pixel"])


class SeeingBackend(ScriptedBackend):
    """A scripted model that is given images."""

    def __init__(self, *answers: Answer, sight: Sight = SIGHTS["qwen3-vl"], width: int = 1) -> None:
        super().__init__(*answers, template=sight.template, width=width)
        self.tokenizer = seeing_tokenizer(sight.template)
        self.reader = make_reader(sight, self.tokenizer)

    @property
    def image_reader(self) -> ImageReader:
        return self.reader


def seeing(*answers: Answer, family: str = "qwen3-vl", width: int = 1, **fields: Any) -> ChatSpeculative:
    """A chat with a scripted model that is given images."""
    return ChatSpeculative(backend=SeeingBackend(*answers, sight=SIGHTS[family], width=width), **fields)


def png(width: int = 2, color: str = "red", kind: str = "PNG") -> bytes:
    """The file of a picture of one color."""
    file = io.BytesIO()
    Image.new("RGB", (width, 1), color).save(file, kind)
    return file.getvalue()


def picture(width: int = 2, color: str = "red") -> dict[str, Any]:
    """A content block with such a picture."""
    data = base64.b64encode(png(width, color)).decode()
    return {"type": "image", "base64": data, "mime_type": "image/png"}
