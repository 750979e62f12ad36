"""LangChain's messages as chat templates take them."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_specdec.chat.template import Message
from langchain_specdec.errors import InvalidParameterError

# Blocks of an assistant's message that are no text: calls stand in `tool_calls` too, and thoughts are not repeated.
_IGNORED_BLOCKS = frozenset(
    {
        "tool_use",
        "tool_call",
        "tool_call_chunk",
        "invalid_tool_call",
        "function_call",
        "input_json_delta",
        "reasoning",
        "reasoning_content",
        "thinking",
        "redacted_thinking",
    }
)
# Templates of Mistral refuse ids of any other form.
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_ID_ALPHABET = string.ascii_letters + string.digits


def to_template_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Messages as `apply_chat_template` takes them.

    Raises:
        InvalidParameterError: A message holds something other than text, or is of an unknown kind.
    """
    names = {call["id"]: call["name"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls}
    return [_message(message, names) for message in messages]


def _message(message: BaseMessage, tool_names: dict[str | None, str]) -> Message:
    content = _text(message)
    if isinstance(message, AIMessage):
        # A broken call is text that the model wrote.
        content += "".join(call["args"] or "" for call in message.invalid_tool_calls)
        converted: Message = {"role": "assistant", "content": content}
        if message.tool_calls:
            converted["tool_calls"] = [
                {
                    "type": "function",
                    "id": short_id(call["id"]),
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
        return converted
    if isinstance(message, ToolMessage):
        name = message.name or tool_names.get(message.tool_call_id, "")
        call_id = short_id(message.tool_call_id)
        return {"role": "tool", "name": name, "content": content, "tool_call_id": call_id}
    if isinstance(message, FunctionMessage):
        return {"role": "tool", "name": message.name, "content": content, "tool_call_id": short_id(message.name)}
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": content}
    role = {HumanMessage: "user", SystemMessage: "system"}
    for kind, name in role.items():
        if isinstance(message, kind):
            return {"role": name, "content": content, **({"name": message.name} if message.name else {})}
    msg = f"Messages of type {type(message).__name__} cannot be sent to a model."
    raise InvalidParameterError(msg)


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(_block_text(block, message) for block in message.content)


def _block_text(block: Any, message: BaseMessage) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        text: str = block["text"]
        return text
    if kind == "json" and isinstance(message, ToolMessage):
        return str(block.get("json"))
    if kind in _IGNORED_BLOCKS and isinstance(message, AIMessage):
        return ""
    msg = f"A message of type {message.type!r} has content of type {kind!r}. The model reads text only."
    raise InvalidParameterError(msg)


def short_id(call_id: str | None) -> str:
    """The id of a call as every template takes it, nine letters and digits; always the same for the same id."""
    if call_id is not None and _SHORT_ID.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256((call_id or "").encode("utf-8", "replace")).digest(), "big")
    size = len(_ID_ALPHABET)
    return "".join(_ID_ALPHABET[number // size**place % size] for place in range(9))
