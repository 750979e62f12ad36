"""What a model writes, as LangChain's messages: whole or in chunks, with tool calls taken out of the text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from pydantic import Field, SkipValidation

from langchain_specdec.chat.answer_parsers import FORM_ERROR, is_whole
from langchain_specdec.chat.calls_or_object import CallsFirst
from langchain_specdec.chat.messages import short_id
from langchain_specdec.chat.structured_output import OutputForm
from langchain_specdec.chat.tool_calls import BrokenToolCall, Piece, ToolCall, ToolCallParser
from langchain_specdec.chat.tool_calls.values import name_in
from langchain_specdec.completions.completion import Completion
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.errors import MalformedAnswerError
from langchain_specdec.sampling.params import SamplingParams


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
        model_name: Tells it, for `response_metadata`: when an answer ends, a server has been asked.
        parser: Finds tool calls; None where no tools are bound, and all is text.
        form: The form that the answer has; its fixed parts are not in the events.
        params: What was asked for.
        must_call: Whether the answer has to be a call.
        keeps_malformed: Whether an answer is told that a server wrote against its grammar. Otherwise it raises; but one
            that has to be a call is an invalid call then.
    """

    def __init__(
        self,
        model_name: Callable[[], str],
        parser: ToolCallParser | CallsFirst | None,
        form: OutputForm | None,
        params: SamplingParams,
        *,
        must_call: bool = False,
        keeps_malformed: bool = False,
    ) -> None:
        self._model_name = model_name
        self._parser = parser
        # Held until its end where it has to be a call, for only then it is known whether it is one.
        self._held: str | None = "" if must_call else None
        self._keeps_malformed = keeps_malformed
        self._is_json = params.grammar is not None and params.grammar.regex is None
        self._cut = f"The answer was cut at max_new_tokens={params.max_new_tokens}: raise it."
        self._form_error: str | None = None
        self._has_calls = False
        self._begin, self._end = (form.begin, form.end) if form is not None else ("", "")
        self._tokens: list[Token] = []
        self._num_calls = 0
        self._ids: set[str] = set()

    def chunk(self, event: TokenEvent | FinishEvent) -> SpeculativeChatChunk | None:
        """The chunk of an event; None where a step released nothing. The last carries all counts.

        Raises:
            MalformedAnswerError: A server broke the grammar asked for.
        """
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
        """The whole answer; the last event is a `FinishEvent`.

        Raises:
            MalformedAnswerError: A server broke the grammar asked for.
        """
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
            text = event.text
        elif event.finish_reason == "eos_token":
            # An answer that was cut lacks its fixed end, too.
            text = self._end
        text, self._begin = self._begin + text, ""
        if self._held is not None:
            self._held += text
            pieces = [] if isinstance(event, TokenEvent) else self._forced_call(self._held, event)
        else:
            pieces = [text] if self._parser is None else self._parser.feed(text)
            if isinstance(event, FinishEvent):
                pieces = [*pieces, *self._closed(event)]
        for piece in pieces:
            if isinstance(piece, BrokenToolCall):
                self._form_error = piece.error
            self._has_calls = self._has_calls or not isinstance(piece, str)
        if isinstance(event, FinishEvent) and not self._has_calls:
            self._check_form(event)
        return pieces

    def _closed(self, finish: FinishEvent) -> list[Piece]:
        """What the end of the answer releases."""
        pieces = [] if self._parser is None else self._parser.close()
        if finish.finish_reason != "length":
            return pieces
        return [replace(piece, error=self._cut) if isinstance(piece, BrokenToolCall) else piece for piece in pieces]

    def _forced_call(self, text: str, finish: FinishEvent) -> list[Piece]:
        """The call that the whole answer is, or was to be."""
        assert isinstance(self._parser, ToolCallParser)  # noqa: S101 - reads what is forced
        pieces = [*self._parser.feed(text), *self._closed(finish)]
        if finish.grammar_error is None and any(not isinstance(piece, str) for piece in pieces):
            return pieces
        is_cut = finish.finish_reason == "length"
        error = finish.grammar_error or (self._cut if is_cut else "The answer is no call of a tool.")
        mark = "" if text.startswith(self._parser.mark) else self._parser.mark
        return [BrokenToolCall(mark + text, error, name_in(text))]

    def _check_form(self, finish: FinishEvent) -> None:
        """Note what is wrong with an answer that holds no calls."""
        if finish.grammar_error is not None:
            if not self._keeps_malformed:
                raise MalformedAnswerError(finish.grammar_error)
            self._form_error = finish.grammar_error
        elif finish.finish_reason == "length" and self._is_json:
            text = "".join(token.text for token in self._tokens)
            self._form_error = None if is_whole(text) else self._cut

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
        form = {} if self._form_error is None else {FORM_ERROR: self._form_error}
        return {"model_name": self._model_name(), "model_provider": "specdec", **info, **form}


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
