"""LangChain's messages as chat templates take them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from itertools import chain
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

from langchain_specdec.chat.arrangements import Message
from langchain_specdec.chat.content_blocks import as_json, content_text
from langchain_specdec.chat.images import Images
from langchain_specdec.chat.tool_calls import ToolCallParser
from langchain_specdec.errors import InvalidParameterError

# Blocks that are calls, and the keys of their ids and arguments.
_CALL_KEYS = {"tool_use": ("id", "input"), "tool_call": ("id", "args"), "function_call": ("call_id", "arguments")}
# Templates of Mistral refuse ids of any other form.
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_ID_ALPHABET = string.ascii_letters + string.digits


def to_template_messages(messages: Sequence[BaseMessage], images: Images | None = None) -> list[Message]:
    """Messages as `apply_chat_template` takes them, but for images, for which marks stand in their texts.

    Args:
        messages: The messages.
        images: Gets their images; None refuses those of a person.

    Raises:
        InvalidParameterError: A message of a person or the system holds something other than text, and images where
            the model can be given some, or one is of an unknown kind.
    """
    names = {call["id"]: call["name"] for m in messages if isinstance(m, AIMessage) for call in _calls(m)}
    return [_message(message, names, images) for message in messages]


def _message(message: BaseMessage, tool_names: dict[str | None, str], images: Images | None) -> Message:
    tool = ""
    if isinstance(message, ToolMessage):
        tool = message.name or tool_names.get(message.tool_call_id, "")
    elif isinstance(message, FunctionMessage):
        tool = message.name
    content = content_text(message, tool, images)
    if isinstance(message, AIMessage):
        refusal = message.additional_kwargs.get("refusal")
        content = content or (refusal if isinstance(refusal, str) else "")
        # A broken call is text that the model wrote.
        content += "".join(call["args"] or "" for call in message.invalid_tool_calls)
        converted: Message = {"role": "assistant", "content": content}
        if thought := thought_of(message):
            converted["reasoning_content"] = thought
        if calls := _calls(message):
            converted["tool_calls"] = [
                {
                    "type": "function",
                    "id": short_id(call["id"]),
                    "function": {"name": call["name"], "arguments": _arguments(call)},
                }
                for call in calls
            ]
        return converted
    if isinstance(message, ToolMessage):
        call_id = short_id(message.tool_call_id)
        return {"role": "tool", "name": tool, "content": content, "tool_call_id": call_id}
    if isinstance(message, FunctionMessage):
        return {"role": "tool", "name": tool, "content": content, "tool_call_id": short_id(tool)}
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": content}
    role = {HumanMessage: "user", SystemMessage: "system"}
    for kind, name in role.items():
        if isinstance(message, kind):
            return {"role": name, "content": content, **({"name": message.name} if message.name else {})}
    msg = f"Messages of type {type(message).__name__} cannot be sent to a model."
    raise InvalidParameterError(msg)


def thought_of(message: AIMessage) -> str:
    """What a model thought before its answer, also one of another provider; "" where it is not told."""
    own = message.additional_kwargs.get("reasoning_content")
    if isinstance(own, str):
        return own
    blocks = [block for block in message.content if isinstance(block, Mapping)]
    thoughts = [block.get(block["type"]) for block in blocks if block.get("type") in ("reasoning", "thinking")]
    return "\n\n".join(thought for thought in thoughts if isinstance(thought, str) and thought)


def _calls(message: AIMessage) -> Sequence[Mapping[str, Any]]:
    """The calls of an answer, also where they stand among its content only, or as OpenAI's first interface had them."""
    if message.tool_calls or message.invalid_tool_calls:
        return message.tool_calls
    blocks = [block for block in message.content if isinstance(block, Mapping)]
    if isinstance(legacy := message.additional_kwargs.get("function_call"), Mapping):
        # Its result tells the name only.
        blocks.append({**legacy, "type": "function_call", "call_id": legacy.get("name")})
    calls = []
    for block in blocks:
        id_key, key = _CALL_KEYS.get(str(block.get("type")), ("", ""))
        if key in block and isinstance(block.get("name"), str):
            arguments = block[key]
            if isinstance(arguments, str):
                with contextlib.suppress(ValueError, RecursionError):
                    arguments = json.loads(arguments)
            calls.append({"id": block.get(id_key), "name": block["name"], "args": arguments})
    return calls


def _arguments(call: Mapping[str, Any]) -> Any:
    return as_json(call["args"], f"A call of the tool {call['name']!r} has arguments that")


def size_of(messages: Sequence[BaseMessage]) -> float:
    """Roughly how many characters messages become; infinite where it cannot be told."""
    data = [
        (m.content, m.additional_kwargs, m.tool_calls, m.invalid_tool_calls)
        if isinstance(m, AIMessage)
        else (m.content,)
        for m in messages
    ]
    try:
        return sum(map(_size, chain(*data)))
    except Exception:  # it may be nested too deeply, and what is no data may raise anything
        return math.inf


def _size(value: Any) -> int:
    # Images are long, and need not be copied for this.
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_size(key) + _size(item) for key, item in value.items())
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else len(repr(value))


def continues_message(
    option: Any, messages: Sequence[Message], parser: ToolCallParser | None, *, has_form: bool
) -> bool:
    """Whether the answer goes on with the last message, which the parser then knows of.

    Args:
        option: `continue_final_message` as it was given.
        messages: As `to_template_messages` gives them.
        parser: What will find calls in the answer, where there may be any.
        has_form: Whether the answer is to have a form.

    Raises:
        InvalidParameterError: It is to go on, and cannot: the last message is not the assistant's, or has no text, or
            calls a tool. Or the option is neither True nor False.
    """
    if option is not None and not isinstance(option, bool):
        msg = f"continue_final_message must be True or False, got {option!r}."
        raise InvalidParameterError(msg)
    if not option:
        return False
    if has_form:
        msg = (
            "continue_final_message and a form of the answer (response_format, a schema, or a tool_choice that "
            "forces a call) contradict each other: the form is that of a whole answer. Give one of them."
        )
        raise InvalidParameterError(msg)
    last = messages[-1] if messages else {"role": "none"}
    reason = ""
    if last["role"] != "assistant":
        reason = f"is of role {last['role']!r}"
    elif not last["content"].strip() and not last.get("tool_calls"):
        reason = "has no text"
    elif last.get("tool_calls") or (parser is not None and not parser.skip(last["content"])):
        reason = "calls a tool, or begins to"
    if reason:
        msg = (
            f"continue_final_message goes on with the text of an assistant message at the end, and the last message "
            f"{reason}. End with an AIMessage that holds the beginning of the answer, or leave the option out."
        )
        raise InvalidParameterError(msg)
    return True


def short_id(call_id: str | None) -> str:
    """The id of a call as every template takes it, nine letters and digits; always the same for the same id."""
    if call_id is not None and _SHORT_ID.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256((call_id or "").encode("utf-8", "replace")).digest(), "big")
    size = len(_ID_ALPHABET)
    return "".join(_ID_ALPHABET[number // size**place % size] for place in range(9))
