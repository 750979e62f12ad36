"""What OpenAI's paths answer, for OpenAPI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict
from typing_extensions import NotRequired, TypedDict

Reason = Literal["stop", "length", "tool_calls"]


class _Closed(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]


class ErrorDetails(_Closed):
    """What was wrong; `param` names a field of the body."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class OpenAIError(_Closed):
    """An error. In a stream it is the last event before `[DONE]`."""

    error: ErrorDetails


class PromptDetails(_Closed):
    """Tokens of the prompt that an earlier request had left in the engine."""

    cached_tokens: int


class CompletionDetails(_Closed):
    """Tokens of a thought."""

    reasoning_tokens: int


class Usage(_Closed):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: NotRequired[CompletionDetails]


class SpeculativeDecoding(_Closed):
    """What speculation did, as vLLM tells it."""

    mean_acceptance_length: float | None
    draft_acceptance_rate: float | None
    acceptance_histogram: list[int]
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int
    per_step_accepted: None
    per_step_drafted: None


class Metrics(_Closed):
    """What vLLM tells beside the text."""

    speculative_decoding: SpeculativeDecoding


class Told(TypedDict):
    """What this package tells of a text."""

    finish_reason: Literal["eos_token", "stop_sequence", "length"]
    seed: NotRequired[int | None]
    time_to_first_token: NotRequired[float | None]
    speculation: NotRequired[dict[str, Any]]


class _Answer(_Closed):
    id: str
    created: int
    model: str
    metrics: NotRequired[Metrics]
    specdec: NotRequired[Told | list[Told]]


class TokenLogprob(_Closed):
    """How probable a token was."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """The same of the token that was chosen, and the most probable ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(_Closed):
    """Log probabilities of the tokens of a message."""

    content: list[ChosenLogprob]
    refusal: None


class ToldFunction(_Closed):
    """The function that is called, and its arguments as JSON in a text."""

    name: str | None
    arguments: str | None


class ToldCall(_Closed):
    """A call of a tool; `index` tells calls of a stream apart."""

    index: NotRequired[int]
    id: str | None
    type: Literal["function"]
    function: ToldFunction


class AnswerMessage(_Closed):
    """The message that the model wrote."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToldCall]]


class Delta(_Closed):
    """What a chunk adds to the message."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToldCall]]


class ChatChoice(_Closed):
    """The answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChunkChoice(_Closed):
    """A piece of the answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Reason | None


class ChatCompletion(_Answer):
    """The answer to messages."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletionChunk(_Answer):
    """An event of a stream of the same."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


class TextLogprobs(_Closed):
    """Log probabilities of the tokens of a text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float | None]]


class TextChoice(_Closed):
    """A text, or a piece of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Reason | None
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class TextCompletion(_Answer):
    """Texts that go on from prompts; in a stream an event of them."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: NotRequired[Usage | None]


class Model(_Closed):
    """The model, or an adapter of it, whose `parent` it is."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    eos_token_ids: list[int]
    parent: NotRequired[str]


class ModelList(_Closed):
    """What can be asked."""

    object: Literal["list"]
    data: list[Model]


class TokenCount(_Closed):
    """The tokens of a text, as vLLM tells them."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: None
