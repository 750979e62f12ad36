"""What a model writes, as LangChain's messages: whole or in chunks, with tool calls taken out of the text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from pydantic import Field, SkipValidation

from langchain_specdec.chat.calls_or_object import CallsFirst
from langchain_specdec.chat.messages import short_id
from langchain_specdec.chat.structured_output import OutputForm
from langchain_specdec.chat.tool_calls import BrokenToolCall, Piece, ToolCall, ToolCallParser
from langchain_specdec.completions.completion import Completion
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent


class SpeculativeChatChunk(ChatGenerationChunk):
    """A piece of a streamed answer that knows its tokens, and which of them were drafted.

    Callbacks receive it as `chunk`.

    Attributes:
        tokens: The tokens of the decoding step that released the piece.
    """

    tokens: SkipValidation[tuple[Token, ...]] = Field(default=(), exclude=True, repr=False)

    @classmethod
    def lc_id(cls) -> list[str]:
        """Stored as what LangChain can load again: a `ChatGenerationChunk`, without the tokens."""
        return ChatGenerationChunk.lc_id()


class ReplyReader:
    """Turns the events of one completion into chunks, or into one message.

    Args:
        model_name: For `response_metadata`.
        parser: Finds tool calls; None where no tools are bound, and all is text.
        mark_texts: Special tokens whose text the parser has to see, by id.
        form: The form that the answer has; its fixed parts are not in the events.
    """

    def __init__(
        self,
        model_name: str,
        parser: ToolCallParser | CallsFirst | None,
        mark_texts: Mapping[int, str],
        form: OutputForm | None = None,
    ) -> None:
        self._model_name = model_name
        self._parser = parser
        self._mark_texts = mark_texts if parser is not None else {}
        self._begin, self._end = (form.begin, form.end) if form is not None else ("", "")
        self._tokens: list[Token] = []
        self._num_calls = 0
        self._ids: set[str] = set()

    def chunk(self, event: TokenEvent | FinishEvent) -> SpeculativeChatChunk | None:
        """The chunk of an event; None where a step released nothing. The last carries all counts."""
        pieces = self._pieces(event)
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [self._call_chunk(piece) for piece in pieces if not isinstance(piece, str)]
        if isinstance(event, TokenEvent):
            if not text and not calls:
                return None
            message = AIMessageChunk(content=text, tool_call_chunks=calls)
            return SpeculativeChatChunk(message=message, tokens=event.tokens)
        # LangChain adds up the numbers of chunks that it merges, so only the last chunk carries them.
        message = AIMessageChunk(
            content=text, tool_call_chunks=calls, usage_metadata=_usage(event), chunk_position="last"
        )
        return SpeculativeChatChunk(message=message, generation_info=self._info(event))

    def generation(self, events: Sequence[TokenEvent | FinishEvent]) -> ChatGeneration:
        """The whole answer; the last event is a `FinishEvent`."""
        pieces = [piece for event in events for piece in self._pieces(event)]
        finish = events[-1]
        assert isinstance(finish, FinishEvent)  # noqa: S101 - what a backend promises
        message = AIMessage(
            content="".join(piece for piece in pieces if isinstance(piece, str)),
            tool_calls=[
                tool_call(name=piece.name, args=piece.arguments, id=self._new_id(piece.id))
                for piece in pieces
                if isinstance(piece, ToolCall)
            ],
            invalid_tool_calls=[
                invalid_tool_call(name=piece.name, args=piece.text, id=self._new_id(), error=piece.error)
                for piece in pieces
                if isinstance(piece, BrokenToolCall)
            ],
            usage_metadata=_usage(finish),
        )
        return ChatGeneration(message=message, generation_info=self._info(finish))

    def _pieces(self, event: TokenEvent | FinishEvent) -> list[Piece]:
        text = ""
        if isinstance(event, TokenEvent):
            self._tokens.extend(event.tokens)
            text = "".join(token.text + self._mark_of(token) for token in event.tokens)
        elif event.finish_reason == "eos_token":
            # An answer that was cut lacks its fixed end, too.
            text = self._end
        text, self._begin = self._begin + text, ""
        if self._parser is None:
            return [text]
        pieces = self._parser.feed(text)
        return pieces if isinstance(event, TokenEvent) else [*pieces, *self._parser.close()]

    def _mark_of(self, token: Token) -> str:
        """The text of a mark that decoding has left out. Servers leave out some special tokens only."""
        mark = self._mark_texts.get(token.id, "")
        return "" if mark in token.text else mark

    def _call_chunk(self, piece: ToolCall | BrokenToolCall) -> Any:
        index = self._num_calls
        self._num_calls += 1
        if isinstance(piece, ToolCall):
            arguments = json.dumps(piece.arguments, ensure_ascii=False)
            return tool_call_chunk(name=piece.name, args=arguments, id=self._new_id(piece.id), index=index)
        # The text keeps its mark: LangChain would complete JSON that was cut, and take it for a call.
        return tool_call_chunk(name=piece.name, args=piece.text, id=self._new_id(), index=index)

    def _new_id(self, given: str | None = None) -> str:
        if given is None or given in self._ids:
            given = short_id(secrets.token_hex())
        self._ids.add(given)
        return given

    def _info(self, finish: FinishEvent) -> dict[str, Any]:
        info = Completion(tuple(self._tokens), finish).info()
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            info.pop(name, None)  # they are in usage_metadata
        return {"model_name": self._model_name, "model_provider": "specdec", **info}


def _usage(finish: FinishEvent) -> UsageMetadata:
    usage = UsageMetadata(
        input_tokens=finish.prompt_tokens,
        output_tokens=finish.completion_tokens,
        total_tokens=finish.prompt_tokens + finish.completion_tokens,
    )
    # None where the backend does not know it.
    if finish.cached_tokens is not None:
        usage["input_token_details"] = InputTokenDetails(cache_read=finish.cached_tokens)
    return usage
