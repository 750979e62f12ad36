"""What a model writes, as LangChain's messages: whole or in chunks, with thoughts and calls taken out of the text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from pydantic import Field, SkipValidation

from langchain_specdec.chat.answer_parsers import FORM_ERROR, is_whole
from langchain_specdec.chat.answer_reader import AnswerReader, ReplyPiece
from langchain_specdec.chat.calls_or_object import CallsFirst
from langchain_specdec.chat.messages import short_id
from langchain_specdec.chat.structured_output import OutputForm
from langchain_specdec.chat.tool_calls import BrokenToolCall, ToldCallParser, ToolCall, ToolCallParser
from langchain_specdec.chat.tool_calls.values import name_in
from langchain_specdec.completions.completion import Completion
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.completions.server_chat import shown
from langchain_specdec.completions.thoughts import Reasoning, Thoughts
from langchain_specdec.errors import MalformedAnswerError
from langchain_specdec.sampling.params import SamplingParams


class SpeculativeChatChunk(ChatGenerationChunk):
    """A piece of a streamed answer that knows its tokens, and which of them were drafted.

    Callbacks receive it as `chunk`.

    Attributes:
        tokens: The tokens of the decoding step that released the piece; of a step that released several, with the
            first.
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
        form: The form that the answer has; its fixed parts are not in the events, but for the one before it where a
            thought comes first.
        params: What was asked for.
        must_call: Whether the answer has to be a call.
        keeps_malformed: Whether an answer is told that a server wrote against its grammar. Otherwise it raises; but one
            that has to be a call is an invalid call then.
        prompt_tokens: Number of tokens of the prompt; 0 where only the end of the answer tells.
        has_blocks: Whether the content of a message is a list of standard blocks, texts and calls in the order written,
            as LangChain's `output_version="v1"` has it. Otherwise it is the text.
        thoughts: How thoughts stand in the text; None where there are none.
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
        prompt_tokens: int = 0,
        has_blocks: bool = False,
        thoughts: Thoughts | None = None,
    ) -> None:
        self._model_name = model_name
        self._parser = parser
        # Held until its end where it has to be a call, for only then it is known whether it is one.
        self._held: str | None = "" if must_call else None
        self._reader = AnswerReader(None if must_call else parser, thoughts)
        # A server's pieces are no tokens.
        self._num_reasoning = None if thoughts is None or isinstance(parser, ToldCallParser) else 0
        self._is_single_thought = thoughts is not None and thoughts.is_single
        self._keeps_malformed = keeps_malformed
        self._has_blocks = has_blocks
        self._is_json = params.grammar is not None and params.grammar.regex is None
        self._cut = f"The answer was cut at max_new_tokens={params.max_new_tokens}: raise it."
        self._form_error: str | None = None
        # The text of the answer, where it is to be JSON.
        self._answer = ""
        self._has_calls = False
        self._begin, self._end = (form.begin, form.end) if form is not None else ("", "")
        if self._is_single_thought:
            self._begin = ""
        self._tokens: list[Token] = []
        self._prompt_tokens = prompt_tokens
        # Tokens of the prompt and of the answer that chunks have counted.
        self._counted = (0, 0)
        self._num_blocks = 0
        # What the last piece was.
        self._kind: type | None = None
        self._ids: set[str] = set()

    def chunks(self, event: TokenEvent | FinishEvent) -> list[SpeculativeChatChunk]:
        """The chunks of an event, one for each thought, text and call. The last of all is empty, with all else.

        Each counts the tokens that are new with it, as LangChain adds them up. So what was read of an answer that is
        cancelled is counted too.

        Raises:
            MalformedAnswerError: A server broke the grammar asked for.
        """
        tokens = event.tokens if isinstance(event, TokenEvent) else ()
        chunks: list[SpeculativeChatChunk] = []
        for piece in _joined(self._pieces(event)):
            # LangChain's protocol events take a chunk for text or for calls, and lose what stands beside text.
            message = self._part(piece)
            message.usage_metadata = self._new_usage(self._prompt_tokens, len(self._tokens))
            chunks.append(SpeculativeChatChunk(message=message, tokens=tokens))
            tokens = ()
        if isinstance(event, FinishEvent):
            # LangChain adds up the numbers of chunks that it merges, so only the last chunk carries them.
            message = AIMessageChunk(
                content=self._content([]),
                usage_metadata=self._new_usage(
                    event.prompt_tokens, event.completion_tokens, event.cached_tokens, self._reasoning_tokens(event)
                ),
                response_metadata=self._version,
                chunk_position="last",
            )
            chunks.append(SpeculativeChatChunk(message=message, generation_info=self._info(event)))
        return chunks

    def generation(self, events: Sequence[TokenEvent | FinishEvent]) -> ChatGeneration:
        """The whole answer; the last event is a `FinishEvent`.

        Raises:
            MalformedAnswerError: A server broke the grammar asked for.
        """
        pieces = _joined([piece for event in events for piece in self._pieces(event)])
        finish = events[-1]
        assert isinstance(finish, FinishEvent)  # noqa: S101 - what a backend promises
        blocks = [self._block(piece) for piece in pieces]
        message = AIMessage(
            content=self._content(blocks),
            tool_calls=[_without_type(block) for block in blocks if block["type"] == "tool_call"],
            invalid_tool_calls=[_without_type(block) for block in blocks if block["type"] == "invalid_tool_call"],
            additional_kwargs=_additional("".join(p.separator + p.text for p in pieces if isinstance(p, Reasoning))),
            usage_metadata=_usage(
                finish.prompt_tokens, finish.completion_tokens, finish.cached_tokens, self._reasoning_tokens(finish)
            ),
            response_metadata=self._version,
        )
        return ChatGeneration(message=message, generation_info=self._info(finish))

    def _reasoning_tokens(self, finish: FinishEvent) -> int | None:
        return finish.reasoning_tokens if self._num_reasoning is None else self._num_reasoning

    @property
    def _version(self) -> dict[str, Any]:
        # It tells LangChain that the content is blocks already.
        return {"output_version": "v1"} if self._has_blocks else {}

    def _content(self, blocks: Sequence[dict[str, Any]]) -> Any:
        return list(blocks) if self._has_blocks else "".join(block.get("text", "") for block in blocks)

    def _new_usage(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int | None = None,
        reasoning_tokens: int | None = None,
    ) -> UsageMetadata:
        """What of these counts no chunk before has; the last two are told once, for LangChain's events add up none."""
        counted, self._counted = self._counted, (prompt_tokens, completion_tokens)
        return _usage(prompt_tokens - counted[0], completion_tokens - counted[1], cached_tokens, reasoning_tokens)

    def _block(self, piece: ReplyPiece) -> dict[str, Any]:
        """A piece as one of LangChain's standard blocks."""
        if isinstance(piece, str):
            return {"type": "text", "text": piece}
        if isinstance(piece, Reasoning):
            return {"type": "reasoning", "reasoning": piece.text}
        if isinstance(piece, ToolCall):
            return {"type": "tool_call", "name": piece.name, "args": piece.arguments, "id": self._new_id(piece.id)}
        call_id = self._new_id()
        return {
            "type": "invalid_tool_call",
            "name": piece.name,
            "args": piece.text,
            "id": call_id,
            "error": piece.error,
        }

    def _part(self, piece: ReplyPiece) -> AIMessageChunk:
        """A piece as a chunk. LangChain merges blocks, and chunks of calls, by their index."""
        if not (self._kind is type(piece) and _goes_on(piece)):
            self._num_blocks += 1
        self._kind = type(piece)
        block = {**self._block(piece), "index": self._num_blocks - 1}
        if isinstance(piece, (str, Reasoning)):
            thought = piece.separator + piece.text if isinstance(piece, Reasoning) else ""
            return AIMessageChunk(
                content=self._content([block]),
                additional_kwargs=_additional(thought),
                response_metadata=self._version,
            )
        # The text of a broken call keeps its mark: LangChain would complete JSON that was cut, and take it for a call.
        args = piece.text if isinstance(piece, BrokenToolCall) else json.dumps(block["args"], ensure_ascii=False)
        call = tool_call_chunk(name=block["name"], args=args, id=block["id"], index=block["index"])
        content = self._content([{**call} if block["type"] == "tool_call" else block])
        return AIMessageChunk(content=content, tool_call_chunks=[call], response_metadata=self._version)

    def _pieces(self, event: TokenEvent | FinishEvent) -> list[ReplyPiece]:
        pieces: list[ReplyPiece] = []
        if isinstance(event, TokenEvent):
            for token in event.tokens:
                pieces += self._read(token)
        elif event.finish_reason == "eos_token":
            # An answer that was cut lacks its fixed end, too.
            pieces += self._feed(self._end)
        if self._held is not None:
            self._held += "".join(piece for piece in pieces if isinstance(piece, str))
            pieces = [piece for piece in pieces if not isinstance(piece, str)]
        if isinstance(event, FinishEvent):
            pieces += self._closed(event)
        for piece in pieces:
            if isinstance(piece, BrokenToolCall):
                self._form_error = piece.error
            self._has_calls = self._has_calls or isinstance(piece, (ToolCall, BrokenToolCall))
        if isinstance(event, FinishEvent) and not self._has_calls:
            self._check_form(event)
        return pieces

    def _read(self, token: Token) -> list[ReplyPiece]:
        """The pieces that a token completes; it counts as one of a thought where that is begun, or ended, by it."""
        was_thinking = self._reader.is_thinking
        self._tokens.append(token)
        pieces = self._feed(token.text)
        if self._num_reasoning is not None and (was_thinking or self._reader.is_thinking):
            self._num_reasoning += 1
        return pieces

    def _feed(self, text: str) -> list[ReplyPiece]:
        text, self._begin = self._begin + text, ""
        pieces = self._reader.feed(text) if text else []
        if self._is_json:
            self._answer += "".join(piece for piece in pieces if isinstance(piece, str))
        return pieces

    def _closed(self, finish: FinishEvent) -> list[ReplyPiece]:
        """What the end of the answer releases."""
        pieces = self._reader.close(is_whole=finish.finish_reason == "eos_token")
        if self._held is not None:
            self._held += "".join(piece for piece in pieces if isinstance(piece, str))
            thoughts = [piece for piece in pieces if isinstance(piece, Reasoning)]
            return [*thoughts, *self._forced_call(self._held, finish)]
        return self._with_reason(pieces, finish)

    def _with_reason(self, pieces: Sequence[ReplyPiece], finish: FinishEvent) -> list[ReplyPiece]:
        """The last pieces; calls that are broken because the answer was cut say so."""
        if finish.finish_reason != "length":
            return list(pieces)
        return [replace(piece, error=self._cut) if isinstance(piece, BrokenToolCall) else piece for piece in pieces]

    def _forced_call(self, text: str, finish: FinishEvent) -> list[ReplyPiece]:
        """The call that the whole answer is, or was to be."""
        assert isinstance(self._parser, ToolCallParser)  # noqa: S101 - reads what is forced
        pieces = self._with_reason([*self._parser.feed(text), *self._parser.close()], finish)
        if finish.grammar_error is None and any(not isinstance(piece, str) for piece in pieces):
            return pieces
        is_cut = finish.finish_reason == "length"
        error = finish.grammar_error or (self._cut if is_cut else "The answer is no call of a tool.")
        marked = text if text.startswith(self._parser.mark) else self._parser.mark + text
        return [BrokenToolCall(shown(marked), error, name_in(text))]

    def _check_form(self, finish: FinishEvent) -> None:
        """Note what is wrong with an answer that holds no calls."""
        if finish.grammar_error is not None:
            if not self._keeps_malformed:
                raise MalformedAnswerError(finish.grammar_error)
            self._form_error = finish.grammar_error
        elif finish.finish_reason == "length" and self._is_json:
            self._form_error = None if is_whole(self._answer) else self._cut

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


def _joined(pieces: Sequence[ReplyPiece]) -> list[ReplyPiece]:
    """The pieces with neighbouring texts as one, and those of a thought, and without empty ones."""
    joined: list[ReplyPiece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, str) and isinstance(last, str):
            joined[-1] = last + piece
        elif isinstance(piece, Reasoning) and isinstance(last, Reasoning) and _goes_on(piece):
            joined[-1] = last._replace(text=last.text + piece.text)
        elif piece != "":
            joined.append(piece)
    return joined


def _goes_on(piece: ReplyPiece) -> bool:
    """Whether a piece may be part of one of its kind before it."""
    return isinstance(piece, str) or (isinstance(piece, Reasoning) and not piece.separator)


def _additional(thought: str) -> dict[str, Any]:
    """Where LangChain looks for a thought."""
    return {"reasoning_content": thought} if thought else {}


def _without_type(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "type"}


def _usage(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int | None, reasoning_tokens: int | None
) -> UsageMetadata:
    usage = UsageMetadata(
        input_tokens=prompt_tokens,
        output_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )
    # None where the backend does not know it.
    if cached_tokens is not None:
        usage["input_token_details"] = InputTokenDetails(cache_read=cached_tokens)
    # None where the model writes no thoughts.
    if reasoning_tokens is not None:
        usage["output_token_details"] = OutputTokenDetails(reasoning=reasoning_tokens)
    return usage
