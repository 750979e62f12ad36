"""`/v1/chat/completions`: a chat of `ChatSpeculative`, whole or in pieces."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from langchain_specdec.chat.call import ReadyCall
from langchain_specdec.chat_models import ChatSpeculative
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.errors import InvalidParameterError, PromptTooLongError, UnsupportedModelError
from langchain_specdec.server.exchange import Compact, EventStream, compact
from langchain_specdec.server.held import Held
from langchain_specdec.server.openai import answers
from langchain_specdec.server.openai.bodies import ChatBody, parsed
from langchain_specdec.server.openai.errors import problem_of
from langchain_specdec.server.served_model import ServedModel, Started

DONE = "data: [DONE]\n\n"
"""The last event of a stream."""


async def chat(served: ServedModel, body: Any, held: Held) -> Response:
    """Answer messages.

    Args:
        served: The model.
        body: The parsed JSON.
        held: What the request holds; a stream takes it over.

    Raises:
        SpecDecError: It cannot be answered.
    """
    asked: ChatBody = parsed(ChatBody, body)
    call = await ready_call(served, asked)
    started = await served.start([call.request], held, is_whole=not asked.stream)
    shape = _Shape(served, asked, call)
    if asked.stream:
        return EventStream(_streamed(shape, started), started.held.pop_all(), served.settings.request_timeout)
    return Compact(await shape.whole([event async for event in started.runs[0]]))


async def ready_call(served: ServedModel, asked: ChatBody) -> ReadyCall:
    """The prompt of a chat, and how its answer is read.

    Raises:
        SpecDecError: It cannot be run.
    """
    model = served.chat
    if model is None:
        msg = f"{served.name} has no chat template, so it takes no messages. Use /v1/completions."
        raise UnsupportedModelError(msg)
    options = {**asked.options(), "adapter": served.adapter_of(asked.model)}
    # Beside the event loop: there may be thousands.
    messages = await asyncio.to_thread(_messages, model, [message.row() for message in asked.messages])
    limit = asked.limit
    call = await model._aprepare(
        messages, None, {**options, "max_new_tokens": served.max_length if limit is None else limit}
    )
    return call if limit is not None else _with_room(call, served.max_length)


def _with_room(call: ReadyCall, max_length: int) -> ReadyCall:
    """The call with as many new tokens as there is room for."""
    request = call.request
    room = max_length - len(request.prompt)
    if room < 1:
        msg = (
            f"The prompt has {len(request.prompt)} tokens, and the server has room for {max_length} of a prompt and "
            f"its answer together. Shorten the messages."
        )
        raise PromptTooLongError(msg)
    thoughts = request.thoughts
    if thoughts is not None and thoughts.max_tokens is not None:
        thoughts = replace(thoughts, max_tokens=min(thoughts.max_tokens, room // 2))
    params = replace(request.params, max_new_tokens=room)
    return call._replace(request=replace(request, params=params, thoughts=thoughts))


def _messages(model: ChatSpeculative, rows: list[dict[str, Any]]) -> Any:
    try:
        return model._convert_input(rows).to_messages()
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RecursionError) as error:
        # LangChain's messages, and pydantic's, end in advice for their own users.
        said = str(error).split("For troubleshooting")[0].split("For further information")[0]
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(said.split())
        msg = f"messages cannot be read: {reason or type(error).__name__}"
        raise InvalidParameterError(msg) from error


async def _streamed(shape: _Shape, started: Started) -> AsyncGenerator[str, None]:
    """The events of a stream. What fails meanwhile is the last of them."""
    try:
        yield shape.frame([shape.choice({"role": "assistant", "content": ""})])
        async for event in started.runs[0]:
            for frame in await shape.frames(event):
                yield frame
    except Exception as error:
        yield f"data: {compact(problem_of(error)[1])}\n\n"
    yield DONE


class _Shape:
    """Shapes the answer to one request."""

    def __init__(self, served: ServedModel, asked: ChatBody, call: ReadyCall) -> None:
        self._served = served
        self._asked = asked
        self._reader = call.reader
        self._common = {
            "id": answers.new_id("chatcmpl"),
            "object": "chat.completion.chunk" if asked.stream else "chat.completion",
            "created": int(time.time()),
            "model": asked.model or served.name,
        }
        self._untold: list[Token] = []
        self._num_calls = 0

    async def whole(self, events: list[Any]) -> dict[str, Any]:
        """The whole answer."""
        generation = self._reader.generation(events)
        message: Any = generation.message
        finish = events[-1]
        calls = [
            self._call(call["name"], json.dumps(call["args"], ensure_ascii=False), call["id"])
            for call in message.tool_calls
        ]
        # A call that cannot be read is text that the model wrote.
        text = message.content + "".join(call["args"] or "" for call in message.invalid_tool_calls)
        told: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if thought := message.additional_kwargs.get("reasoning_content"):
            told["reasoning_content"] = thought
        if calls:
            told["tool_calls"] = calls
        tokens = [token for event in events if isinstance(event, TokenEvent) for token in event.tokens]
        choice = {
            "index": 0,
            "message": told,
            "logprobs": await self._logprobs(tokens),
            "finish_reason": answers.finish_reason(finish, has_calls=bool(calls)),
        }
        details = (message.usage_metadata or {}).get("output_token_details", {})
        counts = answers.usage([finish], details.get("reasoning"))
        return {**self._common, "choices": [choice], "usage": counts, **answers.speculation([finish])}

    async def frames(self, event: TokenEvent | FinishEvent) -> list[str]:
        """What an event adds to the stream."""
        if isinstance(event, TokenEvent):
            self._untold += event.tokens
        chunks = self._reader.chunks(event)
        parts = chunks[:-1] if isinstance(event, FinishEvent) else chunks
        deltas = [delta for chunk in parts for delta in self._deltas(chunk.message)]
        frames = [self.frame([self.choice(delta, await self._told_logprobs())]) for delta in deltas]
        return [*frames, *(await self._end(event, chunks[-1].message))] if isinstance(event, FinishEvent) else frames

    async def _end(self, finish: FinishEvent, last: Any) -> list[str]:
        choice = self.choice({}, await self._told_logprobs())
        choice["finish_reason"] = answers.finish_reason(finish, has_calls=self._num_calls > 0)
        extra = answers.speculation([finish])
        if not self._asked.has_usage:
            return [self.frame([choice], **extra)]
        details = (last.usage_metadata or {}).get("output_token_details", {})
        counts = answers.usage([finish], details.get("reasoning"))
        return [self.frame([choice]), self.frame([], usage=counts, **extra)]

    def _deltas(self, message: Any) -> Iterator[dict[str, Any]]:
        if thought := message.additional_kwargs.get("reasoning_content"):
            yield {"reasoning_content": thought}
        # A chunk is text or one call. A call that cannot be read is text that the model wrote.
        if text := message.content + "".join(call["args"] or "" for call in message.invalid_tool_calls):
            yield {"content": text}
        for call in () if message.invalid_tool_calls else message.tool_call_chunks:
            told = self._call(call["name"], call["args"], call["id"])
            yield {"tool_calls": [{"index": self._num_calls, **told}]}
            self._num_calls += 1

    @staticmethod
    def _call(name: str | None, arguments: str | None, call_id: str | None) -> dict[str, Any]:
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    @staticmethod
    def choice(delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        """The choice of a chunk."""
        return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def frame(self, choices: list[dict[str, Any]], **extra: Any) -> str:
        """A chunk as an event."""
        counts = {"usage": None} if self._asked.has_usage else {}
        return f"data: {compact({**self._common, 'choices': choices, **counts, **extra})}\n\n"

    async def _told_logprobs(self) -> dict[str, Any] | None:
        tokens, self._untold = self._untold, []
        return await self._logprobs(tokens) if tokens else None

    async def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if not self._asked.logprobs:
            return None
        by_id = bool(self._asked.return_tokens_as_token_ids)
        return answers.chat_logprobs(tokens, await answers.token_names(self._served, tokens, by_id=by_id))
