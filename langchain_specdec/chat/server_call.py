"""A call of a chat model whose prompt the server writes, by a template of its own: messages are sent as they are."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.answer_reader import AnswerReader
from langchain_specdec.chat.arrangements import Message
from langchain_specdec.chat.call import AskedCall, ReadyCall, make_end_check
from langchain_specdec.chat.images import Images, split
from langchain_specdec.chat.replies import ReplyReader
from langchain_specdec.chat.structured_output import with_schema_prompt
from langchain_specdec.chat.tool_calls import ToldCallParser
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.server_chat import THOUGHT_BEGIN, THOUGHT_END, ServerChat
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.errors import InvalidParameterError

# What files of images begin with.
_KINDS = ((b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


def server_call(
    asked: AskedCall,
    backend: Backend,
    chat_template: str | None,
    variables: Mapping[str, Any] | None,
    *,
    has_blocks: bool = False,
) -> ReadyCall:
    """The messages of a call, and how its answer is read.

    Args:
        asked: The call.
        backend: Where it will run; it has `takes_messages`.
        chat_template: A template of the user's own.
        variables: Further variables of the server's template.
        has_blocks: Whether the content of the answer is a list of standard blocks.

    Raises:
        InvalidParameterError: Something is asked for that takes a prompt which is written here.
    """
    _check(asked, chat_template)
    params, options, form = asked.params, asked.options, asked.form
    if form is not None:
        params = replace(params, grammar=form.grammar)
    parser, is_forced = ToldCallParser(), asked.forced is not None
    if asked.takes_one_forced if is_forced else asked.takes_one_call:
        parser.expect_one_call()
    thoughts = Thoughts((THOUGHT_BEGIN,), THOUGHT_END, has_stops=bool(options["stop_in_reasoning"]))
    chat = ServerChat(
        [_message(row, asked.images) for row in asked.rows],
        asked.tools,
        _choice(asked),
        options["parallel_tool_calls"] if asked.tools else None,
        options["reasoning"],
        variables or {},
        "" if form is None else with_schema_prompt((), form, has_tools=bool(asked.tools))[0]["content"],
    )
    has_end = asked.may_call and asked.takes_one_call and not is_forced
    end_check = make_end_check(AnswerReader(parser, thoughts)) if has_end else None
    request = CompletionRequest("", params, make_end_check=end_check, thoughts=thoughts, chat=chat)
    reader = ReplyReader(
        lambda: backend.model_name,
        parser,
        None,
        params,
        must_call=is_forced,
        keeps_malformed=bool(options["_keep_malformed"]),
        has_blocks=has_blocks,
        thoughts=thoughts,
    )
    return ReadyCall(request, reader, asked.limit)


def _check(asked: AskedCall, chat_template: str | None) -> None:
    given = {
        "max_reasoning_tokens": asked.options["max_reasoning_tokens"] is not None,
        "continue_final_message": bool(asked.options["continue_final_message"]),
        "logprobs": asked.params.logprobs is not None,
        "chat_template": chat_template is not None,
    }
    why = "with images the server itself writes the prompt" if asked.images else "the server itself writes the prompt"
    advice = "" if asked.images else ", or give the model's tokenizer: tokenizer="
    for name, is_given in given.items():
        if is_given:
            msg = f"{name} cannot be honoured, since {why}. Leave it out{advice}."
            raise InvalidParameterError(msg)


def _choice(asked: AskedCall) -> str | dict[str, Any] | None:
    """`tool_choice` as OpenAI's protocol has it."""
    if asked.forced is None:
        return "none" if asked.tools and not asked.may_call else None
    if asked.takes_one_forced and len(asked.forced) == 1:
        return {"type": "function", "function": {"name": asked.forced[0]["function"]["name"]}}
    return "required"


def _message(row: Message, images: Images) -> dict[str, Any]:
    """A message, as templates take it, in the form of OpenAI's protocol."""
    pieces = split(row["content"])
    content: Any = row["content"]
    if any(isinstance(piece, int) for piece in pieces):
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(images.data(piece))}}
            if isinstance(piece, int)
            else {"type": "text", "text": piece}
            for piece in pieces
        ]
    message = {**row, "content": content}
    if row["role"] == "tool":
        # The call that it answers names the tool.
        message.pop("name", None)
    if calls := row.get("tool_calls"):
        message["tool_calls"] = [{**call, "function": _function(call["function"])} for call in calls]
    return message


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"name": function["name"], "arguments": text}


def _data_url(data: bytes) -> str:
    kind = next((kind for begin, kind in _KINDS if data.startswith(begin)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
