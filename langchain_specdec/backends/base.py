"""What a source of completions offers, whether it is a model in this process or a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.completions.stream import CompletionStream

__all__ = ["Backend"]


@runtime_checkable
class Backend(Protocol):
    """A source of completions. All methods may be called from any thread at any time.

    For chats a backend may have more: `tokenizer`, the model's Hugging Face tokenizer with its chat template;
    `takes_token_ids`, whether a prompt may be a sequence of tokens; `max_length`, the most tokens of prompt and answer;
    `needs_properties`, whether the schema of a grammar has to be that of an object with properties.
    """

    @property
    def model_name(self) -> str:
        """Name of the model, for messages and traces."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the text depends on beside prompt and parameters; tells caches of two backends apart."""

    def stream(self, request: CompletionRequest) -> CompletionStream:
        """Start a completion. Parameters that cannot be honoured raise here, before any work."""

    def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Run several completions at once, in the order given. If one fails the others are stopped and it raises."""

    async def acomplete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """The same without blocking the running event loop."""

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text as the model would read it."""

    def close(self) -> None:
        """Free what the backend holds. It cannot be used afterwards."""
