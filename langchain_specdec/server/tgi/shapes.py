"""What TGI's paths answer, for OpenAPI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict
from typing_extensions import NotRequired, TypedDict

Reason = Literal["eos_token", "stop_sequence", "length"]


class _Closed(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]


class TGIError(_Closed):
    """An error. In a stream it is the last event."""

    error: str
    error_type: Literal[
        "validation",
        "overloaded",
        "generation",
        "incomplete_generation",
        "incomplete_generation_stream",
        "healthcheck",
        "template_error",
    ]


class Token(_Closed):
    """A token; a special one has its name for a text."""

    id: int
    text: str
    logprob: float | None
    special: bool


class _Counts(_Closed):
    finish_reason: Reason
    generated_tokens: int
    seed: int | None
    speculation: NotRequired[dict[str, Any]]


class Details(_Counts):
    """What is told of a whole text."""

    prefill: list[Any]
    tokens: list[Token]
    top_tokens: NotRequired[list[list[Token]]]


class StreamDetails(_Counts):
    """What the last event of a stream tells."""

    input_length: int


class Generated(_Closed):
    """A whole text."""

    generated_text: str
    details: NotRequired[Details]


class StreamEvent(_Closed):
    """An event of a stream; the last has the whole text."""

    index: int
    token: Token
    top_tokens: NotRequired[list[Token]]
    generated_text: str | None
    details: StreamDetails | None


class PlacedToken(_Closed):
    """A token of a prompt, and where it stands in the text."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokens(_Closed):
    """The tokens of a chat, and its text."""

    tokenize_response: list[PlacedToken]
    templated_text: str


class Info(_Closed):
    """What the server is."""

    model_id: str
    model_sha: None
    model_pipeline_tag: None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: None
    docker_label: None
